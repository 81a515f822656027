"""The table as a document, one part of it for each question that a reader has."""

from __future__ import annotations

from collections import Counter
from itertools import product

from tests.architecture import ROOT
from tests.device_lane.catalogue import SCENES, SLOW_SCENES
from tests.support.drafters import DRAFTERS, PAIR_FEATURES
from tests.support.families import FAMILIES
from tests.support.others import OTHERS
from tests.support.pairs_document import pairs_section
from tests.support.table import (
    BACKENDS,
    ENGINE,
    FEATURES,
    GREEDY,
    REQUESTS,
    Cell,
    Refused,
    Shown,
    cells,
    refused_target,
    scene,
)

DOCUMENT = ROOT / "ddtree_sglang/docs/support.md"
_FROM = "../../"
NEEDED_BY = "tests/device_lane/test_refusals_are_needed.py"
SCENES_BY_NAME = {one.name: one for one in (*SCENES, *SLOW_SCENES)}
SLOW = frozenset(one.name for one in SLOW_SCENES)
"""Scenes that CI's runs leave out."""
UNSHOWN = "need not shown"
"""Of a refusal that is not SGLang's, and of which nothing shows what would go wrong without it."""

HEAD = (
    "# What is supported\n\n"
    "Written by `python -m tests.support` from one list, [tests/support/table.py](../../tests/support/table.py). Tests "
    "run the list: each test that is\nnamed exists and is run, each refusal is provoked with the arguments of its row, "
    "and no other target is refused. A cell is one of\n\n"
    "* a test that shows it; a *slow* one is not in CI's runs, and somebody has to ask for it,\n"
    "* **refused**, with words of the message that the server ends with; *needed* names a scene that was seen to go "
    "wrong with the refusal taken away,\n  or a test of what SGLang would do; "
    f"*{UNSHOWN}*: there is neither, so that it might be served rightly without,\n"
    "* not run: nobody has tried.\n\n"
    "`ddtree_cpu` is the CPU platform, with real servers. `triton`, `flashinfer` and `fa3` run in the "
    "[device lane](../../tests/device_lane/__init__.py), on a\nmachine without a GPU: SGLang's own scheduler and "
    "backends, Triton's interpreter, stand-ins for other kernels. On a GPU\n"
    "[guarantees.md](guarantees.md#not-shown) says what ran; no cell here stands for it.\n"
)


def label(test: str) -> str:
    """A short name of a test: a scene's own, else the function's."""
    name = test.partition("::")[2]
    if name.startswith("test_scene["):
        return f"scene {name[len('test_scene[') : -1]}"
    return name if " " not in name else name.partition("[")[0]


def scene_of(cell: Shown) -> str | None:
    """The lane's scene that a cell names."""
    file, _, name = cell.test.partition("::test_scene[")
    return name.removesuffix("]") if file == "tests/device_lane/test_scenes.py" else None


def note_of(cell: Shown) -> str:
    """A cell's own note, and whether its scene is slow."""
    slow = "slow" if scene_of(cell) in SLOW else ""
    return ", ".join(filter(None, (cell.note, slow)))


def render(cell: Cell) -> str:
    """A cell of a Markdown table."""
    if isinstance(cell, Refused):
        by = " by SGLang" if cell.by_sglang else ""
        return f"**refused**{by}: {cell.why}{'' if cell.by_sglang else _need(cell.needed)}"
    note = note_of(cell)
    return f"[{label(cell.test)}]({_FROM}{cell.test.partition('::')[0]})" + (f" ({note})" if note else "")


def _need(name: str) -> str:
    """A link to what goes wrong without a refusal: a scene of the lane, or a test by its id; or that there is none."""
    if not name:
        return f" ({UNSHOWN})"
    test = name if "::" in name else f"{NEEDED_BY}::{name}"
    return f" ([needed: {label(test)}]({_FROM}{test.partition('::')[0]}))"


def document() -> str:
    """The whole text."""
    features = [_features("Requests", REQUESTS), _features("Engine", ENGINE)]
    parts = [HEAD, _targets(), _others(), _drafters(), *features, pairs_section(SLOW), _counts()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _once(row: list[str]) -> list[str]:
    """The same refusal all along a row is written once."""
    return [row[0], *['"'] * (len(row) - 1)] if len(set(row)) == 1 and "**refused**" in row[0] else row


def _targets() -> str:
    rows = []
    for name, family in FAMILIES.items():
        found = [_joined(cells(name, backend, GREEDY)) for backend in BACKENDS]
        classes = f"`{family.architecture}`"
        if family.text_alone:
            classes += f", or `{family.text_alone}`, without adapters"
        rows.append([f"{name} ({classes})", family.state, *_once(found)])
    text = (
        "## Targets\n\nGreedy answers, token for token plain decoding's. A family that is refused is refused whatever "
        "is asked of it.\n"
    )
    return f"{text}\n{_table(('family', 'layers', *(f'`{name}`' for name in BACKENDS)), rows)}"


def _others() -> str:
    by_fate: dict[tuple[str, str], list[str]] = {}
    for name, other in sorted(OTHERS.items(), key=lambda found: found[1].is_refused):
        fate = "**refused**" if other.is_refused else "admitted, not run"
        if other.scene:
            fate = f"text alone: {render(scene(other.scene))} on `{SCENES_BY_NAME[other.scene].backend}`"
        by_reading = "" if other.is_refused or other.model_type else "; by reading"
        need = _need(other.needed) if other.is_refused else ""
        by_fate.setdefault((fate, other.why + by_reading + need), []).append(f"`{name}`")
    text = (
        "## Other classes that SGLang's chain serves\n\nThe rest of those whose class in SGLang hands states to a "
        "block drafter; [a test](../../tests/support/test_others.py) finds each of\nthem. Admitted are those whose "
        "layers read a token, its position and the keys that a mask shows, by a kind of attention that a\nfamily above "
        "was shown with, where that family is served. Its kind and the windows are what SGLang reads of the class's "
        "own configuration;\n*by reading*: there is none here, and only its code was read. Nobody has run them but "
        "where a scene is named, and no image was sent to any.\n"
    )
    rows = [[", ".join(names), fate, why] for (fate, why), names in by_fate.items()]
    return f"{text}\n{_table(('class', 'DDTREE', 'attention, or words of the refusal'), rows)}"


def _drafters() -> str:
    rows = []
    for name, drafter in DRAFTERS.items():
        is_refused = any(isinstance(cell, Refused) for cell in drafter.cells)
        of_features = ["" if is_refused else _with(drafter.refused_with.get(feature)) for feature in PAIR_FEATURES]
        rows.append([name, f"`{drafter.architecture}`", drafter.scores, _joined([*drafter.cells]), *of_features])
    text = (
        "## Drafters\n\nWhat a candidate's score depends on, and which test serves a drafter of the kind, with weights "
        "that are random or trained for seconds. What is\nrefused with a kind is refused with every target.\n"
    )
    head = ("kind", "class", "a score depends on", "greedy answers", *(f"with {feature}" for feature in PAIR_FEATURES))
    return f"{text}\n{_table(head, rows)}"


def _with(refused: Refused | None) -> str:
    return "as the tables below say" if refused is None else render(refused)


def _features(title: str, names: tuple[str, ...]) -> str:
    text = f"## {title}\n\nFamilies that a test has shown it for, by backend; with the others it was not run.\n"
    rows = [[name, *_once([_by_family(name, backend) for backend in BACKENDS])] for name in names if name != GREEDY]
    return f"{text}\n{_table(('', *(f'`{name}`' for name in BACKENDS)), rows)}"


def _by_family(feature: str, backend: str) -> str:
    """Each family that the rows speak of; of those that are refused as targets, nothing."""
    served = [name for name in FAMILIES if refused_target(name, backend) is None]
    found = {name: cells(name, backend, feature) for name in served}
    refusals = {cell for one in found.values() for cell in one if isinstance(cell, Refused)}
    if len(refusals) == 1 and all(any(isinstance(cell, Refused) for cell in one) for one in found.values()):
        return render(refusals.pop())
    return "; ".join(f"{name}: {_joined(one)}" for name, one in found.items() if one) or "not run"


def _joined(found: list[Cell]) -> str:
    refusals = [cell for cell in found if isinstance(cell, Refused)]
    return ", ".join(render(cell) for cell in (refusals[:1] or found)) or "not run"


def kind(family: str, backend: str, feature: str) -> str:
    """ "shown", "refused" or "not run"."""
    found = cells(family, backend, feature)
    if any(isinstance(cell, Refused) for cell in found):
        return "refused"
    return "shown" if any(isinstance(cell, Shown) for cell in found) else "not run"


def _counts() -> str:
    counts = Counter(kind(*names) for names in product(FAMILIES, BACKENDS, FEATURES))
    return (
        f"## In numbers\n\nOf {sum(counts.values())} combinations of a family, a backend and a feature "
        f"{counts['shown']} are shown, {counts['refused']} refused and {counts['not run']} not run.\nMost features "
        "have nothing to do with the family, which is why each is not run with each."
    )
