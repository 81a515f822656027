"""Nothing that SGLang lets a client ask for is forgotten: every endpoint, field and sampling parameter."""

from __future__ import annotations

import ast
import importlib.util
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conformance.conftest import Both
from tests.e2e.conformance.exceptions import REFUSED
from tests.e2e.conformance.other_endpoints import OTHER_SHAPES, PATHS_LEFT_OUT, WITH_GRAMMARS
from tests.e2e.conformance.shapes import ENDPOINTS, Endpoint, make_shapes


@pytest.fixture(scope="module")
def document(both: Both) -> Mapping[str, Any]:
    """The OpenAPI document; both servers have the same."""
    documents = []
    for server in (both.plain, both.ddtree):
        with urllib.request.urlopen(server.url + "/openapi.json", timeout=60) as response:
            documents.append(json.load(response))
    assert documents[0] == documents[1]
    return documents[0]  # type: ignore[no-any-return]


def sampling_parameters() -> frozenset[str]:
    """Fields of SGLang's `SamplingParams`, which the document calls an object; read without importing the engine."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "srt/sampling/sampling_params.py"
    classes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)]
    fields = [node for one in classes if one.name == "SamplingParams" for node in one.body]
    return frozenset(
        f"sampling_params.{node.target.id}"
        for node in fields
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    )


def fields_of(document: Mapping[str, Any], endpoint: Endpoint) -> frozenset[str]:
    """What a request to this endpoint may hold."""
    names = frozenset(document["components"]["schemas"][endpoint.schema]["properties"])
    return (names - {"sampling_params"}) | sampling_parameters() if "sampling_params" in names else names


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_every_field_is_a_factor_or_left_out_by_name(endpoint: Endpoint, document: Mapping[str, Any]) -> None:
    request = document["paths"][endpoint.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert request["$ref"].endswith("/" + endpoint.schema)
    varied = frozenset[str]().union(*(factor.fields for factor in endpoint.factors.values()))
    left_out = frozenset(endpoint.left_out)
    known = fields_of(document, endpoint)
    assert len(known) > 35
    assert not known - varied - left_out, "new fields of the engine: make each a factor, or leave it out by name"
    assert not (varied | left_out) - known, "fields that the engine does not have"
    assert not varied & left_out
    assert all(endpoint.left_out.values())


def test_every_endpoint_is_asked_or_left_out_by_name(document: Mapping[str, Any]) -> None:
    posts = {path for path, methods in document["paths"].items() if "post" in methods}
    asked = {endpoint.path for endpoint in ENDPOINTS} | {path for path, _ in (*OTHER_SHAPES, *WITH_GRAMMARS)}
    assert posts - asked - PATHS_LEFT_OUT.keys() == set()
    assert (asked | PATHS_LEFT_OUT.keys()) - posts == set()
    assert not asked & PATHS_LEFT_OUT.keys()


def test_every_feature_that_is_refused_is_one_that_levels_ask_for() -> None:
    asked_for = {
        level.feature
        for endpoint in ENDPOINTS
        for factor in endpoint.factors.values()
        for level in factor.levels.values()
    }
    assert REFUSED.keys() <= asked_for


def test_there_are_three_hundred_shapes_whose_prompts_begin_differently() -> None:
    shapes = make_shapes()
    assert len(shapes) >= 300
    first = [ids[:2] for shape in shapes for ids in (shape.subject.ids, shape.subject.other_ids)]
    assert len(set(first)) == len(first)
