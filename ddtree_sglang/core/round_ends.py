"""Where the accepted path of each request has to stop, whatever its tree holds beyond.

Plain decoding looks at its one new token and ends the request there. A path of several tokens ends at the first of them
that ends the request, so what is committed, counted and cached is plain decoding's. The token that ends a request is
the path's last: no node that carries it is entered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NO_LIMIT = 2**62
"""As a length or a number of nodes: none is reached."""


@dataclass(frozen=True, slots=True)
class RoundEnds:
    """What stops the walks of B requests; E is the most end tokens that one of them has."""

    end_ids: torch.Tensor  # [B, E] int64, tokens that end the request, filled up with -1
    limit_lens: torch.Tensor  # [B] int64, committed length at which the request has all tokens that it may have
    node_limits: torch.Tensor  # [B] int64, nodes of the tree that may be entered, root included; at least 1

    @classmethod
    def none(cls, batch_size: int, device: torch.device) -> RoundEnds:
        """Requests that nothing ends."""
        return cls(
            end_ids=torch.full((batch_size, 1), -1, dtype=torch.int64, device=device),
            limit_lens=torch.full((batch_size,), NO_LIMIT, dtype=torch.int64, device=device),
            node_limits=torch.full((batch_size,), NO_LIMIT, dtype=torch.int64, device=device),
        )


def check_ends(ends: RoundEnds, batch_size: int, device: torch.device) -> None:
    """Check shapes, dtypes and devices; never values.

    Raises:
        ValueError: one of the three differs from what `RoundEnds` says of it.
    """
    for name in ("end_ids", "limit_lens", "node_limits"):
        value = getattr(ends, name)
        wanted = (batch_size, *value.shape[1:2]) if name == "end_ids" else (batch_size,)
        if tuple(value.shape) != wanted or value.dtype != torch.int64 or value.device != device:
            raise ValueError(
                f"{name} must have {batch_size} requests first, be torch.int64 and on {device}, got "
                f"{tuple(value.shape)} {value.dtype} on {value.device}; make it by `RoundEnds`' fields"
            )
