"""Starts an application on Ray Serve, and says meanwhile how far each of its replicas is."""

from __future__ import annotations

import contextlib
from typing import Any

from workers.config import WorkerConfig
from workers.progress import say, step
from workers.replicas.supervision import READY, SUPERVISOR

ACTOR_TIMEOUT_S = 2.0


def run_application(application: Any, name: str, config: WorkerConfig, **options: Any) -> Any:
    """`serve.run` with progress; returns the application's handle once its replicas have made a token.

    Args:
        application: as `workers.app` builds it.
        name: of the application.
        config: what it was built from.
        options: for `serve.run`.
    """
    from ray import serve

    say(f"{config.min_replicas} replica(s) of {config.name}, {config.tp_size} rank(s) each")
    with step("starting replicas", lambda: described(start_stages(name), config.min_replicas)):
        return serve.run(application, name=name, **options)


def start_stages(application: str) -> list[tuple[str, float]]:
    """Stage and seconds in it of each replica, in the order in which they began; none before the first one did."""
    import ray
    from ray.serve._private.constants import SERVE_DEPLOYMENT_ACTOR_PREFIX, SERVE_NAMESPACE

    stages: list[tuple[str, float]] = []
    for actor in ray.util.list_named_actors(all_namespaces=True):
        words = actor["name"].split("::")
        of_ours = actor["namespace"] == SERVE_NAMESPACE and f"{words[0]}::" == SERVE_DEPLOYMENT_ACTOR_PREFIX
        if of_ours and words[1] == application and words[-1] == SUPERVISOR:
            # The actor may be on its way up or down.
            with contextlib.suppress(ValueError, ray.exceptions.RayError):
                handle = ray.get_actor(actor["name"], SERVE_NAMESPACE)
                stages += ray.get(handle.stages.remote(), timeout=ACTOR_TIMEOUT_S)
    return stages


def described(stages: list[tuple[str, float]], num_replicas: int) -> str:
    """A phrase for the newest `num_replicas` replicas; an older one that is still listed has died."""
    newest = list(enumerate(stages, 1))[-num_replicas:]
    if len(newest) == num_replicas and all(stage == READY for _, (stage, _) in newest):
        return "all ready"
    shown = [f"{number}: {stage} for {seconds:.0f} s" for number, (stage, seconds) in newest]
    if len(newest) < num_replicas:
        shown.append(f"{num_replicas - len(newest)} waiting for resources or starting a process")
    return ", ".join(shown)
