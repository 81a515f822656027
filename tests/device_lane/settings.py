"""What a test tells the processes of a lane server, through their environment."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

_PREFIX = "DDTREE_LANE_"


@dataclass(frozen=True)
class LaneSettings:
    """Options of one server.

    Attributes:
        mutation: name in `tests.device_lane.mutations` of a fault to put back, or in `tests.device_lane.lifted` of a
            refusal to take away; empty for none.
        report: file that gets one JSON line per batch that the scheduler runs; empty for none.
        late: copies to the host arrive when somebody waits for them, and not before.
    """

    mutation: str = ""
    report: str = ""
    late: bool = False

    @classmethod
    def from_environment(cls) -> LaneSettings:
        """As the launcher wrote them."""
        read = os.environ.get
        return cls(read(f"{_PREFIX}MUTATION", ""), read(f"{_PREFIX}REPORT", ""), read(f"{_PREFIX}LATE", "") == "True")

    def to_environment(self) -> None:
        """For the processes that this one starts."""
        for name, value in asdict(self).items():
            os.environ[f"{_PREFIX}{name.upper()}"] = str(value)

    def report_of_rank(self, rank: int) -> Path | None:
        """Each rank has a file of its own."""
        return Path(f"{self.report}.{rank}" if rank else self.report) if self.report else None
