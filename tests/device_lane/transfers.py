"""Mooncake's transfer engine for servers of one machine: memory is copied from one process into another.

SGLang's own code around it, who sends what and where to, is as it is on a cluster. Only the copy is another.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MAX_PARTS = 512
"""Copies in one call; the kernel takes twice as many."""
_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)


class _Part(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class TransferEngine:
    """What SGLang calls of Mooncake's (distributed/device_communicators/mooncake_transfer_engine.py)."""

    def initialize(self, host: str, metadata: str, protocol: str, device: str) -> int:
        """Let other processes write here where a kernel asks for that."""
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY)
        return 0

    def get_rpc_port(self) -> int:
        """What others find this process by."""
        return os.getpid()

    def batch_register_memory(self, starts: Sequence[int], sizes: Sequence[int]) -> int:
        """All memory can be written."""
        return 0

    def batch_unregister_memory(self, starts: Sequence[int]) -> int:
        """Nothing was kept."""
        return 0

    def send_probe(self, session: str) -> int:
        """0 while the process is there."""
        return 0 if os.path.exists(f"/proc/{_pid(session)}") else -1

    def batch_transfer_sync_write(
        self, session: str, starts: Sequence[int], places: Sequence[int], sizes: Sequence[int]
    ) -> int:
        """Copy this process's memory to those places of the other one; -1 if a part was not copied whole."""
        libc = ctypes.CDLL(None, use_errno=True)
        for first in range(0, len(sizes), MAX_PARTS):
            chosen = slice(first, first + MAX_PARTS)
            lengths = [int(size) for size in sizes[chosen]]
            here = (_Part * len(lengths))(*map(_Part, map(int, starts[chosen]), lengths))
            there = (_Part * len(lengths))(*map(_Part, map(int, places[chosen]), lengths))
            copied = libc.process_vm_writev(
                _pid(session),
                here,
                ctypes.c_ulong(len(lengths)),
                there,
                ctypes.c_ulong(len(lengths)),
                ctypes.c_ulong(0),
            )
            if copied != sum(lengths):
                return -1
        return 0


def _pid(session: str) -> int:
    return int(session.rsplit(":", 1)[1])


def install_transfers() -> None:
    """In the place of Mooncake's package. Twice is as once."""
    for name, contents in (("mooncake", {"__path__": []}), ("mooncake.engine", {"TransferEngine": TransferEngine})):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None, is_package=name == "mooncake")
        vars(module).update(contents)
        sys.modules.setdefault(name, module)
