"""`WorkerConfig`: one model on Ray, as a user writes it: model, drafter, ranks, replicas, limits and time limits.

It is the `args` of a Serve config file, what `python -m workers` builds from flags, and what a job takes. Unknown keys
are errors, so that a misspelt knob is not silently dropped. Nothing here imports Ray or SGLang.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ddtree_sglang.config import DDTreeConfig

Algorithm = Literal["DDTREE", "DFLASH", "NONE"]

# Engine arguments that `WorkerConfig` sets from its own fields; `engine_args` may not name them.
OWN_ENGINE_ARGS = frozenset(
    {
        "model_path",
        "served_model_name",
        "tp_size",
        "pp_size",
        "dp_size",
        "nnodes",
        "device",
        "dtype",
        "max_running_requests",
        "speculative_algorithm",
        "speculative_draft_model_path",
        "use_ray",
        "host",
        "port",
        "api_key",
    }
)
NOT_ON_RAY = frozenset({"attn_dp_size", "enable_dp_attention", "disaggregation_mode"})
"""Engine arguments that need more of a launcher than actors of one group of ranks, which is all that was run."""


class WorkerConfig(BaseModel):
    """Everything about one served model.

    Raises:
        pydantic.ValidationError: an unknown key, a value outside its range, or a contradiction, each by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="Folder or hub name of the target; a folder must exist on every node.")
    draft: str | None = Field(None, description="Folder or hub name of the DFlash drafter.")
    algorithm: Algorithm = "DDTREE"
    served_model_name: str | None = Field(None, description="What clients call the model; default: `model`.")
    ddtree: dict[str, Any] = Field(
        default_factory=dict, description="Fields of DDTreeConfig: budget, top_k, policy ..."
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="Further ServerArgs of SGLang, by field name."
    )

    tp_size: PositiveInt = Field(1, description="Tensor-parallel ranks of one replica, each an actor.")
    nnodes: PositiveInt = Field(1, description="Nodes that the ranks of one replica are spread over.")
    device: Literal["auto", "cuda", "cpu"] = "auto"
    dtype: str = "auto"
    cpus_per_rank: float = Field(1.0, ge=0, description="CPUs that Ray books for each rank; fractions are allowed.")
    cpus_per_replica: float = Field(
        0.5, ge=0, description="CPUs for a replica's own process: tokenizer and detokenizer."
    )
    placement_strategy: Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"] | None = Field(
        None, description="Default: STRICT_PACK on one node, STRICT_SPREAD over several."
    )

    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    num_ingresses: PositiveInt = Field(
        1, description="HTTP processes; each knows only the prefixes of requests that it sent itself."
    )
    max_running_requests: PositiveInt = Field(16, description="Requests that one replica decodes at once.")
    max_queued_requests: NonNegativeInt = Field(64, description="Requests that may wait at an ingress; more get a 429.")
    target_ongoing_requests: PositiveFloat | None = Field(
        None, description="Ongoing requests per replica that autoscaling aims at; default 0.6 of max_running_requests."
    )
    prefix_imbalance: NonNegativeInt = Field(
        8,
        description="A request goes to the replica with its longest prefix, unless that one has so many more requests "
        "than the emptiest.",
    )

    startup_timeout_s: PositiveFloat = 900.0
    health_check_period_s: PositiveFloat = 5.0
    health_check_timeout_s: PositiveFloat = Field(
        30.0, description="A replica that cannot make a token within this time ends itself."
    )
    drain_timeout_s: PositiveFloat = Field(
        120.0, description="Time that a replica has at shutdown to finish its answers."
    )
    restart_budget: PositiveInt = Field(
        10, description="Replacements of replicas that are allowed within restart_window_s."
    )
    restart_window_s: PositiveFloat = 600.0

    migration_limit: NonNegativeInt = Field(3, description="Replicas that one answer may lose and still go on.")
    first_token_timeout_s: PositiveFloat = Field(
        120.0,
        description="After this time without a first token (queue and prefill), the answer goes on at another replica.",
    )
    stall_timeout_s: PositiveFloat = Field(
        30.0, description="After this time without a next token, the answer goes on at another replica."
    )
    request_deadline_s: PositiveFloat = Field(600.0, description="Time for a whole answer, retries included.")

    api_key_env: str | None = Field(
        None,
        min_length=1,
        description="Environment variable of the ingress that must hold the API key. Default: DDTREE_API_KEY, and if "
        "that is not set, no key is asked for.",
    )

    @model_validator(mode="after")
    def _check(self) -> WorkerConfig:
        if self.algorithm != "NONE" and self.draft is None:
            raise ValueError(f"algorithm {self.algorithm} needs a drafter, got none; set draft, or algorithm NONE.")
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas must be at least min_replicas, got {self.max_replicas} < {self.min_replicas}; raise it."
            )
        if self.tp_size % self.nnodes:
            raise ValueError(f"nnodes must divide tp_size, got {self.nnodes} and {self.tp_size}; change one of them.")
        taken = sorted(OWN_ENGINE_ARGS & set(self.engine_args))
        if taken:
            raise ValueError(f"engine_args must not name {taken}: WorkerConfig has fields for them; set those.")
        if missing := sorted(NOT_ON_RAY & set(self.engine_args)):
            raise ValueError(
                f"engine_args must not name {missing}, which were not run on Ray; start servers without it."
            )
        if self.ddtree and self.algorithm != "DDTREE":
            raise ValueError(f"ddtree={self.ddtree} needs algorithm DDTREE, got {self.algorithm}; remove it.")
        DDTreeConfig.from_mapping(self.ddtree, "ddtree")
        return self

    @property
    def name(self) -> str:
        """What clients put into `model`."""
        return self.served_model_name or self.model

    @property
    def ongoing_per_replica(self) -> float:
        """Ongoing requests per replica that autoscaling aims at."""
        return self.target_ongoing_requests or 0.6 * self.max_running_requests

    def server_args(self) -> dict[str, Any]:
        """Fields of SGLang's ServerArgs for one replica."""
        speculative: dict[str, Any] = {}
        if self.algorithm != "NONE":
            speculative = {"speculative_algorithm": self.algorithm, "speculative_draft_model_path": self.draft}
        return {
            **self.engine_args,
            **speculative,
            "model_path": self.model,
            "served_model_name": self.name,
            "tp_size": self.tp_size,
            "nnodes": self.nnodes,
            "dtype": self.dtype,
            "max_running_requests": self.max_running_requests,
            **({} if self.device == "auto" else {"device": self.device}),
        }

    def ddtree_json(self) -> str:
        """Value of the variable `DDTREE_CONFIG` for every process of a replica."""
        return json.dumps(self.ddtree)


def load_worker_config(path: Path) -> WorkerConfig:
    """Read a JSON or YAML file.

    Raises:
        ValueError: the file is missing or malformed, or `WorkerConfig` refuses a value; the message names the file.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds {type(values).__name__}, a mapping is needed")
        return WorkerConfig(**values)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the worker configuration {path} cannot be used: {error}") from error
