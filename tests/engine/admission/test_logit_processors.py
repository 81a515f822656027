"""A processor that cannot be made is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import dill
import pytest
import torch

from ddtree_sglang.engine.admission.logit_processors import check_processor


class BansToken:
    """Adds -1 to a column."""

    def __call__(self, logits: torch.Tensor, params: list[Any]) -> torch.Tensor:
        logits[:, 0] = -1
        return logits


def makes_a_number() -> int:
    return 7


def cannot_be_made() -> None:
    raise LookupError("no weights")


def serialized(value: Any) -> str:
    return json.dumps({"callable": dill.dumps(value, recurse=True).hex()})


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    features = SimpleNamespace(enable_custom_logit_processor=True)
    monkeypatch.setattr("sglang.srt.runtime_context.get_exec", lambda: SimpleNamespace(features=features))
    return features


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ("{", "cannot be made: JSONDecodeError"),
        ('{"callable": 5}', "cannot be made: TypeError"),
        ('{"callable": "zz"}', "cannot be made: ValueError"),
        ('{"callable": "80"}', "cannot be made:"),
        (serialized(3), "cannot be made: TypeError"),
        (serialized(makes_a_number), "must be callable, got int"),
        (serialized(cannot_be_made), "cannot be made: LookupError: no weights"),
    ],
)
def test_what_makes_no_processor_is_refused(sent: str, named: str, enabled: SimpleNamespace) -> None:
    assert named in str(check_processor(sent))
    enabled.enable_custom_logit_processor = False
    assert check_processor(sent) is None, "SGLang refuses it, and it is not unpickled"


def test_processors_pass(enabled: SimpleNamespace) -> None:
    from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor

    assert check_processor(DisallowedTokensLogitsProcessor.to_str()) is None
    assert check_processor(serialized(BansToken)) is None
    assert check_processor(None) is None
