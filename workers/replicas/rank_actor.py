"""Ray actors for SGLang's `RayEngine` that load plugins, run on any platform and answer while they decode.

SGLang 0.5.23's own `SchedulerActor` builds a scheduler without loading plugins (so DDTREE is unknown in it), calls
`torch.cuda.set_device` whatever the platform, asks for a GPU whatever its bundle holds, passes no environment on, and
queues every other call behind its event loop. `install_rank_actors` puts a subclass in its place, in the process that
starts the engine. Ray is imported only in functions that need it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddtree_sglang.contract.patch import install
from ddtree_sglang.contract.start import require
from ddtree_sglang.contract.worker_patches import RANK_PATCHES
from ddtree_sglang.contract.workers import WORKERS

FORWARDED_PREFIXES = ("DDTREE_", "SGLANG_", "OMP_", "GOMP_", "KMP_", "NCCL_", "GLOO_", "TORCH_", "TRITON_", "HF_")
"""Variables that a rank gets from its launcher; all others are those of its Ray node."""
OWNER_PID = "DDTREE_OWNER_PID"
"""Variable with the process id of a rank's launcher, so that a rank's environment names its replica."""
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


@dataclass(frozen=True)
class RankPlacement:
    """What each rank books of its placement-group bundle. Where the bundle has GPUs, it books one of them as well.

    Attributes:
        cpus_per_rank: CPUs, or a fraction of one; SGLang's own actors book none.
    """

    cpus_per_rank: float = 0.0


class RankActorClass:
    """Takes the place of `RayEngine`'s actor class: `options(...)` first looks at what the bundle offers."""

    def __init__(self, actor_class: Any, placement: RankPlacement) -> None:
        self.actor_class = actor_class
        self.placement = placement

    def options(self, **options: Any) -> Any:
        """Options as `RayEngine` chose them, corrected for the bundle; the result has Ray's `remote`."""
        strategy = options["scheduling_strategy"]
        bundle = strategy.placement_group.bundle_specs[strategy.placement_group_bundle_index]
        return self.actor_class.options(**rank_options(options, bundle, self.placement, os.environ))


def rank_options(
    options: Mapping[str, Any],
    bundle: Mapping[str, float],
    placement: RankPlacement,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Actor options of one rank: a GPU only if its bundle holds GPUs, its share of CPUs, and its environment."""
    return {
        **options,
        "num_gpus": options["num_gpus"] if bundle.get("GPU") else 0,
        "num_cpus": placement.cpus_per_rank,
        "runtime_env": {"env_vars": rank_environment(environment)},
    }


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a rank gets from its launcher, without those whose names contain a word of `SECRET_WORDS`.

    Ray narrows `CUDA_VISIBLE_DEVICES` to one GPU per actor, and SGLang then selects that GPU by its index on the node
    (ray/scheduler_actor.py); with several GPUs both hold only if Ray leaves the variable alone.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name.startswith(FORWARDED_PREFIXES) and not any(word in name for word in SECRET_WORDS)
    }
    # In an actor that books no CPU, Ray sets OpenMP to one thread. By default a rank may use every core of its node.
    kept.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    return kept | {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1", OWNER_PID: str(os.getpid())}


def install_rank_actors(placement: RankPlacement | None = None) -> None:
    """Make this process's `RayEngine` start our actors. A second call only changes the placement, if one is given.

    Raises:
        ImportError: Ray is not installed.
        EngineContractError: SGLang or Ray is not what the workers were written against.
    """
    import sglang.srt.ray.engine as ray_engine
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if not isinstance(ray_engine.SchedulerActor, RankActorClass):
        require(WORKERS)
        install(RANK_PATCHES, HookRegistry, HookType)
        HookRegistry.apply_hooks()
    actors = ray_engine.SchedulerActor
    actors.placement = placement or actors.placement


def rank_actors(stock: Any) -> RankActorClass:
    """What stands in place of `RayEngine`'s actor class, with the default placement."""
    return RankActorClass(_rank_actor_class(stock), RankPlacement())


def _rank_actor_class(stock: Any) -> Any:
    """Our subclass of SGLang's actor, as a Ray actor class with a thread that answers `ping` beside the event loop."""
    import ray

    class RankActor(stock.__ray_actor_class__):  # type: ignore[misc, name-defined]
        """One tensor-parallel rank: its shard of the target and its drafter, inside SGLang's scheduler."""

        def __init__(self, **arguments: Any) -> None:
            from sglang.srt.plugins import load_plugins

            from workers.cluster.loopback import bind_rendezvous_to_loopback

            # Before everything else: the constructor publishes arguments that name DDTREE and the platform.
            load_plugins()
            bind_rendezvous_to_loopback()
            super().__init__(**arguments)

        def run_event_loop(self) -> None:
            """Stock's event loop, without its `torch.cuda.set_device` where the device is not CUDA."""
            from sglang.srt.runtime_context import get_device

            if str(get_device().device).startswith("cuda"):
                super().run_event_loop()
            else:
                self.scheduler.run_event_loop()

        @ray.method(concurrency_group="control")
        def ping(self) -> dict[str, Any]:
            """Process id, node id, rank and number of forwards; answers while the event loop runs."""
            return {
                "pid": os.getpid(),
                "node_id": ray.get_runtime_context().get_node_id(),
                "tp_rank": self._tp_rank,
                "num_forwards": int(self.scheduler.forward_ct),
            }

    return ray.remote(concurrency_groups={"control": 1})(RankActor)
