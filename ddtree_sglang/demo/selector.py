"""The selector that ships for the shipped drafter, and the drafter with it: a DFlash2 drafter, for DDTREE.

    python -m ddtree_sglang.demo.selector FOLDER        FOLDER on stdout, for --speculative-draft-model-path

It is no part of the drafter's own folder because SGLang's chain serves that one on a CPU, and a drafter with a selector
there it does not: it ranks candidates with a kernel of FlashInfer's, which takes CUDA tensors alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ddtree_sglang.demo.drafter import shipped_drafter
from ddtree_sglang.demo.manifest import manifest_problems, sha256_of, write_manifest
from ddtree_sglang.exceptions import DemoNotInstalledError, DrafterFilesError

SELECTOR_FOLDER = Path(__file__).parent / "selector"
WEIGHTS = "selector.safetensors"


def shipped_selector() -> Path:
    """The folder of the selector's weights, with their digest checked.

    Raises:
        DemoNotInstalledError: there are none, as after an install from a wheel.
        DrafterFilesError: they are damaged.
    """
    if not (SELECTOR_FOLDER / WEIGHTS).exists():
        raise DemoNotInstalledError(
            f"the selector needs its weights, which a wheel leaves out; found no {WEIGHTS} in {SELECTOR_FOLDER}: "
            "install a checkout with pip install -e."
        )
    problems = manifest_problems(SELECTOR_FOLDER)
    if problems:
        raise DrafterFilesError(
            f"the shipped selector must match its manifest, found: {'; '.join(problems)}. Reinstall the package."
        )
    return SELECTOR_FOLDER


def write_drafter_with_selector(folder: Path) -> Path:
    """Write the shipped drafter with its selector to `folder`; returns it.

    Raises:
        DemoNotInstalledError: the weights of either are not installed.
        DrafterFilesError: a file is damaged, or the drafter is another than the selector was trained for.
    """
    from safetensors.torch import load_file, save_file

    drafter, selector = shipped_drafter(), shipped_selector()
    trained_for = json.loads((selector / "manifest.json").read_text())
    if sha256_of(drafter / "model.safetensors") != trained_for["drafter_sha256"]:
        raise DrafterFilesError(
            f"a selector serves the drafter that it was trained for, of SHA-256 {trained_for['drafter_sha256'][:12]}; "
            f"{drafter} holds another: unset DDTREE_DEMO_DRAFTER."
        )
    tensors = load_file(drafter / "model.safetensors") | load_file(selector / WEIGHTS)
    config = json.loads((drafter / "config.json").read_text())
    config["architectures"] = ["DFlash2DraftModel"]
    rank = tensors["candidate_selector.predecessor_codebook"].shape[1]
    config["dflash_config"] |= {"selector_rank": rank, "selector_top_k": trained_for["top_k"]}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_manifest(folder)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder that is named; the exit status is 0 on success and 2 on bad input."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m ddtree_sglang.demo.selector FOLDER", file=sys.stderr)
        return 2
    try:
        print(write_drafter_with_selector(Path(arguments[0])))
    except (DemoNotInstalledError, DrafterFilesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
