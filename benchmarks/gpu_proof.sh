#!/usr/bin/env bash
# Prove the GPU path on a machine with one NVIDIA GPU and SGLang, no network needed:
#
#     bash benchmarks/gpu_proof.sh [--model M --draft D] [--out DIR] [SECTION...]
#
# Sections, all by default, in this order; each has its own verdict, and a failure does not stop the next:
#   machine    what this is: GPU, driver, packages
#   kernels    tree builder, draft graph tail and walk on the GPU against core, over random shapes
#   builder    the builder's time against its memory floor
#   lossless   greedy tokens equal plain decoding's, float32, alone and eight at once
#   backends   every attention backend of this GPU honours the tree's mask: bfloat16 tokens are plain decoding's, ties apart
#   nosync     a decode round never waits for the device
#   graphs     CUDA graphs and eager choose the same tokens
#   widths     other tree widths, and rounds without a draft, choose the same tokens
#   speed      plain, DFLASH chain, DDTREE: real acceptance with the embedded model, batch 1, 4, 8
#   speed-large the same at batch 16 and 32
#   rounds     what a round costs in plain steps at the size of Qwen3-8B (weights made up), by N and batch
# Results go to DIR (default benchmarks/results/gpu-DATE). Exit status 1 when a section failed.
set -uo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo" || exit 2

python=${PYTHON:-python3}
[[ -z "${PYTHON:-}" && -x "$repo/.venv/bin/python" ]] && python="$repo/.venv/bin/python"
out="$repo/benchmarks/results/gpu-$(date -u +%Y%m%dT%H%M%SZ)"
backend=triton # float32 runs on it, and so do all sizes of mask
pair=()
model=
sections=()
while (($#)); do
    case $1 in
    --model | --draft)
        pair+=("$1" "$2")
        [[ $1 == --model ]] && model=$2
        shift 2
        ;;
    --out)
        mkdir -p "$2"
        out=$(cd "$2" && pwd)
        shift 2
        ;;
    --backend)
        backend=$2
        shift 2
        ;;
    -*)
        echo "gpu_proof: unknown flag $1; see the head of $0" >&2
        exit 2
        ;;
    *)
        sections+=("$1")
        shift
        ;;
    esac
done
((${#sections[@]})) || sections=(machine kernels builder lossless backends nosync graphs widths speed speed-large rounds)

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo "gpu_proof: needs an NVIDIA GPU, nvidia-smi shows none on this machine; everything else is in tests/run.sh" >&2
    exit 2
fi
mkdir -p "$out"

# Where the package is not installed, its entry points are written beside the results' caches.
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if ! "$python" -c 'from importlib import metadata; metadata.version("ddtree-sglang")' 2>/dev/null; then
    entry_points=$("$python" benchmarks/register_checkout.py "$repo/.cache/entry-points") || exit 2
    export PYTHONPATH="$entry_points:$PYTHONPATH"
fi

flags=(--datasets held-out "--server-flag=--attention-backend=$backend" "--server-flag=--mem-fraction-static=0.5")

machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
    "$python" - <<'END'
import platform
from importlib import metadata

import torch

print("python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)
for name in ("sglang", "triton", "flashinfer-python", "transformers", "ddtree-sglang"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "not installed as a package")
END
}
kernels() {
    "$python" -m pytest -q -p no:cacheprovider tests/kernels tests/core/test_cuda_graph.py tests/engine/test_sync_check.py
}
builder() { "$python" benchmarks/bench_gpu_kernels.py --output "$out/builder.jsonl"; }
lossless() {
    "$python" benchmarks/bench_lossless.py "${pair[@]}" "${flags[@]}" --prompts 24 --max-new-tokens 64 --budgets 16 63 \
        --output "$out/lossless.json"
}
backends() {
    local name failed=0 major
    major=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | cut -d. -f1)
    local names=(triton flashinfer)
    # SGLang's FlashAttention builds: version 3 for Hopper, 4 for Blackwell.
    [[ $major == 9 ]] && names+=(fa3)
    [[ $major == 10 ]] && names+=(fa4)
    for name in "${names[@]}"; do
        echo "-- $name"
        # A mask that is ignored shows every node its siblings: then most answers differ, by far more than a tie.
        "$python" benchmarks/bench_lossless.py "${pair[@]}" "${flags[@]}" "--server-flag=--attention-backend=$name" \
            --dtype bfloat16 --near-tie 0.25 --prompts 12 --max-new-tokens 48 --budgets 31 --concurrency 1 4 \
            --output "$out/backend-$name.json" || failed=1
    done
    return $failed
}
nosync() { "$python" benchmarks/gpu_checks.py no-sync "${pair[@]}" "${flags[@]}" --dtype bfloat16 --max-new-tokens 64; }
graphs() { "$python" benchmarks/gpu_checks.py graph-equality "${pair[@]}" "${flags[@]}" --max-new-tokens 64; }
widths() { "$python" benchmarks/gpu_checks.py width-equality "${pair[@]}" "${flags[@]}" --max-new-tokens 64; }
speed_at() {
    local name=$1 prompts=$2
    shift 2
    "$python" benchmarks/bench_decode.py "${pair[@]}" "${flags[@]}" --dtype bfloat16 --allow-mismatch --no-trace \
        --prompts "$prompts" --max-new-tokens 64 --budgets 8 16 32 64 128 --batch-sizes "$@" --output "$out/$name.jsonl"
}
rounds() {
    local folder="$repo/.cache/dummy-pair" tokenizer=$model
    if [[ -z "$tokenizer" ]]; then
        tokenizer=$("$python" -c 'from ddtree_sglang.demo.prepare import prepare_model; print(prepare_model())') || return
    fi
    "$python" benchmarks/dummy_pair.py "$folder" --tokenizer "$tokenizer" || return
    "$python" benchmarks/bench_decode.py --model "$folder/target" --draft "$folder/draft" "${flags[@]}" \
        --server-flag=--load-format=dummy --server-flag=--skip-tokenizer-init --dtype bfloat16 --allow-mismatch \
        --no-trace --servers-at-once 4 --max-total-tokens 24576 --prompts 32 --max-new-tokens 32 --repeats 2 \
        --budgets 16 32 64 128 --batch-sizes 1 4 8 16 32 --output "$out/rounds.jsonl" || return
    "$python" benchmarks/round_cost.py "$out/rounds.jsonl" | tee "$out/rounds.md"
}

run_section() {
    case $1 in
    machine) machine ;;
    kernels) kernels ;;
    builder) builder ;;
    lossless) lossless ;;
    backends) backends ;;
    nosync) nosync ;;
    graphs) graphs ;;
    widths) widths ;;
    speed) speed_at speed 8 1 4 8 ;;
    speed-large) speed_at speed-large 32 16 32 ;;
    rounds) rounds ;;
    *)
        echo "gpu_proof: no section $1; see the head of $0" >&2
        return 2
        ;;
    esac
}

failed=0
for section in "${sections[@]}"; do
    started=$SECONDS
    echo "== $section"
    if run_section "$section" 2>&1 | tee "$out/$section.log"; then verdict=PASS; else verdict=FAIL failed=1; fi
    echo "$verdict $section $((SECONDS - started)) s" | tee -a "$out/verdicts.txt"
done
echo "== verdicts ($out)"
cat "$out/verdicts.txt"
exit "$failed"
