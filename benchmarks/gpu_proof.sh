#!/usr/bin/env bash
# Prove the GPU path on a machine with one NVIDIA GPU and SGLang, no network needed:
#
#     bash benchmarks/gpu_proof.sh [FLAG...] [SECTION...]
#
#   --model M --draft D     another pair than the embedded one, whose package must else be installed
#   --out DIR               results, logs of all servers included (default benchmarks/results/gpu-DATE)
#   --tar FILE              all of DIR in one file, made anew after each section (default DIR/proof.tar.gz)
#   --sections A,B,C        these, in this order, like SECTION...
#   --time-limit SECONDS    leave out what no longer fits, and end what takes longer than was thought
#   --start-timeout SECONDS, --client-timeout SECONDS    patience with a start (150, in float32 twice) and an answer (60)
#   --backend NAME          attention backend where a section does not say another (triton)
#
# Sections, all by default, the most decisive first; each has its own verdict, and a failure does not stop the next:
#   machine    what this is: GPU, driver, packages
#   kernels    tree builder, draft graph tail and walk on the GPU against core, over random shapes
#   nosync     a decode round never waits for the device
#   smoke      four prompts, bfloat16: tokens are plain decoding's, ties apart
#   lossless   greedy tokens equal plain decoding's, float32, alone and eight at once
#   graphs     CUDA graphs and eager choose the same tokens
#   widths     other tree widths, and rounds without a draft, choose the same tokens; on FlashInfer, too
#   backends   every attention backend of this GPU honours the tree's mask: bfloat16 tokens are plain decoding's, ties apart
#   builder    the builder's time against its memory floor
#   speed      plain, DFLASH chain, DDTREE: real acceptance with the embedded model, batch 1, 4, 8
#   rounds     what a round costs in plain steps at the size of Qwen3-8B (weights made up), by N and batch
#   speed-large as speed, at batch 16 and 32
# Verdicts are PASS, FAIL, or SKIP with its reason, which proves nothing; DIR/summary.jsonl has them. Exit status 1 when
# a section failed or none passed, 2 when nothing could be run.
set -uo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

python=${PYTHON:-python3}
[[ -z "${PYTHON:-}" && -x "$repo/.venv/bin/python" ]] && python="$repo/.venv/bin/python"
out="$repo/benchmarks/results/gpu-$(date -u +%Y%m%dT%H%M%SZ)"
backend=triton # float32 runs on it, and so do all sizes of mask
start_timeout=150 client_timeout=60 time_limit=0
model='' draft='' tar=''
sections=()
refuse() {
    echo "gpu_proof: $1" >&2
    exit 2
}

while (($#)); do
    case $1 in
    --model | --draft | --out | --tar | --backend | --sections | --time-limit | --start-timeout | --client-timeout)
        (($# > 1)) || refuse "$1 needs a value"
        case $1 in
        --model) model=$2 ;;
        --draft) draft=$2 ;;
        --out) out=$2 ;;
        --tar) tar=$2 ;;
        --backend) backend=$2 ;;
        --sections)
            IFS=, read -ra chosen <<<"$2"
            sections+=("${chosen[@]}")
            ;;
        *)
            [[ $2 =~ ^[1-9][0-9]*$ ]] || refuse "$1 is a number of seconds, got $2"
            case $1 in
            --time-limit) time_limit=$2 ;;
            --start-timeout) start_timeout=$2 ;;
            --client-timeout) client_timeout=$2 ;;
            esac
            ;;
        esac
        shift 2
        ;;
    -*) refuse "unknown flag $1; see the head of $0" ;;
    *)
        sections+=("$1")
        shift
        ;;
    esac
done

# What a section takes on a fast GPU, in seconds; estimates. A longer one is ended at the time limit.
declare -A takes=([machine]=5 [kernels]=90 [nosync]=45 [smoke]=60 [lossless]=180 [graphs]=75 [widths]=150
    [backends]=200 [builder]=45 [speed]=300 [rounds]=330 [speed-large]=240)
((${#sections[@]})) ||
    sections=(machine kernels nosync smoke lossless graphs widths backends builder speed rounds speed-large)
for section in "${sections[@]}"; do
    [[ -n "${takes[$section]:-}" ]] || refuse "no section $section; see the head of $0"
done
[[ -n "$model" || -z "$draft" ]] && [[ -z "$model" || -n "$draft" ]] ||
    refuse "--model and --draft go together: a drafter is trained for one target and fits no other"
for folder in ${model:+"$model"} ${draft:+"$draft"}; do
    [[ -f "$folder/config.json" ]] || refuse "a model is a folder with a config.json, got $folder"
done
[[ -z "$model" ]] || model=$(cd "$model" && pwd)
[[ -z "$draft" ]] || draft=$(cd "$draft" && pwd)
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
tar=$(realpath -m "${tar:-$out/proof.tar.gz}")
mkdir -p "$(dirname "$tar")" || exit 2
cd "$repo" || exit 2

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
    refuse "needs an NVIDIA GPU, nvidia-smi shows none on this machine; everything else is in tests/run.sh"
fi
# Kernel tests would be skipped and servers would run on the processor: all would pass, and nothing be shown.
if ! seen=$("$python" -c 'import torch; assert torch.cuda.is_available(), torch.__version__' 2>&1); then
    refuse "nvidia-smi shows a GPU, but torch sees none: ${seen##*$'\n'}"
fi

# Where the package is not installed, its entry points are written beside the results' caches.
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Prompts on FlashInfer by the kernels that verify uses; those for ragged prompts are minutes of compiling on Hopper.
export SGLANG_FLASHINFER_USE_PAGED=${SGLANG_FLASHINFER_USE_PAGED:-1}
if ! "$python" -c 'from importlib import metadata; metadata.version("ddtree-sglang")' 2>/dev/null; then
    entry_points=$("$python" -m benchmarks register_checkout "$repo/.cache/entry-points") || exit 2
    export PYTHONPATH="$entry_points:$PYTHONPATH"
fi

touch "$out/verdicts.txt"
verdicts_before=$(wc -l <"$out/verdicts.txt")
verdict() { # WORD SECTION SECONDS [REASON]
    local reason=${4:-}
    reason=${reason//[$'"\\\t\r\n']/ }
    echo "$1 $2 $3 s${reason:+: $reason}" | tee -a "$out/verdicts.txt"
    printf '{"section": "%s", "verdict": "%s", "seconds": %d, "reason": "%s"}\n' "$2" "$1" "$3" "$reason" \
        >>"$out/summary.jsonl"
}
# One file holds all, at any time: few may come back from a machine that is lent.
pack() {
    tar -C "$out" --exclude='*.tar.gz' --exclude='*.tar.gz.partial' -czf "$tar.partial" .
    (($? <= 1)) && mv "$tar.partial" "$tar" # 1: a file was written to meanwhile
}
left() { echo $((time_limit - SECONDS > 1 ? time_limit - SECONDS : 1)); }
# A run of Python; at the time limit it is told to end, and what it wrote by then stays.
run() {
    if ((time_limit)); then
        timeout --kill-after=20 "$(left)" "$python" "$@"
    else
        "$python" "$@"
    fi
}

flags=(--datasets held-out --start-timeout "$start_timeout" --client-timeout "$client_timeout"
    "--server-flag=--attention-backend=$backend" --server-flag=--mem-fraction-static=0.5
    --server-flag=--disable-prefill-cuda-graph)
pair=(--model "$model" --draft "$draft")
# Flags of all servers of SECTION, whatever the system: graphs for the batch sizes that it measures and no others.
servers_of() { # SECTION BATCH...
    local section=$1
    shift
    of_servers=("${pair[@]}" "${flags[@]}" --server-logs "$out/servers/$section" --server-flag=--cuda-graph-bs-decode
        "${@/#/--server-flag=}")
}
# float32 as it is written: sgl_kernel's norms know half precision alone, and Triton's products would be TF32.
# Attention without tensor cores takes Triton a quarter of a minute a kernel to compile, hence the longer start.
as_written() {
    export SGLANG_FORCE_FUSED_OP_BACKEND=torch TRITON_F32_DEFAULT=ieee
    flags+=(--start-timeout $((2 * start_timeout)))
}

# Is BACKEND installed here? If not, CASE gets the verdict SKIP.
installed() { # CASE BACKEND
    local module error
    case $2 in
    flashinfer) module=flashinfer ;;
    fa3) module=sgl_kernel.flash_attn ;;
    fa4) module=sglang.kernels.ops.attention.flash_attention_v4 ;;
    *) return 0 ;;
    esac
    error=$("$python" -c "import $module" 2>&1) && return
    verdict SKIP "$1" 0 "import $module fails here: ${error##*$'\n'}"
    return 1
}

machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
    "$python" - <<'END'
import platform
from importlib import metadata

import torch

print("python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)
for name in ("sglang", "sglang-kernel", "triton", "flashinfer-python", "transformers", "ddtree-sglang"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "not installed as a package")
END
}
readonly skipped=77 # a section's status that gives SKIP, its last line the reason
kernels() {
    if ! "$python" -c 'import hypothesis, pytest'; then
        echo "pytest and hypothesis are needed, of the versions in benchmarks/requirements.txt"
        return $skipped
    fi
    export TRITON_F32_DEFAULT=ieee
    run -m pytest -q -p no:cacheprovider tests/kernels tests/core/test_cuda_graph.py tests/engine/debug/test_sync_check.py
}
builder() { run -m benchmarks gpu_kernels --output "$out/builder.jsonl"; }
nosync() {
    servers_of nosync 1 8
    run -m benchmarks gpu_checks no-sync "${of_servers[@]}" --dtype bfloat16 --max-new-tokens 64
}
# A mask that is ignored shows every node its siblings: then most answers differ, by far more than a tie.
compare_backend() { # CASE BACKEND FLAG...
    local case=$1 name=$2
    shift 2
    servers_of "$case" 1 4
    run -m benchmarks lossless "${of_servers[@]}" "--server-flag=--attention-backend=$name" \
        --dtype bfloat16 --near-tie 0.25 --concurrency 1 4 "$@" --output "$out/$case.json"
}
smoke() { compare_backend smoke "$backend" --prompts 4 --max-new-tokens 24 --budgets 16; }
lossless() {
    as_written
    servers_of lossless 1 8
    run -m benchmarks lossless "${of_servers[@]}" --prompts 24 --max-new-tokens 64 --budgets 16 63 \
        --output "$out/lossless.json"
}
graphs() {
    as_written
    servers_of graphs 1 8
    run -m benchmarks gpu_checks graph-equality "${of_servers[@]}" --max-new-tokens 64
}
widths() {
    local failed=0
    (as_written && servers_of widths 1 8 &&
        run -m benchmarks gpu_checks width-equality "${of_servers[@]}" --max-new-tokens 64) || failed=1
    installed widths/flashinfer flashinfer || return $failed
    echo "-- flashinfer"
    servers_of widths-flashinfer 1 8
    run -m benchmarks gpu_checks width-equality "${of_servers[@]}" --server-flag=--attention-backend=flashinfer \
        --dtype bfloat16 --near-tie 0.25 --max-new-tokens 64 || failed=1
    return $failed
}
backends() {
    local name failed=0 major names=(triton flashinfer)
    major=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | cut -d. -f1)
    # SGLang's FlashAttention builds: version 3 for Hopper, 4 for Blackwell.
    [[ $major == 9 ]] && names+=(fa3)
    [[ $major == 10 ]] && names+=(fa4)
    for name in "${names[@]}"; do
        echo "-- $name"
        installed "backends/$name" "$name" || continue
        compare_backend "backend-$name" "$name" --prompts 12 --max-new-tokens 48 --budgets 31 || failed=1
    done
    return $failed
}
speed() {
    servers_of speed 1 4 8
    run -m benchmarks decode "${of_servers[@]}" --dtype bfloat16 --allow-mismatch --no-trace --prompts 8 \
        --max-new-tokens 64 --budgets 8 16 32 64 --batch-sizes 1 4 8 --output "$out/speed.jsonl"
}
speed-large() {
    servers_of speed-large 16 32
    # 32 requests with two windows of 65 nodes each must fit the pool: what is retracted and done again is no speed.
    run -m benchmarks decode "${of_servers[@]}" --dtype bfloat16 --allow-mismatch --no-trace --prompts 32 \
        --max-new-tokens 64 --max-total-tokens 32768 --budgets 16 64 --batch-sizes 16 32 --repeats 2 \
        --output "$out/speed-large.jsonl"
}
rounds() {
    local folder="$repo/.cache/dummy-pair"
    run -m benchmarks dummy_pair "$folder" --tokenizer "$model" || return
    servers_of rounds 1 8 32
    run -m benchmarks decode "${of_servers[@]}" --model "$folder/target" --draft "$folder/draft" \
        --server-flag=--load-format=dummy --server-flag=--skip-tokenizer-init --dtype bfloat16 --allow-mismatch \
        --no-trace --servers-at-once 4 --max-total-tokens 24576 --prompts 32 --max-new-tokens 32 --repeats 2 \
        --budgets 16 64 --batch-sizes 1 8 32 --output "$out/rounds.jsonl"
    local status=$?
    # Of a run that was ended early, too.
    [[ ! -f "$out/rounds.jsonl" ]] || run -m benchmarks round_cost "$out/rounds.jsonl" | tee "$out/rounds.md"
    return $status
}

# The model of all servers: one message now, not a failure of each after its own wait.
no_model=''
prepare() {
    if [[ -n "$model" ]]; then return; fi
    if ! model=$("$python" -m ddtree_sglang.demo.prepare 2>"$out/prepare.log"); then
        no_model="no model: $(tail -n 1 "$out/prepare.log") Or pass --model M --draft D."
        echo "gpu_proof: $no_model" >&2
        return
    fi
    model=${model##*$'\n'}
    pair=(--model "$model") # its drafter is the one that ships
}
needs_model() { [[ ! $1 =~ ^(machine|kernels|builder)$ ]]; }

for section in "${sections[@]}"; do
    if needs_model "$section"; then
        prepare
        break
    fi
done
for section in "${sections[@]}"; do
    started=$SECONDS
    if ((time_limit && SECONDS + takes[$section] > time_limit)); then
        verdict SKIP "$section" 0 "needs about ${takes[$section]} s, $(left) s are left of $time_limit"
        continue
    fi
    if needs_model "$section" && [[ -n "$no_model" ]]; then
        verdict FAIL "$section" 0 "$no_model"
        continue
    fi
    echo "== $section"
    "$section" 2>&1 | tee "$out/$section.log"
    status=${PIPESTATUS[0]}
    case $status in
    0) verdict PASS "$section" $((SECONDS - started)) ;;
    "$skipped") verdict SKIP "$section" 0 "$(tail -n 1 "$out/$section.log")" ;;
    124 | 130 | 137) verdict FAIL "$section" $((SECONDS - started)) "ended early, status $status; what it measured is kept" ;;
    *) verdict FAIL "$section" $((SECONDS - started)) "status $status" ;;
    esac
    pack
done
of_this_run=$(tail -n "+$((verdicts_before + 1))" "$out/verdicts.txt")
count() { grep -c "^$1 " <<<"$of_this_run"; }
echo "== verdicts: $(count PASS) PASS, $(count FAIL) FAIL, $(count SKIP) SKIP ($out)"
echo "$of_this_run"
pack
(($(count FAIL) == 0 && $(count PASS) > 0))
