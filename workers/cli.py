"""The command line: serve a model on Ray, run a batch, say what runs.

    python -m workers serve  --model M --draft D [--replicas 2] [--port 8000]     until Ctrl-C
    python -m workers serve  --demo                                              the small model that the package ships
    python -m workers job    --input IN.jsonl --output OUT.jsonl --config FILE
    python -m workers status [--address HOST:PORT]

Without `--address`, `serve` and `job` start a Ray on the loopback interface and stop it at their end. With `--address`,
and inside `ray job submit`, they use the running cluster.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddtree_sglang.exceptions import DDTreeError
from workers.cluster.loopback import is_loopback
from workers.config import WorkerConfig, load_worker_config
from workers.http.security import DEFAULT_VARIABLE, ApiKey
from workers.progress import say, step
from workers.startup import run_application

APPLICATION = "ddtree"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 on success, 1 if lines of a job failed, 2 on bad input, 130 for a stopped job."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.command(args))
    except (ValueError, DDTreeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    parser = argparse.ArgumentParser(
        prog="python -m workers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    serve_command = commands.add_parser("serve", help="serve a model until Ctrl-C")
    _add_config_flags(serve_command)
    serve_command.add_argument("--host", default="127.0.0.1", help="interface of the HTTP server")
    serve_command.add_argument("--port", type=int, default=8000)
    serve_command.set_defaults(command=_serve)
    job_command = commands.add_parser("job", help="answer a JSONL file")
    _add_config_flags(job_command)
    job_command.add_argument("--input", type=Path, required=True)
    job_command.add_argument("--output", type=Path, required=True)
    job_command.set_defaults(command=_job)
    status_command = commands.add_parser("status", help="print the applications, their replicas and states as JSON")
    status_command.add_argument(
        "--address", help='Ray cluster to ask; "auto": the one that this machine is part of; default: the local one'
    )
    status_command.set_defaults(command=_status)
    return parser


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="file with the fields of WorkerConfig; flags override it")
    parser.add_argument(
        "--demo", action="store_true", help="SmolLM2-135M-Instruct with the drafter that ships; no --config"
    )
    parser.add_argument(
        "--address", help="Ray cluster to use; default: the one that a submitted job runs in, else a new local one"
    )
    parser.add_argument(
        "--local-cpus",
        type=float,
        help="CPUs that a local Ray may book, also more than there are; default: the machine's",
    )
    for name, kind in (("model", str), ("draft", str), ("dtype", str), ("device", str), ("algorithm", str)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--served-model-name")
    parser.add_argument("--tp-size", type=int)
    parser.add_argument("--budget", type=int, help="nodes of the draft tree besides the root")
    parser.add_argument("--replicas", type=int, help="sets min_replicas and max_replicas")
    parser.add_argument("--cpus-per-rank", type=float)
    parser.add_argument("--max-running-requests", type=int)


def worker_config(args: argparse.Namespace) -> WorkerConfig:
    """The configuration file, the demo's or none, with the flags over it.

    Raises:
        ValueError: an unusable file or value, or a file beside the demo, since each names a model.
    """
    if args.demo and args.config:
        raise ValueError(f"--demo and --config both name a model, found --config {args.config}; give one of them.")
    values: dict[str, Any] = load_worker_config(args.config).model_dump(exclude_unset=True) if args.config else {}
    if args.demo:
        is_tree = (args.algorithm or "DDTREE") == "DDTREE"
        is_elsewhere = bool(args.address or os.environ.get("RAY_ADDRESS"))
        values = _demo_values(is_tree and not is_elsewhere)
    names = ("model", "draft", "dtype", "device", "algorithm", "served_model_name", "tp_size")
    for name in (*names, "cpus_per_rank", "max_running_requests"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    if args.budget is not None:
        values["ddtree"] = {**values.get("ddtree", {}), "budget": args.budget}
    if args.replicas is not None:
        values |= {"min_replicas": args.replicas, "max_replicas": args.replicas}
    return WorkerConfig(**values)


def _demo_values(choose_budget: bool) -> dict[str, Any]:
    """The embedded pair; with the tree that was measured fastest on a CPU, where this machine has nothing else."""
    with step("preparing SmolLM2-135M-Instruct"):
        from ddtree_sglang.cpu_platform import activate
        from ddtree_sglang.demo.drafter import CPU_BUDGET, shipped_drafter
        from ddtree_sglang.demo.prepare import prepare_model

        model, on_cpu = prepare_model(), activate() is not None
    return {
        "model": str(model),
        "draft": str(shipped_drafter()),
        "served_model_name": "SmolLM2-135M-Instruct",
        "dtype": "float32",
        "ddtree": {"budget": CPU_BUDGET} if choose_budget and on_cpu else {},
        "engine_args": {"max_total_tokens": 16384},
    }


def _connect(args: argparse.Namespace) -> bool:
    """Start a local Ray or connect to a running one; True if this process started it."""
    # Ray's LLM package prints SGLang's log as JSON, and these two loggers list plugins that the user did not ask about.
    for logger in ("sglang.srt.platforms", "sglang.srt.plugins"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    address = args.address or os.environ.get("RAY_ADDRESS")
    with step(f"connecting to the Ray at {address}" if address else "starting Ray on this machine"):
        from workers.cluster.local import connect, start_local_cluster

        if address:
            connect(address)
        else:
            start_local_cluster(args.local_cpus)
    return not address


def _serve(args: argparse.Namespace) -> int:
    config = with_required_api_key(worker_config(args), args.host, os.environ)
    is_own = _connect(args)
    deployed = False
    # SIGTERM ends it as Ctrl-C does, also while replicas start. Set here, as Ray's start sets a handler of its own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with step(f"starting Ray Serve on {args.host}:{args.port}"):
            from ray import serve

            serve.start(http_options={"host": args.host, "port": args.port})
        with step("importing Ray's LLM server, which starts the replicas"):
            from workers.app import build_app

            application = build_app(config.model_dump(exclude_unset=True))
        deployed = True
        run_application(application, APPLICATION, config)
        say(ready_message(config, args.host, args.port))
        threading.Event().wait()
    except KeyboardInterrupt:
        say("stopping")
    finally:
        _shut_down(is_own, deployed)
    return 0


def ready_message(config: WorkerConfig, host: str, port: int) -> str:
    """Where the server is, and a command that asks it."""
    url = f"http://{host}:{port}/v1"
    question = {"model": config.name, "stream": True, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    key = f' -H "Authorization: Bearer ${config.api_key_env}"' if config.api_key_env else ""
    return (
        f"ready: {url}, Ctrl-C ends it. To ask it from another terminal:\n"
        f"    curl -N {url}/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        f"        -d '{json.dumps(question)}'"
    )


def with_required_api_key(config: WorkerConfig, host: str, environment: Mapping[str, str]) -> WorkerConfig:
    """The configuration, with `api_key_env` set where this process's environment holds a key.

    The ingress reads the environment of its own node. With `api_key_env` set, it refuses to start where that lacks the
    key, instead of serving everybody.

    Raises:
        ValueError: `host` can be reached from other machines, and there is no key.
    """
    if config.api_key_env is None and ApiKey.from_env(None, environment).is_set:
        config = config.model_copy(update={"api_key_env": DEFAULT_VARIABLE})
    if config.api_key_env is None and not is_loopback(host):
        raise ValueError(
            f"--host must be a loopback address unless an API key is set, got {host}; set {DEFAULT_VARIABLE} in the "
            "environment, or leave --host out."
        )
    return config


def _shut_down(is_own: bool, deployed: bool) -> None:
    """Take down the application if this process deployed it, and all of Serve on a Ray that this process started."""
    import ray
    from ray import serve

    with step("ending replicas"):
        if is_own:
            serve.shutdown()
        elif deployed:
            serve.delete(APPLICATION)
        ray.shutdown()


def _job(args: argparse.Namespace) -> int:
    config = worker_config(args)
    is_own = _connect(args)
    # `ray job stop` sends SIGTERM, and SIGKILL three seconds later: enough to ask for the end of the replicas.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with step("starting Ray Serve"):
            from ray import serve

            from workers.jobs.job import run_job

            if is_own:
                # Without HTTP: Serve would open port 8000, beside or instead of a server that has it.
                serve.start(proxy_location="Disabled")
        report = run_job(config, args.input, args.output)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on from here", file=sys.stderr)
        return 130
    print(report.line())
    for error in report.errors:
        print(error, file=sys.stderr)
    print(json.dumps({**vars(report), "accept_length": report.accept_length}))
    return 1 if report.failed else 0


def _status(args: argparse.Namespace) -> int:
    from workers.cluster.local import connect, prepare_environment

    address = args.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        # `serve` starts its Ray on the loopback interface and with a token; without these settings `status` would hang.
        prepare_environment()
    try:
        with step(f"asking the Ray at {address or 'this machine'}", stream=sys.stderr):
            connect(address or "auto")
    except ConnectionError as error:
        raise ValueError(f"status needs a running Ray cluster, found none: {error}") from error
    from ray import serve

    applications = {name: asdict(status) for name, status in serve.status().applications.items()}
    print(json.dumps(applications, default=str, indent=2))
    return 0
