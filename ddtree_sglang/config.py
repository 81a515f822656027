"""`DDTreeConfig`: the tree-only knobs, validated once and frozen.

SGLang's `ServerArgs` is sealed, so what it has no field for travels to the scheduler processes (and to Ray
actors) in the environment variable `DDTREE_CONFIG`: the path of a JSON file, or the JSON object itself. The
command-line flags (`engine/cli_flags.py`) and the workers' application (`workers/app.py`) write that variable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ddtree_sglang.exceptions import DDTreeConfigError

CONFIG_ENV = "DDTREE_CONFIG"
REQUESTS_BY_DEFAULT_ENV = "DDTREE_REQUESTS_BY_DEFAULT"
"""Set to 1 for a replica's processes where `max_running_requests` is the workers' default, so that fewer may run."""

DEFAULT_BUDGET = 16
MAX_BUDGET = 255
"""N = budget + 1 stays within 256 nodes, the size that the Triton builder and SGLang's tree kernels are sized for."""

MAX_VERIFY_TOKENS = 2**16
DEFAULT_VERIFY_TOKENS = 16
"""Of policy "load". From the batch-1 rows of benchmarks/results/decode-20261122T041831Z.md, two CPU cores: 17 tokens in
one forward still paid (on two of three prompt sets), 33 did not. Untested elsewhere: measure there, and give it."""

DEFAULT_MEASURE_SECONDS, MAX_MEASURE_SECONDS = 15, 3600
"""Of policy "adaptive", before a server's first client: enough for 1, 2 and most of 4 requests at once on two busy CPU
cores."""

DEFAULT_TRACE_EVERY = 1
DEFAULT_TRACE_MIB = 1024
MAX_TRACE_EVERY, MAX_TRACE_MIB = 10**6, 2**20

Policy = Literal["fixed", "load", "adaptive"]


@dataclass(frozen=True, slots=True)
class DDTreeConfig:
    """What a DDTREE server needs to know beyond SGLang's own arguments.

    Attributes:
        budget: nodes besides the root (the paper's B); the verify forward is `budget + 1` tokens a request.
            None: taken from `--speculative-num-draft-tokens` minus one, else `DEFAULT_BUDGET`.
        top_k: candidates per depth (the paper's K). None: equal to the budget, which loses nothing (Lemma 1).
        policy: how the budget follows the load: "fixed"; "load": less per request the more requests there are;
            "adaptive": in each round what measured costs and acceptance say brings the most tokens per second. None:
            one of the first and the last, by the server (`engine.admission.default_policy`).
        verify_tokens: of policy "load", the most nodes of all requests in one verify forward.
        measure_seconds: of policy "adaptive", seconds at start in which rounds may be measured, 0 for none. None:
            `DEFAULT_MEASURE_SECONDS`.
        trace: file that gets one JSON line per round, or None.
        trace_every: of a trace, every how many rounds one is written. None: `DEFAULT_TRACE_EVERY`, each.
        trace_mib: of a trace, the most MiB that its two files take. None: `DEFAULT_TRACE_MIB`.
        check_ranks: compare the trees of tensor-parallel ranks in every round, for debugging; costs a host read.
        check_sync: on an NVIDIA GPU, make a round that waits for the device an error, for proofs.
        stream_tokens: deliver streams token by token, also where no parser reads them; else a round's tokens together.
        ngrams: trees also know which token followed which in the request's own text; on the CPU platform. None: so
            with policy "adaptive" there, unless `top_k` is set or the drafter scores pairs.
        untested_engine: start on another release of SGLang than the tested one, if every row of the contract holds.

    Raises:
        DDTreeConfigError: for a value outside its range, naming the rule, the value and what to do.
    """

    budget: int | None = None
    top_k: int | None = None
    policy: Policy | None = None
    verify_tokens: int | None = None
    measure_seconds: int | None = None
    trace: str | None = None
    trace_every: int | None = None
    trace_mib: int | None = None
    check_ranks: bool = False
    check_sync: bool = False
    stream_tokens: bool = False
    ngrams: bool | None = None
    untested_engine: bool = False

    def __post_init__(self) -> None:
        _require_int("budget", "--speculative-ddtree-budget", self.budget, 1, MAX_BUDGET)
        _require_int("top_k", "--speculative-ddtree-top-k", self.top_k, 1, MAX_BUDGET)
        for name in ("check_ranks", "check_sync", "stream_tokens", "ngrams", "untested_engine"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "ngrams" and value is None):
                raise DDTreeConfigError(f"{name} must be true or false, got {value!r}; change it.")
        if self.policy not in (None, *get_args(Policy)):
            raise DDTreeConfigError(
                f"policy must be one of {list(get_args(Policy))}, got {self.policy!r}; change "
                "--speculative-ddtree-policy."
            )
        _require_int("verify_tokens", "--speculative-ddtree-verify-tokens", self.verify_tokens, 1, MAX_VERIFY_TOKENS)
        if self.verify_tokens is not None and self.policy != "load":
            raise DDTreeConfigError(
                f"verify_tokens={self.verify_tokens} belongs to policy 'load', got policy {self.policy!r}; add "
                "--speculative-ddtree-policy load."
            )
        _require_int(
            "measure_seconds", "--speculative-ddtree-measure-seconds", self.measure_seconds, 0, MAX_MEASURE_SECONDS
        )
        if self.measure_seconds is not None and self.policy not in (None, "adaptive"):
            raise DDTreeConfigError(
                f"measure_seconds={self.measure_seconds} belongs to policy 'adaptive', got policy {self.policy!r}; add "
                "--speculative-ddtree-policy adaptive."
            )
        self._check_trace()

    def _check_trace(self) -> None:
        _require_int("trace_every", "--speculative-ddtree-trace-every", self.trace_every, 1, MAX_TRACE_EVERY)
        _require_int("trace_mib", "--speculative-ddtree-trace-mib", self.trace_mib, 1, MAX_TRACE_MIB)
        if self.trace is None:
            given = {"trace_every": self.trace_every, "trace_mib": self.trace_mib}
            lonely = [f"{name}={value}" for name, value in given.items() if value is not None]
            if lonely:
                raise DDTreeConfigError(
                    f"{' and '.join(lonely)} needs a trace, got none; add --speculative-ddtree-trace."
                )
            return
        if self.check_sync:
            raise DDTreeConfigError(
                f"check_sync={self.check_sync} needs a round that reads nothing back, trace={self.trace!r} reads in "
                "every round that it writes; give one of them."
            )
        if not Path(self.trace).expanduser().absolute().parent.is_dir():
            raise DDTreeConfigError(
                f"trace must lie in an existing folder, got {self.trace!r}; create the folder or choose another "
                "--speculative-ddtree-trace."
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> DDTreeConfig:
        """Build from parsed JSON; an unknown key is an error, because a silently dropped knob is a wrong server."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise DDTreeConfigError(f"{source} may only set {sorted(known)}, got {unknown}; remove them.")
        return cls(**values)

    @classmethod
    def from_env(cls) -> DDTreeConfig:
        """Read `DDTREE_CONFIG`; the default configuration when it is unset."""
        text = os.environ.get(CONFIG_ENV, "").strip()
        return load_config(text) if text else cls()

    @property
    def measures_at_start(self) -> bool:
        """Whether rounds are measured before the first client."""
        return self.policy == "adaptive" and self.measure_seconds != 0

    def to_json(self) -> str:
        """One JSON object that `from_env` reads back; knobs at their defaults are left out."""
        defaults = asdict(DDTreeConfig())
        return json.dumps({key: value for key, value in asdict(self).items() if value != defaults[key]})

    def candidates_per_depth(self, num_nodes: int) -> int:
        """K for a tree of `num_nodes` nodes, root included: the configured one, else as many as the budget."""
        return self.top_k if self.top_k is not None else num_nodes - 1


def load_config(text_or_path: str) -> DDTreeConfig:
    """Parse inline JSON (a string that starts with a brace) or a JSON file.

    Raises:
        DDTreeConfigError: missing file, malformed JSON, a JSON value that is no object, an unknown key.
    """
    inline = text_or_path.lstrip().startswith("{")
    source = CONFIG_ENV if inline else text_or_path
    try:
        text = text_or_path if inline else Path(text_or_path).expanduser().read_text(encoding="utf-8")
        values = json.loads(text)
    except OSError as error:
        raise DDTreeConfigError(f"the DDTREE configuration file must be readable, got {error}.") from error
    except json.JSONDecodeError as error:
        raise DDTreeConfigError(f"{source} must hold one JSON object, got {error}.") from error
    if not isinstance(values, dict):
        raise DDTreeConfigError(f"{source} must hold one JSON object, got {type(values).__name__}.")
    return DDTreeConfig.from_mapping(values, source)


def _require_int(name: str, flag: str, value: int | None, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DDTreeConfigError(f"{name} must be an integer from {low} to {high}, got {value!r}; change {flag}.")
