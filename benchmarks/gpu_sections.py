"""The sections of `python -m benchmarks gpu_proof`, in the order of what they decide: what each runs and what it needs.

A step is the unit of a verdict. It either compares recorded answers of servers (`cases`, `judge`) or runs a command
(`run`). The servers of a section are recorded together, several at once; its steps are judged one by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import gpu_judge as judge
from benchmarks.gpu_cases import BACKENDS, BUDGETS, CASES, Pair
from benchmarks.gpu_judge import Finding
from benchmarks.gpu_speed import pair_speed
from benchmarks.harness.gpu_lab import Lab

Records = Mapping[str, Mapping[str, Any]]
Judge = Callable[[Lab, Records], Finding]
FEWEST_TINY = judge.LEAST_TINY_ACCEPTANCE
TESTS = ("tests/kernels", "tests/core/test_cuda_graph.py", "tests/engine/debug/test_sync_check.py")


@dataclass(frozen=True)
class Step:
    """One verdict. `needs`: what is missing makes it a SKIP (gpu_proof, `why_skipped`). `cases`: what `judge` compares.

    With `is_across` it compares the backends that are there, two at least, and leaves out cases on others.
    `limit_s`: seconds that a `run` takes on a fast GPU, an estimate; with less left it waits for the next call.
    """

    name: str
    needs: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    judge: Judge | None = None
    run: Callable[[Lab], Finding] | None = None
    limit_s: int = 30
    pair: Pair = "tiny"
    is_across: bool = False


@dataclass(frozen=True)
class Section:
    """Steps that decide one thing, `what`; `limit_s` is an estimate for all of them on a fast GPU."""

    name: str
    what: str
    limit_s: int
    steps: tuple[Step, ...]


def _command(lab: Lab, *arguments: str, **environment: str) -> Finding:
    status = lab.python(*arguments, **environment)
    return Finding(not status, f"status {status}" if status else "")


def _fact(lab: Lab, name: str) -> Finding:
    return _command(lab, "-m", "benchmarks", "gpu_facts", name, **_interpreted(lab))


def _machine(lab: Lab) -> Finding:
    machine = lab.setting.machine
    lab.say(json.dumps(lab.setting.provenance, indent=1))
    return Finding(True, f"{machine.gpus} x {machine.name}, {machine.memory_gib:.0f} GiB")


def _interpreted(lab: Lab) -> dict[str, str]:
    """What runs Triton's kernels where no GPU is."""
    return {} if lab.setting.machine.kind == "cuda" else {"TRITON_INTERPRET": "1"}


def _kernel_tests(lab: Lab) -> Finding:
    ieee = {"TRITON_F32_DEFAULT": "ieee"}
    return _command(lab, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, **ieee, **_interpreted(lab))


def _kernel_rows(lab: Lab, check_only: bool) -> Finding:
    flags = ["--check-only"] if check_only else ["--output", str(lab.out / "kernel-times.jsonl")]
    if lab.setting.machine.kind == "cpu":
        flags.append("--small")
    return _command(lab, "-m", "benchmarks", "gpu_kernels", *flags, **_interpreted(lab))


def _served(lab: Lab, records: Records, *names: str) -> list[Finding]:
    """That each server answered and was what its case says; later findings need not repeat it."""
    machine = lab.setting.machine
    return [
        judge.all_of(judge.answered(records[name]), judge.served_as_asked(records[name], CASES[name], machine))
        for name in names
    ]


def _judged(lab: Lab, records: Records, names: Sequence[str], *checks: Callable[[], Finding]) -> Finding:
    """The checks, once every server answered as what it was asked to be."""
    served = judge.all_of(*_served(lab, records, *names))
    if not all(judge.answered(records[name]).passed for name in names):
        return served
    return judge.all_of(served, *(check() for check in checks))


def _tokens(lab: Lab, records: Records, plain: str, *names: str, least: float = FEWEST_TINY) -> Finding:
    """Tokens are plain decoding's and the drafter is accepted, for each of `names`."""
    checks: list[Callable[[], Finding]] = []
    for name in names:
        checks.append(partial(judge.same_tokens, records[name], records[plain], judge.tolerance_of(CASES[name])))
        checks.append(partial(judge.accepts, records[name], least))
    return _judged(lab, records, (plain, *names), *checks)


def _acceptance(lab: Lab, records: Records) -> Finding:
    """Every backend that answered takes as many rounds for the same answers."""
    found = [record for record in records.values() if judge.answered(record).passed]
    return judge.same_acceptance(found)


def _limit(lab: Lab, records: Records, name: str) -> Finding:
    tie = judge.tolerance_of(CASES[name])
    check = partial(judge.ends_at_the_limit, records[name], records["limit/plain"], tie)
    return _judged(lab, records, ("limit/plain", name), check)


def _deterministic(lab: Lab, records: Records, name: str) -> Finding:
    return judge.all_of(
        _tokens(lab, records, "plain/triton", name),
        _judged(lab, records, (name,), partial(judge.same_at_any_batch, records[name])),
    )


def _sampled(lab: Lab, records: Records, name: str) -> Finding:
    plain, tie = records["sampled/plain"], judge.tolerance_of(CASES[name])
    law = partial(judge.same_law, records[name], plain)
    beside = partial(judge.greedy_beside_sampled, records[name], plain, tie)
    return _judged(lab, records, ("sampled/plain", name), law, beside)


def _features(lab: Lab, records: Records, name: str) -> Finding:
    return _tokens(lab, records, "features/plain", name, least=1.0)


def _memory(lab: Lab, records: Records) -> Finding:
    record = records["memory"]
    told = Finding(True, " | ".join(line[-160:] for line in record["memory_lines"][-2:]))
    return _judged(lab, records, ("memory",), lambda: told)


def _token_step(
    name: str, plain: str, *cases: str, needs: tuple[str, ...] = (), pair: Pair = "tiny", least: float = FEWEST_TINY
) -> Step:
    """Tokens of `cases` against those of the case `plain`."""

    def check(lab: Lab, records: Records) -> Finding:
        return _tokens(lab, records, plain, *cases, least=least)

    return Step(name, needs, (plain, *cases), check, pair=pair)


def _needs(backend: str) -> tuple[str, ...]:
    return () if backend == "triton" else (backend,)


def _works() -> tuple[Step, ...]:
    facts: dict[str, tuple[str, ...]] = {
        "sglang": (),
        "tree-kernel": (),
        "sgl-kernel": ("cuda",),
        "flashinfer-kernel": ("cuda", "flashinfer"),
        "fa3-kernel": ("cuda", "fa3"),
    }
    found = [Step(f"works/{name}", needs, run=partial(_fact, name=name), limit_s=15) for name, needs in facts.items()]
    served = [_token_step(f"works/{b}", "works/plain", f"works/{b}", needs=_needs(b)) for b in BACKENDS]
    return (Step("works/machine", run=_machine, limit_s=1), *found, *served)


def _lossless(name: str, prefix: str, pair: Pair, *needs: str) -> tuple[Step, ...]:
    """Tokens on each backend, then acceptance across them for each budget."""
    least = FEWEST_TINY if pair == "tiny" else 1.0
    steps = []
    for backend in BACKENDS:
        cases = [f"{prefix}ddtree-{budget}/{backend}" for budget in BUDGETS]
        of_step = (*needs, *_needs(backend))
        steps.append(
            _token_step(f"{name}/{backend}", f"{prefix}plain/triton", *cases, needs=of_step, pair=pair, least=least)
        )
    for budget in BUDGETS:
        across = tuple(f"{prefix}ddtree-{budget}/{backend}" for backend in BACKENDS)
        steps.append(Step(f"{name}/acceptance-{budget}", needs, across, _acceptance, pair=pair, is_across=True))
    return tuple(steps)


def _each(section: str, check: Callable[..., Finding], plain: str, *backends: str, needs: str = "") -> tuple[Step, ...]:
    """A step for each backend: its case `section/backend`, judged beside the case `plain`."""
    also = (needs,) if needs else ()
    return tuple(
        Step(f"{section}/{b}", (*also, *_needs(b)), (plain, f"{section}/{b}"), partial(check, name=f"{section}/{b}"))
        for b in backends
    )


def _with_tokens(section: str, *backends: str, needs: str = "", least: float = FEWEST_TINY) -> tuple[Step, ...]:
    also = (needs,) if needs else ()
    return tuple(
        _token_step(f"{section}/{b}", "plain/triton", f"{section}/{b}", needs=(*also, *_needs(b)), least=least)
        for b in backends
    )


def _float32() -> Step:
    trees = [f"float32/ddtree-{budget}/triton" for budget in BUDGETS]
    return _token_step("float32/triton", "float32/plain/triton", *trees)


def _recurrent() -> tuple[Step, ...]:
    """Only a GPU has the kernels that verify a tree there."""
    trees = {b: f"recurrent/ddtree-16/{b}" for b in ("triton", "fa3")}
    return tuple(
        _token_step(f"recurrent/{b}", "recurrent/plain/triton", case, needs=("cuda", *_needs(b)), pair="recurrent")
        for b, case in trees.items()
    )


def _speed() -> tuple[Step, ...]:
    chosen: tuple[tuple[Pair, tuple[str, ...]], ...] = (("real", ("real",)), ("shape", ()))
    return tuple(
        Step(f"speed/{p}-{n}", needs, run=partial(pair_speed, pair=p, budget=n), limit_s=350, pair=p)
        for p, needs in chosen
        for n in BUDGETS
    )


_KERNELS = (
    Step("kernels/rows", run=partial(_kernel_rows, check_only=True), limit_s=40),
    Step("kernels/tests", ("pytest",), run=_kernel_tests, limit_s=190),
)
_TIMES = (Step("kernel-times/rows", run=partial(_kernel_rows, check_only=False), limit_s=60),)
_TP = (_token_step("tp/triton", "tp/plain", "tp/triton", needs=("two gpus",)),)

SECTIONS = (
    Section("works", "what works at all: packages, kernels, a tree on each attention backend", 180, _works()),
    Section("kernels", "every kernel against its oracle, random shapes", 210, _KERNELS),
    Section(
        "lossless",
        "tokens are plain decoding's with 17 and 65 nodes, acceptance is the same on every backend",
        240,
        _lossless("lossless", "", "tiny"),
    ),
    Section(
        "limit",
        "requests that end at the context limit harm nobody beside them",
        90,
        _each("limit", _limit, "limit/plain", *BACKENDS),
    ),
    Section(
        "recurrent",
        "a target with gated delta nets: tokens, also behind a text that the prefix cache has",
        60,
        _recurrent(),
    ),
    Section(
        "deterministic",
        "deterministic inference: tokens, and the same ones at any batch size",
        60,
        _each("deterministic", _deterministic, "plain/triton", "triton", "fa3", needs="cuda"),
    ),
    Section(
        "prefill-graphs", "prefill in CUDA graphs", 60, _with_tokens("prefill-graphs", "triton", "fa3", needs="cuda")
    ),
    Section("eager", "without CUDA graphs the same tokens", 45, _with_tokens("eager", "triton", needs="cuda")),
    Section(
        "policy",
        "policy load: other tree widths, rounds without a draft",
        60,
        _with_tokens("policy", "triton", "flashinfer", least=1.0),
    ),
    Section(
        "adaptive",
        "policy adaptive: widths by what rounds cost, measured without waiting for the device",
        75,
        _with_tokens("adaptive", "triton", "fa3", least=1.0),
    ),
    Section(
        "sampled",
        "sampled answers follow the target's law, greedy ones beside them are plain decoding's",
        90,
        _each("sampled", _sampled, "sampled/plain", *BACKENDS),
    ),
    Section(
        "features",
        "penalties, biases, stops and grammars: tokens are plain decoding's",
        90,
        _each("features", _features, "features/plain", *BACKENDS),
    ),
    Section("tp", "two ranks build the same trees", 60, _TP),
    Section(
        "no-sync",
        "a decode round never waits for the device",
        45,
        _with_tokens("no-sync", "triton", "fa3", needs="cuda"),
    ),
    Section("float32", "in float32 tokens are plain decoding's to 1e-4", 150, (_float32(),)),
    Section(
        "real",
        "the carried pair: tokens and acceptance on each backend",
        400,
        _lossless("real", "real/", "real", "real"),
    ),
    Section("kernel-times", "each kernel's time at batch 1, 8, 32, with 17 and 65 nodes", 60, _TIMES),
    Section("speed", "plain, stock chain and DDTREE in turns: ratios with their spread", 1400, _speed()),
    Section(
        "memory",
        "65 nodes, 32 requests at once, half of them sampled, SGLang's own memory fraction",
        120,
        (Step("memory/shape", (), ("memory",), _memory, pair="shape"),),
    ),
)
"""The most decisive first."""
