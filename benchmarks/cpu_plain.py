"""Plain decoding on CPU cores: the whole SGLang server against Hugging Face `generate`, same model, dtype and cores.

    .venv/bin/python -m benchmarks cpu_plain [--model M] [--dtype float32 bfloat16] [--quick]

Both are up together and take turns, prompt by prompt, so that a slow spell of the machine hits both. Greedy, batch 1,
end of sequence ignored, time from sending the request to its last token, prefill included. Token ids are compared
before anything is timed. One JSON line per dtype; the last line of stdout is the last of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.provenance import collect_provenance, portable
from benchmarks.harness.results import new_result
from benchmarks.harness.systems import Common, ServerError, System, running
from ddtree_sglang.demo.prepare import prepare_model
from deploy.local.client import flush_cache, post
from workers.progress import step

QUESTIONS = (
    "Write a haiku about the sea.",
    "Explain recursion to a child.",
    "Write a Python function that reverses a string.",
    "Summarise the plot of Romeo and Juliet in three sentences.",
)


@dataclass(frozen=True)
class Result:
    """Tokens per second, median over prompts and repeats, prefill included; ratios are to Hugging Face."""

    dtype: str
    threads: int
    new_tokens: int
    samples: int
    hugging_face_tokens_per_s: float
    server_tokens_per_s: float
    ratio: float
    streamed_tokens_per_s: float
    streamed_ratio: float
    prompts_with_equal_tokens: str


Generate = Callable[[Sequence[int], int], list[int]]


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags of the run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", help="model folder in Hugging Face format (default: the embedded target)")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="32 tokens, one repeat")
    parser.add_argument("--output", type=Path, help="JSONL file (default: benchmarks/results/cpu-plain-DATE.jsonl)")
    args = parser.parse_args(argv)
    if args.quick:
        args.max_new_tokens, args.repeats = 32, 1
    return args


def hugging_face(model_path: str, dtype: str) -> Generate:
    """`generate` of the model in this process, greedy, never ending early."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype)).eval()
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)

    def generate(prompt: Sequence[int], new_tokens: int) -> list[int]:
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens)
        return out[0, ids.shape[1] :].tolist()

    return generate


def server_generate(url: str, stream: bool) -> Generate:
    """Greedy generation by the server's `/generate`, never ending early; streamed or in one answer."""

    def generate(prompt: Sequence[int], new_tokens: int) -> list[int]:
        sampling = {"temperature": 0.0, "max_new_tokens": new_tokens, "ignore_eos": True}
        answer = post(url, "/generate", {"input_ids": list(prompt), "sampling_params": sampling, "stream": stream})
        if not stream:
            return list(answer["output_ids"])
        events = [line[5:] for line in answer.splitlines() if line.startswith("data:")]
        return list(json.loads(events[-2])["output_ids"])  # the last event is [DONE]

    return generate


def encode(model_path: str) -> list[list[int]]:
    """Token ids of each question as one user turn in the model's own chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False) for one in messages]


def timed(generate: Generate, prompt: Sequence[int], new_tokens: int) -> float:
    """Tokens per second of one generation; raises ServerError when another number of tokens comes."""
    started = time.perf_counter()
    produced = generate(prompt, new_tokens)
    if len(produced) != new_tokens:
        raise ServerError(f"{new_tokens} tokens were asked for, {len(produced)} came; this run measures nothing.")
    return new_tokens / (time.perf_counter() - started)


def measure(args: argparse.Namespace, dtype: str, prompts: list[list[int]]) -> Result:
    """One server and one Hugging Face model, in turns."""
    common = Common(args.model, "", dtype, max_total_tokens=4096, max_running_requests=1)
    with running([System("plain", None)], common) as (system,):
        with step(f"{dtype}: loading the Hugging Face model"):
            in_this_process = hugging_face(args.model, dtype)
        systems = {
            "hf": in_this_process,
            "server": server_generate(system.url, stream=False),
            "streamed": server_generate(system.url, stream=True),
        }
        with step(f"{dtype}: comparing the tokens of {len(prompts)} prompts"):
            pairs = [[systems[name](ids, args.max_new_tokens) for name in ("hf", "server")] for ids in prompts]
        equal = sum(left == right for left, right in pairs)
        speeds: dict[str, list[float]] = {name: [] for name in systems}
        for repeat in range(args.repeats):
            with step(f"{dtype}: repeat {repeat + 1} of {args.repeats}, {len(prompts)} prompts"):
                for prompt, (name, generate) in itertools.product(prompts, systems.items()):
                    flush_cache(system.url)
                    speeds[name].append(timed(generate, prompt, args.max_new_tokens))
    return summarize(dtype, args.max_new_tokens, speeds, f"{equal}/{len(prompts)}")


def summarize(dtype: str, new_tokens: int, speeds: dict[str, list[float]], equal: str) -> Result:
    """Medians of the speeds (tokens/s) and their ratios to Hugging Face's."""
    median = {name: statistics.median(values) for name, values in speeds.items()}
    return Result(
        dtype=dtype,
        threads=torch.get_num_threads(),
        new_tokens=new_tokens,
        samples=len(speeds["hf"]),
        hugging_face_tokens_per_s=round(median["hf"], 2),
        server_tokens_per_s=round(median["server"], 2),
        ratio=round(median["server"] / median["hf"], 3),
        streamed_tokens_per_s=round(median["streamed"], 2),
        streamed_ratio=round(median["streamed"] / median["hf"], 3),
        prompts_with_equal_tokens=equal,
    )


def main(argv: Sequence[str]) -> int:
    """Command line entry."""
    args = parse_args(argv)
    if args.model is None:
        args.model = str(prepare_model())
    prompts = encode(args.model)
    provenance: dict[str, Any] = {
        **collect_provenance(),
        "settings": {key: portable(value) for key, value in vars(args).items()},
    }
    output = args.output or new_result("cpu-plain", ".jsonl")
    output.parent.mkdir(parents=True, exist_ok=True)
    for dtype in args.dtype:
        line = json.dumps({"bench": "cpu_plain", **asdict(measure(args, dtype, prompts)), "provenance": provenance})
        with output.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
        print(line, flush=True)
    return 0
