"""The real parsers of the commands in the deployment files. They take seconds to import, so only when asked for."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

REFUSED_FLAGS = {"trust_remote_code", "enable_custom_logit_processor"}
"""Both run code that came with a model or a request."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(message)


@functools.cache
def sglang_parser() -> argparse.ArgumentParser:
    """The parser of `sglang.launch_server`, with the plugin's flags; a shortened flag is an error."""
    from sglang.srt.server_args import ServerArgs

    from ddtree_sglang.engine.cli_flags import add_ddtree_flags

    parser = _Parser(allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    if "--speculative-ddtree-budget" not in parser._option_string_actions:
        add_ddtree_flags(None, parser)
    return parser


def sglang_problems(flags: Sequence[str]) -> list[str]:
    """What SGLang's parser and the rules of this repository have against a server's flags."""
    try:
        arguments = sglang_parser().parse_args(list(flags))
    except ValueError as error:
        return [str(error)]
    problems = [f"{name} must stay off" for name in sorted(REFUSED_FLAGS) if getattr(arguments, name)]
    if arguments.speculative_algorithm not in {"DDTREE", "DFLASH", None}:
        problems.append(f"unknown speculative algorithm {arguments.speculative_algorithm!r}")
    return problems


def sglang_fields() -> set[str]:
    """Names that `Engine(**kwargs)` takes, as far as they are flags too."""
    return {action.dest for action in sglang_parser()._actions}


def ray_start_problems(flags: Sequence[str]) -> list[str]:
    """What click has against the flags of `ray start`; nothing is started."""
    import click
    from ray.scripts.scripts import start

    try:
        start.make_context("ray start", list(flags))
    except click.UsageError as error:
        return [error.format_message()]
    return []


def ray_start_params_problems(params: Mapping[str, str]) -> list[str]:
    """What click has against KubeRay's `rayStartParams`, which become `--key=value` of `ray start`."""
    wrong_type = [
        f"rayStartParams.{key} must be a string" for key, value in params.items() if not isinstance(value, str)
    ]
    return wrong_type or ray_start_problems([f"--{key}={value}" for key, value in params.items()])


def ray_commands() -> set[str]:
    """The words that may follow `ray` on a command line."""
    from ray.scripts.scripts import cli

    return set(cli.commands)
