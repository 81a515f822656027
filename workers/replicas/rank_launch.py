"""How `RayEngine` starts its ranks: bundles that this platform has, and no waiting that nothing asks for."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

# For CPUs that nobody else books; starting a node takes longer, and then another attempt does no harm.
PLACEMENT_TIMEOUT_S = 60.0


def launch_on_this_platform(original: Callable[..., Any], cls: type, *args: Any, **kwargs: Any) -> Any:
    """AROUND hook on `RayEngine._launch_scheduler_processes`: without a GPU, ranks get bundles of CPUs.

    Stock makes bundles of GPUs when it has no placement group, and on such a cluster would wait for them for ever.
    """
    import ray
    from sglang.srt.runtime_context import get_parallel

    from ddtree_sglang.cpu_platform import is_active

    given = kwargs.get("placement_group") or ray.util.get_current_placement_group()
    if given is not None or not is_active():
        return start_launching(original, cls, *args, **kwargs)
    parallel = get_parallel()
    ranks = parallel.num_dp_ranks * parallel.tp_size * parallel.pp_size
    share = min(1.0, ray.cluster_resources().get("CPU", 1.0) / ranks)
    group = ray.util.placement_group([{"CPU": share}] * ranks, strategy="STRICT_PACK")
    if not group.wait(timeout_seconds=PLACEMENT_TIMEOUT_S):
        ray.util.remove_placement_group(group)
        raise RuntimeError(
            f"{ranks} rank(s) need {ranks * share:g} free CPUs on one node of the cluster, which were not to be had "
            f"within {PLACEMENT_TIMEOUT_S:.0f} s; end what books them (`ray status` tells), or add a node."
        )
    return start_launching(original, cls, *args, **{**kwargs, "placement_group": group})


def start_launching(launch: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, None]:
    """Launch in a thread; the result's `wait_for_ready` waits for it, raises what it raised, and fills the result.

    That is what it is for: with processes instead of actors the engine goes on to its detokenizer and tokenizer while
    the ranks load. `RayEngine` waits first, and each of the three spends half a minute of a core on imports alone.
    """
    from sglang.srt.ray.engine import RaySchedulerInitResult

    launched: Future[Any] = Future()

    def run() -> None:
        try:
            launched.set_result(launch(*args, **kwargs)[0])
        except BaseException as error:  # noqa: BLE001  (raised again by whoever waits)
            launched.set_exception(error)

    # A daemon: a launch that hangs does not keep a process that gave up.
    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="rank-launch", daemon=True).start()
    early = RaySchedulerInitResult(scheduler_infos=[])

    def wait_for_ready() -> None:
        result = launched.result()
        result.wait_for_ready()
        early.scheduler_infos = result.scheduler_infos
        early.scheduler_actors = result.scheduler_actors
        early.block_until_scheduler_exits = result.block_until_scheduler_exits
        early.all_child_pids += result.all_child_pids

    early.wait_for_ready = wait_for_ready
    return early, None


def check_bundles(original: Callable[..., None], group: Any, world_size: int) -> None:
    """AROUND hook on `_validate_custom_placement_group`: stock wants a GPU in each bundle, a CPU rank has none."""
    from ddtree_sglang.cpu_platform import is_active

    if not is_active():
        original(group, world_size)
    elif len(group.bundle_specs) < world_size:
        raise ValueError(
            f"the placement group needs a bundle for each of {world_size} ranks, got {len(group.bundle_specs)}; "
            "add bundles or lower --tp-size."
        )
