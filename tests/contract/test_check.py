"""The checker sees what Python would find, and names what is missing; on small packages that exist as text only."""

from __future__ import annotations

import pytest

from ddtree_sglang.contract.check import Row, mismatches
from ddtree_sglang.contract.source import Source

FILES = {
    "engine/__init__.py": "from .worker import Worker as Exported\n",
    "engine/base.py": """
class Base:
    inherited: int
    __slots__ = ("slotted",)

    def __init__(self):
        self.from_base = 1

    @property
    def size(self): ...
""",
    "engine/worker.py": """
from typing import TYPE_CHECKING, overload
from engine.base import Base
from enum import Enum
if TYPE_CHECKING:
    from elsewhere import OnlyForTyping
try:
    from fast import product
except ImportError:
    def product(a, b): ...

class Mode(Enum):
    FULL = 1

class Worker(Base):
    field: int = 0

    def __init__(self, rank):
        self.attribute = rank
        self.typed: int = 1
        self.one, self.other = 1, 2
        other.foreign = 3

    def late(this):
        this.set_late = 1

    @overload
    def run(self, one): ...
    def run(self, batch, *rest, flag=False, **options): ...

alias = product
""",
    "engine/lazy.py": "NAMES = ('made_on_demand',)\ndef __getattr__(name): ...\n",
    "engine/stars.py": "from engine.worker import *\n",
}


def problems(module: str, name: str, uses: str = "", exact: bool = False) -> list[str]:
    return mismatches([Row(module, name, uses, "our module", exact)], Source(FILES.get))


@pytest.mark.parametrize(
    ("module", "name", "uses"),
    [
        ("engine.worker", "Worker", "field attribute typed one other set_late late run"),
        ("engine.worker", "Worker", "inherited from_base size slotted"),
        ("engine.worker", "Worker.size", ""),
        ("engine.worker", "Worker.run", "batch rest flag options"),
        ("engine.worker", "Worker.__init__", "rank"),
        ("engine.worker", "Mode", "FULL"),
        ("engine.worker", "product", "a b"),
        ("engine.worker", "alias", "a b"),
        ("engine", "Exported", "field from_base"),
        ("engine", "worker", "Worker"),
        ("engine.stars", "Worker.run", "batch"),
        ("engine.lazy", "made_on_demand", ""),
    ],
)
def test_names_are_found_where_python_would_find_them(module: str, name: str, uses: str) -> None:
    assert problems(module, name, uses) == []


@pytest.mark.parametrize(
    ("module", "name", "uses", "problem"),
    [
        ("engine.gone", "Worker", "", "no module engine.gone; our module needs Worker"),
        ("engine.worker", "Gone", "", "engine.worker has no Gone; our module needs it"),
        ("engine.worker", "Worker.gone", "", "engine.worker has no Worker.gone"),
        ("engine.worker", "OnlyForTyping", "", "has no OnlyForTyping"),
        ("engine.worker", "Worker", "field foreign", "engine.worker.Worker has no ['foreign']"),
        ("engine.worker", "Worker.run", "batch one", "engine.worker.Worker.run has no ['one']"),
        ("engine.worker", "Mode", "HALF", "has no ['HALF']"),
        ("engine.lazy", "never_made", "", "has no never_made"),
        ("engine.stars", "never_made", "", "has no never_made"),
    ],
)
def test_what_is_missing_is_named_with_who_needs_it(module: str, name: str, uses: str, problem: str) -> None:
    (found,) = problems(module, name, uses)
    assert problem in found


def test_an_exact_row_wants_these_parameters_in_this_order_and_no_others() -> None:
    assert problems("engine.worker", "product", "a b", exact=True) == []
    for uses in ("b a", "a", "a b c", ""):
        (found,) = problems("engine.worker", "product", uses, exact=True)
        assert "engine.worker.product takes ['a', 'b'], not" in found


def test_a_compiled_name_is_looked_up_in_a_package_that_is_imported() -> None:
    import torch

    def compiled(name: str, when: str = "") -> list[str]:
        return mismatches([Row("torch", name, why="our module", compiled=True, when=when)])

    assert compiled("Tensor.record_stream") == []
    assert compiled("Tensor.no_such_method") == ["torch.Tensor.no_such_method does not exist; our module needs it"]
    assert compiled("ops.mkldnn.no_such_operator") != []
    assert (
        compiled("ops.mkldnn.no_such_operator", when="backends.cuda.is_built") == [] or torch.backends.cuda.is_built()
    )
    assert mismatches([Row("not_imported_package", "Gone", compiled=True)]) == []


def test_a_class_that_inherits_from_itself_ends() -> None:
    source = Source({"engine/loop.py": "class A(B): ...\nclass B(A): ...\n"}.get)
    assert mismatches([Row("engine.loop", "A", "gone")], source) != []
