"""The device of the lane: what is counted, what a capture refuses, what a replay runs and spoils."""

from __future__ import annotations

import os
import traceback

import pytest
import torch.utils._python_dispatch  # noqa: F401  (imported here, so that a fork need not)

# The device changes torch for a whole process, so each case runs in a fork.
BEGIN = """
import torch
from tests.device_lane import graphs, streams, tensors
from tests.device_lane.device import counts, is_device, mode
streams.install(); tensors.install(); mode.__enter__()
dev = "cpu:0"
"""

CASES = {
    "marks are handed on, and say where a tensor is": """
x = torch.arange(4, device=dev)
view, sum_, host = x[1:], x + torch.ones(4), torch.ones(4)
assert is_device(view) and is_device(sum_) and not is_device(host)
assert str(x.device) == "cpu:0" and str(host.device) == "cpu"
assert is_device(torch.zeros(2, device=x.device)) and is_device(torch.zeros_like(x))
assert not is_device(torch.zeros_like(x, device="cpu"))
assert is_device(torch.tensor([1, 2], device=dev)) and is_device(host.to(dev)) and not is_device(x.to("cpu"))
""",
    "a copy to the host is another tensor": """
x = torch.zeros(3, device=dev)
there = x.to("cpu")
x.fill_(1)
assert there.tolist() == [0, 0, 0]
assert counts.copies["to host"] == 1
""",
    "launches are operators that write; views and allocations are none": """
x = torch.empty(4, device=dev)
counts.take()
x.view(2, 2)[0].unsqueeze(0)
x[:0].copy_(x[:0])
torch.empty(3, device=dev)
assert not counts.launches
x.fill_(1)
x + 1
torch.ones(3) + 1
assert dict(counts.launches) == {"aten::fill_": 1, "aten::add": 1}, counts.launches
""",
    "reads by the host are counted with their place": """
x = torch.ones(4, device=dev)
counts.take()
x.sum().item(); x.tolist(); x[x > 0]; x.nonzero(); x.cpu()
torch.ones(3).tolist()
x[x > 0] = 2.0
assert sum(counts.host_reads.values()) == 5, counts.host_reads
assert all("<case>" in place for place in counts.host_reads)
""",
    "kernels whose results are as long as the values say make the host wait": """
x = torch.tensor([1, 1, 2], device=dev)
waits = (
    lambda: torch.unique(x), lambda: torch.unique_consecutive(x), lambda: torch.unique(x.view(1, 3), dim=1),
    lambda: torch.bincount(x), lambda: torch.repeat_interleave(x, x),
)
for call in waits:
    counts.take(); call()
    assert sum(counts.host_reads.values()) == 1, counts.host_reads
    try:
        graphs.capture(call)
    except RuntimeError as error:
        assert "capturing" in str(error)
    else:
        raise AssertionError("a read went through")
counts.take()
torch.repeat_interleave(x, x, output_size=4); torch.repeat_interleave(x, 2); torch.unique(torch.ones(3))
with torch.inference_mode():
    torch.repeat_interleave(x, 2, dim=0)
assert not counts.host_reads
""",
    "one value of the host is written at each replay": """
buffer, value = torch.zeros(3, device=dev), torch.tensor(6.0)
def forward():
    buffer[0] = 5
    buffer[1].copy_(value)
    return buffer + 0
graph, out = graphs.capture(forward)
buffer.zero_(); value.fill_(9)
graphs.replay(graph)
assert out.tolist() == [5.0, 6.0, 0.0], out
""",
    "a replay keeps the host's values of the capture and reads the buffers of today": """
buffer, step = torch.zeros(3, device=dev), 1
def forward():
    return buffer * 2 + step
graph, out = graphs.capture(forward)
buffer.fill_(5); step = 100
graphs.replay(graph)
assert out.tolist() == [11.0] * 3
""",
    "a replay makes new values for what was indexed and sorted": """
buffer = torch.tensor([3, 1, 2], device=dev)
graph, out = graphs.capture(lambda: torch.sort(buffer))
buffer.copy_(torch.tensor([9, 7, 8], device=dev))
graphs.replay(graph)
assert out.values.tolist() == [7, 8, 9] and out.indices.tolist() == [1, 2, 0]
""",
    "the host cannot read while capturing": """
x = torch.ones(3, device=dev)
moves = (lambda: torch.ones(3).to(dev), lambda: torch.tensor([1, 2], device=dev))
reads = (lambda: x.sum().item(), lambda: x.tolist(), lambda: x[x > 0], lambda: x.cpu(), lambda: bool(x[0] > 0))
for read in (*reads, *moves):
    try:
        graphs.capture(read)
    except RuntimeError as error:
        assert "capturing" in str(error)
    else:
        raise AssertionError("a read went through")
assert not graphs.is_capturing()
""",
    "a replay leaves its results and nothing else of its memory": """
x = torch.ones(3, device=dev)
kept = []
def forward():
    inner = x + 1
    kept.append(inner)
    return inner * 2
graph, out = graphs.capture(forward)
graphs.replay(graph)
assert out.tolist() == [4.0] * 3
assert kept[0].tolist() != [2.0] * 3
""",
    "a replay of an earlier graph spoils the results of a later one": """
x = torch.ones(3, device=dev)
first, _ = graphs.capture(lambda: x + 1)
second, out = graphs.capture(lambda: x + 2)
graphs.replay(second)
assert out.tolist() == [3.0] * 3
graphs.replay(first)
assert out.tolist() != [3.0] * 3
""",
    "a replay runs collectives again and waits for them": """
import os, socket
import torch.distributed as dist
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
rank = 1 if os.fork() else 0
dist.init_process_group("gloo", rank=rank, world_size=2)
buffer = torch.zeros(3, device=dev)
def forward():
    summed = buffer * 1
    dist.all_reduce(summed)
    return summed + 0
graph, out = graphs.capture(forward)
for turn in range(1, 20):
    buffer.fill_(turn * (rank + 1))
    graphs.replay(graph)
    assert out.tolist() == [3.0 * turn] * 3, (turn, out)
""",
    "in late mode a copy arrives when an event after it is waited for": """
streams.late = True
x = torch.arange(3, device=dev)
early = streams.Event(); early.record()
there, done = x.to("cpu", non_blocking=True), streams.Event()
done.record()
early.synchronize()
assert there.tolist() == [streams.POISON] * 3 and not done.query()
x.fill_(9)
done.synchronize()
assert there.tolist() == [0, 1, 2] and done.query()
""",
}


@pytest.mark.parametrize("name", CASES)
def test_device(name: str) -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            exec(compile(BEGIN + CASES[name], "<case>", "exec"), {})
            os._exit(0)
        except BaseException:  # noqa: BLE001
            os.write(theirs, traceback.format_exc().encode())
            os._exit(1)
    os.close(theirs)
    with os.fdopen(ours) as report:
        text = report.read()
    status = os.waitpid(pid, 0)[1]
    assert (status, text) == (0, "")
