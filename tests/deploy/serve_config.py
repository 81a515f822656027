"""Checks of a Ray Serve configuration, which stands in a file of its own and inside each RayService."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.deploy import flag_parsers
from tests.deploy.deploy_files import DEPLOY

NOSET = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"


def serve_problems(config: dict[str, Any]) -> list[str]:
    """What Serve's schema, its field names and this repository's rules have against a configuration."""
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        return [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
    problems = _unknown_keys(ServeDeploySchema, config, "")
    for application in config["applications"]:
        problems += _application_problems(application, config.get("http_options", {}))
    return problems


def worker_config_problems(arguments: dict[str, Any]) -> list[str]:
    """What `workers.config.WorkerConfig` has against an application's `args`."""
    from workers.config import WorkerConfig

    try:
        WorkerConfig(**arguments)
    except ValidationError as error:
        return [f"args.{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
    return []


def engine_problems(arguments: dict[str, Any]) -> list[str]:
    """What SGLang's own parser and `DDTreeConfig` have against `engine_args` and `ddtree`."""
    engine = arguments.get("engine_args", {})
    problems = [f"engine_args.{name} is no argument of SGLang" for name in set(engine) - flag_parsers.sglang_fields()]
    problems += [f"engine_args.{name} must stay off" for name in set(engine) & flag_parsers.REFUSED_FLAGS]
    try:
        DDTreeConfig.from_mapping(arguments.get("ddtree", {}), "ddtree")
    except DDTreeConfigError as error:
        problems.append(str(error))
    return problems


def _application_problems(application: dict[str, Any], http: dict[str, Any]) -> list[str]:
    problems = []
    module, _, attribute = application["import_path"].partition(":")
    source = DEPLOY.parent / f"{module.replace('.', '/')}.py"
    if (module, attribute) != ("workers.app", "build_app"):
        problems.append(f"import_path must be workers.app:build_app, got {application['import_path']}")
    elif source.exists() and f"def {attribute}(" not in source.read_text(encoding="utf-8"):
        problems.append(f"{module} has no function {attribute}")
    if application.get("runtime_env", {}).get("env_vars", {}).get(NOSET) != "1":
        problems.append(f"runtime_env must set {NOSET} to '1', or ranks beside the first find no GPU")
    arguments = application.get("args", {})
    if http.get("request_timeout_s", 0) <= arguments.get("request_deadline_s", 0):
        problems.append(
            "request_timeout_s must be above request_deadline_s, or Serve cuts off before the worker answers"
        )
    return problems


def _unknown_keys(model: type[BaseModel], data: Any, path: str) -> list[str]:
    """Serve's schema takes any key; a mistyped one would silently leave the default in force."""
    fields = {name: field.annotation for name, field in model.model_fields.items()}
    problems = [f"unknown key {path}.{key}".replace(" .", " ") for key in data if key not in fields]
    for key in set(data) & set(fields):
        inner = _model_in(fields[key])
        if inner is None:
            continue
        values = data[key] if isinstance(data[key], list) else [data[key]]
        for value in values:
            if isinstance(value, dict):
                problems += _unknown_keys(inner, value, f"{path}.{key}")
    return problems


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside `Optional[Model]`, `list[Model]` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, (_model_in(part) for part in typing.get_args(annotation))), None)
