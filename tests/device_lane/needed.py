"""What a row of the tables of refusals says, and what is found wrong where one is taken away."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tests.device_lane.scenes import Scene
from tests.device_lane.waves import few_of_chains

TOKENS = r"tokens \[.*\], expected \["
ROUNDS = "rounds by correct drafts .* expected"
"""Tokens are right, and what the drafter proposes is not."""
UNANSWERED = "no byte from the server"


@dataclass(frozen=True)
class Needed:
    """A refusal, the scene that it refuses, and what is found wrong when the scene is served all the same.

    `refusal`: words of the message. `wrong`: a pattern of what is found: tokens, or what the server ends or waits for.
    `right`: what the same server answers rightly, so that what is wrong is the tree's: trees that are chains;
    empty where they were not asked. `slow`: not run in each CI run, for its time. `together`: one server that refuses
    this beside others, in the place of the scene; it serves on, where the scene's would be gone.
    """

    lifted: str
    refusal: str
    scene: Scene
    wrong: str
    right: Literal["", "chain"] = ""
    slow: bool = True
    together: Scene | None = None

    @property
    def refused(self) -> Scene:
        """What is refused while the refusal is there."""
        return self.together or self.scene

    @property
    def control(self) -> Scene:
        """The same server with what it answers rightly."""
        flags = (*self.scene.flags, "--speculative-ddtree-top-k", "1")
        return replace(self.scene, name=f"{self.scene.name}-chain", waves=(few_of_chains,), flags=flags)
