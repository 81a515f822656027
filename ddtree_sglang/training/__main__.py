"""Train a DFlash drafter for a Hugging Face causal language model: data, features, training, scores, export.

    python -m ddtree_sglang.training generate --target M --data FILE.npz --work DIR --conversations N
    python -m ddtree_sglang.training features --target M --data FILE.npz --work DIR
    python -m ddtree_sglang.training train    --target M --data FILE.npz --work DIR --steps 2000
    python -m ddtree_sglang.training evaluate --target M --data FILE.npz --work DIR
    python -m ddtree_sglang.training export   --work DIR --output FOLDER
    python -m ddtree_sglang.training selector --target M --data FILE.npz --work DIR --draft FOLDER --output FOLDER
    python -m ddtree_sglang.training together --target M --work DIR --output FOLDER --start-draft FOLDER
    python -m ddtree_sglang.training all      --target M --data FILE.npz --work DIR --output FOLDER

A stage that is stopped goes on when the same command is given again. Features are computed once per `--work` folder,
training goes on from the newest checkpoint there, and evaluation and export read that checkpoint. `train` computes
features that are missing. `selector` gives an exported drafter, whose weights stay, a head that scores pairs of
candidates (DFlash2); its conversations had better be ones that the drafter was not trained on. `together` is for a GPU:
it writes conversations, trains on them and exports, by the clock and in one process, without files of features. It adds
its conversations to `--data`, where that is given, and has defaults of its own: `--generation-batch 4096
--max-tokens 448 --turn-top-p 1.0 --sampled-share 0.1 --rows 128 --learning-rate 0.0015 --warmup-steps 100
--cooldown 0.75 --optimizer muon --log-every 50 --evaluate-every 500 --held-out-limit 128`.
`all` runs the first five stages, and scores the exported drafter on prompts of four kinds.
A run goes on only with its own data, split and training flags. `--allow-changed-plan` allows other data and flags,
never another split. Targets: any of Llama's shape, see `model/target_check.py`.
The recipe is block drafting over several target features (DFlash, arXiv 2602.06036), trained on the target's own
answers and on its own distributions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ddtree_sglang.training.data.conversations import load_conversations
from ddtree_sglang.training.flags import Command, parse_command
from ddtree_sglang.training.stages.evaluate import evaluate
from ddtree_sglang.training.stages.export import export
from ddtree_sglang.training.stages.features import compute_features
from ddtree_sglang.training.stages.generate import generate
from ddtree_sglang.training.stages.selector import train_selector
from ddtree_sglang.training.stages.start import choose_start
from ddtree_sglang.training.stages.together import together
from ddtree_sglang.training.stages.train import train


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; the exit status is 0 on success and 2 on bad input."""
    try:
        command = parse_command(argv, __doc__ or "")
        if command.run.threads:
            torch.set_num_threads(command.run.threads)
        STAGE_RUNNERS[command.stage](command)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _generate(command: Command) -> None:
    generate(command.target(), command.data(), command.generation, command.server, command.training.dtype)


def _features(command: Command) -> None:
    target, work = command.target(), command.run.work
    layers = choose_start(target, command.choices).shape.target_layer_ids
    compute_features(target, load_conversations(command.data()), layers, work, command.training.dtype)


def _train(command: Command) -> None:
    train(
        command.target(),
        command.data(),
        command.run.work,
        command.choices,
        command.training,
        command.held_out,
        allow_changes=command.allow_changed_plan,
    )


def _evaluate(command: Command) -> None:
    evaluate(
        command.target(),
        command.run.data,
        command.run.work,
        command.scoring,
        command.held_out,
        command.training.dtype,
        command.arguments,
    )


def _export(command: Command) -> None:
    export(command.run.work, command.output(), command.training.dtype)


def _selector(command: Command) -> None:
    if command.scoring.draft is None:
        raise ValueError("this stage adds a selector to an exported drafter: pass --draft FOLDER.")
    train_selector(
        command.target(),
        command.data(),
        command.run.work,
        command.scoring.draft,
        command.output(),
        command.selector,
        command.training,
        command.held_out,
    )


def _together(command: Command) -> None:
    together(
        command.target(),
        command.run.data,
        command.run.work,
        command.output(),
        command.choices,
        command.generation,
        command.together,
        command.training,
        command.held_out,
        command.arguments,
    )


def _all(command: Command) -> None:
    output, target = command.output(), command.target()
    choose_start(target, command.choices)  # before hours of generation
    for stage in (_generate, _train, _export):
        stage(command)
    _evaluate(replace(command, scoring=replace(command.scoring, draft=output, prompts="by-kind")))


STAGE_RUNNERS: dict[str, Callable[[Command], None]] = {
    "generate": _generate,
    "features": _features,
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "selector": _selector,
    "together": _together,
    "all": _all,
}


if __name__ == "__main__":
    sys.exit(main())
