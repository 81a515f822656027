"""SGLang's parallel state and configuration of one process, in which a test can build its models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """As a worker of one rank has them, on a CPU; `folder` is empty and takes the rendezvous."""
    from sglang.srt.distributed import parallel_state
    from sglang.srt.runtime_context import get_context

    override = get_context().override_server_args(device="cpu")
    override.install()
    parallel_state.init_distributed_environment(
        world_size=1, rank=0, local_rank=0, backend="gloo", distributed_init_method=f"file://{folder}/file"
    )
    parallel_state.initialize_model_parallel(backend="gloo")
    yield
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()
    override.restore()
