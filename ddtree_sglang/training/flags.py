"""The command line of the recipe: a group of flags per dataclass, and what a command asks for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.training.data.conversations import HeldOutConfig
from ddtree_sglang.training.data.self_generation import GenerationPlan
from ddtree_sglang.training.described import add_flags, described, from_flags
from ddtree_sglang.training.fit.config import TrainingConfig
from ddtree_sglang.training.fit.selector_fit import SelectorConfig
from ddtree_sglang.training.model.drafter_config import DrafterChoices
from ddtree_sglang.training.stages.evaluate import ScoringConfig
from ddtree_sglang.training.stages.target import TargetFolder
from ddtree_sglang.training.stages.together import DEFAULTS, TogetherConfig

STAGES = ("generate", "features", "train", "evaluate", "export", "selector", "together", "all")


@dataclass(frozen=True)
class RunConfig:
    """Where a run reads and writes, and on what it computes."""

    work: Path  # folder of features and checkpoints
    target: Path | None = described(None, "Hugging Face folder of the target")
    data: Path | None = described(None, "conversations: an .npz file of tokens, offsets and answer_start")
    output: Path | None = described(None, "folder that the drafter is exported to")
    device: str = described("cuda" if torch.cuda.is_available() else "cpu", "torch device of target and drafter")
    threads: int = described(0, "CPU threads; 0 takes torch's own number")


@dataclass(frozen=True)
class Command:
    """One command line, taken apart: each stage takes the parts that it uses."""

    stage: str  # one of STAGES
    run: RunConfig
    held_out: HeldOutConfig
    choices: DrafterChoices
    generation: GenerationPlan
    training: TrainingConfig
    selector: SelectorConfig
    scoring: ScoringConfig
    together: TogetherConfig
    server: str | None  # URL of a server that generates
    allow_changed_plan: bool
    arguments: dict[str, Any]  # every flag's value by its name, for the record of scores

    def target(self) -> TargetFolder:
        """The target; ValueError without `--target`."""
        if self.run.target is None:
            raise ValueError("this stage needs the target: pass --target FOLDER.")
        return TargetFolder(self.run.target, self.run.device)

    def data(self) -> Path:
        """The file of conversations; ValueError without `--data`."""
        if self.run.data is None:
            raise ValueError("this stage needs a file of conversations to read or to write: pass --data FILE.npz.")
        return self.run.data

    def output(self) -> Path:
        """The folder to export to; ValueError without `--output`."""
        if self.run.output is None:
            raise ValueError("this stage exports a drafter: pass --output FOLDER.")
        return self.run.output


def build_parser(description: str) -> argparse.ArgumentParser:
    """The parser of all stages."""
    parser = argparse.ArgumentParser(
        prog="python -m ddtree_sglang.training",
        usage="%(prog)s STAGE --work PATH [flags]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES, help="what to do")
    parser.add_argument("--work", type=Path, metavar="PATH", required=True, help="folder of features and checkpoints")
    add_flags(parser, "files and machine", RunConfig)
    add_flags(parser, "held-out conversations", HeldOutConfig)
    add_flags(parser, "shape of the drafter", DrafterChoices)
    add_flags(parser, "generate", GenerationPlan)
    parser.add_argument(
        "--server", metavar="URL", help="generate: a running SGLang server of the target that writes instead"
    )
    add_flags(parser, "train", TrainingConfig)
    parser.add_argument(
        "--allow-changed-plan",
        action="store_true",
        help="train: go on from a checkpoint of other training flags or of other data",
    )
    add_flags(parser, "selector", SelectorConfig)
    add_flags(parser, "evaluate", ScoringConfig)
    add_flags(parser, "together", TogetherConfig)
    return parser


def parse_command(argv: Sequence[str] | None, description: str) -> Command:
    """Read a command line; argparse ends the process with status 2 on a flag that it does not know.

    Raises:
        ValueError: a value is out of its range.
    """
    parser = build_parser(description)
    args = parser.parse_args(argv)
    if args.stage == "together":
        parser.set_defaults(**DEFAULTS)
        args = parser.parse_args(argv)
    training = from_flags(TrainingConfig, args)
    return Command(
        stage=args.stage,
        run=from_flags(RunConfig, args, work=args.work),
        held_out=from_flags(HeldOutConfig, args),
        choices=from_flags(DrafterChoices, args),
        generation=from_flags(GenerationPlan, args, seed=training.seed),
        training=training,
        selector=from_flags(SelectorConfig, args, seed=training.seed),
        scoring=from_flags(ScoringConfig, args),
        together=from_flags(TogetherConfig, args),
        server=args.server,
        allow_changed_plan=args.allow_changed_plan,
        arguments=vars(args),
    )
