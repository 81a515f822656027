"""What FlashInfer plans on the host for a run on the device: the lengths, kept where the run finds them.

The planner lays out work from lengths of the host and copies the layout into the wrapper's int workspace; what it
returns is frozen in a captured graph, and the workspace is not. Here the workspace holds the lengths themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tests.device_lane.paged_attention import require_indptr
from tests.device_lane.violations import require

PLANNED = 0x504C414E  # the first word of a workspace that a plan wrote
HEADER = 9


@dataclass(frozen=True)
class Plan:
    """What a plan leaves in the workspace: HEADER words, then the lengths of each request."""

    max_rows: int
    num_qo_heads: int
    num_kv_heads: int
    page_size: int
    for_graphs: bool
    causal: bool
    window_left: int
    q_lens: torch.Tensor  # [B] int32
    kv_lens: torch.Tensor  # [B] int32

    @property
    def frozen(self) -> list[int]:
        """What `plan` returns to the wrapper. A captured run keeps it; the workspace is written again."""
        shape = [self.q_lens.numel(), self.max_rows, self.num_qo_heads, self.num_kv_heads, self.page_size]
        return [*shape, int(self.for_graphs), int(self.causal), self.window_left]

    def write(self, workspace: torch.Tensor) -> list[int]:
        """Leave the plan in the int workspace of a wrapper [bytes] uint8, and return the frozen part."""
        words = torch.cat([torch.tensor([PLANNED, *self.frozen], dtype=torch.int32), self.q_lens, self.kv_lens])
        workspace.view(torch.int32)[: words.numel()] = words
        return self.frozen


def read_plan(workspace: torch.Tensor, plan_info: Sequence[int]) -> Plan:
    """The plan that a run finds.

    Raises:
        LaneViolation: nobody planned, or the run was given the result of a plan of another shape.
    """
    words = workspace.view(torch.int32)
    require(int(words[0]) == PLANNED, "a wrapper is planned before it runs", int(words[0]))
    found = words[1:HEADER].tolist()
    require(list(plan_info) == found, "a run has the shape of the plan in its workspace", (list(plan_info), found))
    batch_size, max_rows, num_qo_heads, num_kv_heads, page_size, for_graphs, causal, window_left = found
    lens = words[HEADER : HEADER + 2 * batch_size].clone()
    return Plan(
        max_rows, num_qo_heads, num_kv_heads, page_size, bool(for_graphs), bool(causal), window_left,
        lens[:batch_size], lens[batch_size:],
    )  # fmt: skip


def plan_prefill(
    float_workspace_buffer: torch.Tensor,
    int_workspace_buffer: torch.Tensor,
    pin_memory_int_workspace_buffer: torch.Tensor,
    qo_indptr_host: torch.Tensor,  # [B + 1] int32
    kv_indptr_host: torch.Tensor,  # [B + 1] int32, in pages
    kv_lens_host: torch.Tensor,  # [B] int32
    max_rows: int,
    batch_size: int,
    num_qo_heads: int,
    num_kv_heads: int,
    page_size: int,
    for_graphs: bool,
    head_dim_qk: int,
    head_dim_vo: int,
    causal: bool,
    window_left: int,
    *split_options: Any,
) -> list[int]:
    """Lay out a prefill from lengths on the host. Not part of a graph.

    Raises:
        LaneViolation: the host's lengths contradict one another.
    """
    starts = require_indptr(qo_indptr_host, batch_size, "the plan's qo_indptr")
    pages = require_indptr(kv_indptr_host, batch_size, "the plan's kv_indptr").diff()
    require(kv_lens_host.shape == (batch_size,), f"kv_lens has {batch_size} entries", tuple(kv_lens_host.shape))
    require(int(starts[-1]) <= max_rows, f"the plan's rows fit the {max_rows} of the graph", int(starts[-1]))
    require(num_qo_heads % num_kv_heads == 0, "query heads are a multiple of KV heads", (num_qo_heads, num_kv_heads))
    # FlashInfer's get_seq_lens calls a request without pages one token long; its planner treats 0 and 1 alike.
    kv_lens = torch.where(pages == 0, 0, kv_lens_host.long().cpu())
    require(
        bool((-(-kv_lens // page_size) == pages).all()),
        "the plan's kv lengths fill the plan's pages",
        (kv_lens.tolist(), pages.tolist()),
    )
    return Plan(
        max_rows, num_qo_heads, num_kv_heads, page_size, for_graphs, causal, window_left,
        starts.diff().int(), kv_lens.int(),
    ).write(int_workspace_buffer)  # fmt: skip


def plan_decode(
    float_workspace_buffer: torch.Tensor,
    int_workspace_buffer: torch.Tensor,
    pin_memory_int_workspace_buffer: torch.Tensor,
    indptr_host: torch.Tensor,  # [B + 1] int32, in pages
    batch_size: int,
    num_qo_heads: int,
    num_kv_heads: int,
    page_size: int,
    for_graphs: bool,
    window_left: int,
    logits_soft_cap: float,
    head_dim_qk: int,
    head_dim_vo: int,
    empty_q_data: torch.Tensor,
    empty_kv_cache: torch.Tensor,
) -> list[int]:
    """Lay out a decode without tensor cores. It knows the pages of a request, not the tokens of its last page.

    Raises:
        LaneViolation: the host's page counts are no prefix sum.
    """
    pages = require_indptr(indptr_host, batch_size, "the plan's indptr").diff().int()
    return Plan(
        batch_size, num_qo_heads, num_kv_heads, page_size, for_graphs, False, window_left,
        torch.ones_like(pages), pages,
    ).write(int_workspace_buffer)  # fmt: skip


IDLE_LEN = 1
"""FlashInfer's fill value for the length of an idle row (layers/attention/flashinfer_backend.py)."""


def require_query_lens(on_device: torch.Tensor, plan: Plan) -> None:
    """Raise LaneViolation when the rows [B] of the requests on the device are not those of the plan."""
    _require_planned("query", on_device.tolist(), plan.q_lens.tolist())


def require_kv_lens(on_device: torch.Tensor, plan: Plan) -> None:
    """Raise LaneViolation when the keys [B] of the requests on the device are not those of the plan.

    SGLang plans the idle rows behind a drafter's batch with one key, where the device has the row's block too. Nobody
    reads what such a row gives.
    """
    found, planned, rows = on_device.tolist(), plan.kv_lens.tolist(), plan.q_lens.tolist()
    last = len(planned)
    while last and planned[last - 1] == IDLE_LEN and found[last - 1] == IDLE_LEN + rows[last - 1]:
        last -= 1
    _require_planned("kv", found[:last], planned[:last])


def _require_planned(side: str, found: list[int], planned: list[int]) -> None:
    require(
        found == planned,
        f"the {side} lengths that the host planned with are the device's",
        f"planned {planned}, on the device {found}",
    )
