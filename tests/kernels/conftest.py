"""Kernels run on a GPU, or in Triton's interpreter when the process was started with TRITON_INTERPRET=1."""

from __future__ import annotations

import os

import pytest
import torch

from tests.fast_interpreter import speed_up


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels of this run work."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":
        # Triton decides when it is imported, which another test of this process may have done already.
        pytest.skip("no GPU, and Triton's interpreter is off: start pytest with TRITON_INTERPRET=1")
    speed_up()
    return torch.device("cpu")
