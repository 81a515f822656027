"""Every request shape, sent to a plain server and to a DDTREE server: the bodies are equal, field by field."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pytest

from tests.e2e.asking import rounds_of
from tests.e2e.conformance.asking import Asked, ask_shapes, is_near_tie, said
from tests.e2e.conformance.comparing import Comparison, Difference, inconsistencies, is_compared, without_forbidden
from tests.e2e.conformance.conftest import Both
from tests.e2e.conformance.exceptions import ALLOWED, REFUSED, exception_for
from tests.e2e.conformance.factors import make_subject
from tests.e2e.conformance.other_endpoints import OTHER_SHAPES, WITH_GRAMMARS
from tests.e2e.conformance.planting import changed, differ, places
from tests.e2e.conformance.sending import Answer, send
from tests.e2e.conformance.shapes import ENDPOINTS, Shape, make_shapes
from tests.e2e.stream_cases import CASES, StreamCase, alike, assembled, differences

MAX_NEAR_TIES = 3
TIMES = 2
"""How many shapes at least hold each pair of levels."""


@pytest.fixture(scope="module")
def asked(both: Both) -> list[Asked]:
    """Every shape and both servers' answers."""
    shapes = make_shapes(REFUSED, TIMES)
    plain, ddtree = (ask_shapes(server.url, shapes) for server in (both.plain, both.ddtree))
    return [Asked(*one) for one in zip(shapes, plain, ddtree, strict=True)]


def found(asked: Sequence[Asked], comparison: Comparison) -> list[tuple[Shape, Difference, str | None]]:
    """Every difference with the exception that allows it, if there is one."""
    return [
        (one.shape, difference, exception_for(one.shape, difference))
        for one in asked
        for difference in one.differences(comparison)
    ]


def report_faults(faults: Sequence[tuple[Shape, Difference]]) -> None:
    """Fail with shapes and their differences, unless there are none."""
    if faults:
        lines = "\n".join(f"{shape.name}\n    {difference}" for shape, difference in faults[:40])
        pytest.fail(f"{len(faults)} differences, the first:\n{lines}", pytrace=False)


def test_bodies_are_equal_field_by_field(asked: list[Asked], both: Both) -> None:
    faults = [(shape, difference) for shape, difference, name in found(asked, Comparison()) if name is None]
    ties = {
        shape.name for shape in {id(shape): shape for shape, _ in faults}.values() if is_near_tie(both.plain.url, shape)
    }
    assert len(ties) <= MAX_NEAR_TIES
    faults = [(shape, difference) for shape, difference in faults if shape.name not in ties]
    report_faults(faults)


def test_enough_was_asked_answered_and_compared(asked: list[Asked], both: Both) -> None:
    """So that the test above cannot pass by comparing nothing, or errors, or answers of one token a round."""
    assert len(asked) >= 300
    statuses = Counter((turn, answer.status) for one in asked for turn, answer in one.plain.items())
    assert statuses[("whole", 200)] >= 0.97 * len(asked), statuses
    assert statuses[("streamed", 200)] >= 0.25 * len(asked), statuses
    comparison = Comparison()
    list(found(asked, comparison))
    assert comparison.num_values >= 50 * len(asked)
    rounds = [one for one in rounds_of(both.ddtree.trace) if one["num_nodes"] > 1]
    accepted = [length for one in rounds for length in one["commit_lens"]]
    assert fmean(accepted) > 2
    assert fmean(length > 1 for length in accepted) > 0.3


def test_a_difference_planted_in_an_answer_is_found(asked: list[Asked]) -> None:
    """One value of each shape's answer changed, at a random place."""
    rng = random.Random(0)
    for one in asked:
        body = without_forbidden(one.plain["whole"].body)
        compared = [at for at in places(body) if all(is_compared(step) for step in at if isinstance(step, str))]
        planted = changed(body, rng.choice(compared), differ)
        answers = (
            {"whole": Answer(one.plain["whole"].status, body)},
            {"whole": Answer(one.plain["whole"].status, planted)},
        )
        found = list(Asked(dataclasses.replace(one.shape, row={}), *answers).differences(Comparison()))
        assert len(found) == 1, one.shape.name


def test_every_exception_is_needed(asked: list[Asked]) -> None:
    used = Counter(name for _, _, name in found(asked, Comparison()))
    assert not [name for name in ALLOWED if not used[name]], "exceptions that no shape needs: remove them"


def test_a_stream_is_the_whole_answer_in_pieces(asked: list[Asked]) -> None:
    """Where a plain server's stream is: SGLang's stream of a tool call that was cut off says less than the whole."""
    faults, same, num_values = [], 0, 0
    for one in asked:
        if one.shape.is_drawn or "streamed" not in one.plain or one.plain["whole"].status != 200:
            continue
        comparison = Comparison()
        plain, ddtree = (
            list(
                comparison.differences(*(said(without_forbidden(answers[turn].body)) for turn in ("whole", "streamed")))
            )
            for answers in (one.plain, one.ddtree)
        )
        same += not plain
        faults += [(one.shape, difference) for difference in ddtree if difference not in plain]
        num_values += comparison.num_values
    assert num_values > 1000
    assert same > 80
    report_faults(faults)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_streams_are_plain_decodings_event_by_event(case: StreamCase, both: Both) -> None:
    """A parser may read them, so that a round's tokens come one by one without a flag."""
    expected, mine = alike(both.plain, both.ddtree, case)
    assert differences(expected, mine) == []
    assert len(mine) > 4
    assert differences([assembled(case, expected)], [assembled(case, mine)]) == []


def test_lists_are_as_long_as_the_answer(asked: list[Asked]) -> None:
    """Of answers whose tokens are drawn, too, which no other server can be compared with."""
    answers = [(one.shape, turn, answer) for one in asked for turn, answer in one.ddtree.items()]
    generated = [one for one in answers if one[0].endpoint.path == "/generate" and one[2].status == 200]
    assert sum(shape.is_drawn for shape, _, _ in generated) > 10
    faults = [
        (shape, Difference(turn, "", found))
        for shape, turn, answer in generated
        for found in inconsistencies(answer.body)
        if shape.row["length"] != "0"
    ]
    report_faults(faults)


def test_every_level_by_itself_is_answered_or_refused_by_name(both: Both) -> None:
    """A feature that is answered by now has its place among the shapes: take it off the list of what is refused."""
    shapes = [
        Shape(endpoint, {**off, name: level}, make_subject(0))
        for endpoint in ENDPOINTS
        for off in [{name: next(iter(factor.levels)) for name, factor in endpoint.factors.items()}]
        for name, factor in endpoint.factors.items()
        for level, value in factor.levels.items()
        if value.feature is not None
    ]
    assert len(shapes) > 40
    plain, ddtree = (ask_shapes(server.url, shapes) for server in (both.plain, both.ddtree))
    for shape, expected, found in zip(shapes, plain, ddtree, strict=True):
        features = {shape.endpoint.factors[name].levels[level].feature for name, level in shape.row.items()}
        statuses = [answers["whole"].status for answers in (expected, found)]
        assert statuses == ([200, 400] if features & REFUSED.keys() else [200, 200]), (shape.name, found)


@pytest.mark.parametrize(("path", "body"), OTHER_SHAPES, ids=lambda value: value if isinstance(value, str) else "")
def test_other_endpoints_answer_alike(path: str, body: dict[str, Any], both: Both) -> None:
    plain, ddtree = (send(server.url, path, body) for server in (both.plain, both.ddtree))
    comparison = Comparison()
    assert plain.status == ddtree.status
    assert not list(comparison.differences(plain.body, ddtree.body))
    assert comparison.num_values > 0


@pytest.mark.parametrize(("path", "body"), WITH_GRAMMARS, ids=lambda value: value if isinstance(value, str) else "")
def test_grammars_of_other_endpoints_are_answered_alike(path: str, body: dict[str, Any], both: Both) -> None:
    if "grammars" in REFUSED:
        assert send(both.ddtree.url, path, body).status == 400
    else:
        test_other_endpoints_answer_alike(path, body, both)
