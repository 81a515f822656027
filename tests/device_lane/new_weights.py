"""What is done to servers before their requests: new weights and adapters that cannot be loaded.

Each payload begins with weights that can be, all zeros, so that a server that kept any of them would answer otherwise.
"""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from deploy.local.client import ClientError, post
from tests.device_lane.asking import LaneServer
from tests.device_lane.pairs import TinyPair

_CHECKPOINT, _LAST = "model.safetensors", "lm_head.weight"
NORM = "model.norm.weight"


def failing_updates_from_tensors(server: LaneServer, pair: TinyPair) -> None:
    """New weights that one of two ranks cannot read, or load: refused on both, and nothing is changed."""
    post(server.url, "/begin_weight_update", {})
    zeros = [(name, torch.zeros(shape)) for name, shape in _shapes(pair).items()]
    wrong = [*zeros[:-1], (_LAST, torch.zeros(3, 3))]
    unknown = [*zeros, ("model.layers.0.self_attn.q_proj.bent", torch.zeros(3))]
    refused(server, tensors([], b"no pickle"), "cannot be read by rank 1: UnpicklingError")
    refused(
        server, tensors(zeros, wrong), f"cannot be loaded by rank 1: {_LAST} [3, 3] of torch.float32: AssertionError"
    )
    refused(server, tensors(unknown, zeros), "cannot be loaded by rank 0: model.layers.0.self_attn.qkv_proj.bent [3]")
    refused(server, tensors(zeros, [(_LAST, zeros[-1][1].int())]), "TypeError: weights of torch.int32 cannot be loaded")
    refused(server, tensors(*[[("nonsense", torch.zeros(3))]] * 2), "rank 1: none of them is a weight of the model")
    # Stock looks up each name, and copies by torch's rules.
    direct = tensors(zeros, [(NORM, zeros[0][1])]) | {"load_format": "direct", "selector": "target"}
    refused(server, direct, "cannot be loaded by rank")
    refused(server, {**GROUP, "group_name": ""}, "group_name must not be empty", "/init_weights_update_group")
    refused(server, {**GROUP, "world_size": 2}, "must fit into world_size", "/init_weights_update_group")
    refused(server, RECEIVED, "Group unknown not in", "/update_weights_from_distributed")
    refused(server, RECEIVED | {"dtypes": ["Tensor"]}, "dtypes must be torch's", "/update_weights_from_distributed")
    refused(server, RECEIVED | {"shapes": []}, "equally many, got 1, 1 and 0", "/update_weights_from_distributed")
    post(server.url, "/end_weight_update", {})


GROUP = {"master_address": "127.0.0.1", "master_port": 1, "rank_offset": 1, "world_size": 3}
RECEIVED = {"names": [NORM], "dtypes": ["float32"], "shapes": [[4]], "group_name": "unknown"}


def failing_checkpoints(server: LaneServer, pair: TinyPair) -> None:
    """Checkpoints that cannot be loaded, in two files each of which the second is wrong; then the server's own."""
    question = {
        "input_ids": [5, 6, 7],
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 4, "ignore_eos": True},
    }
    before = post(server.url, "/generate", question)["output_ids"]
    with tempfile.TemporaryDirectory() as folder:
        for number, (reason, last, unreadable) in enumerate(_wrong_files(pair)):
            checkpoint = Path(folder, str(number))
            _write(checkpoint, pair, last, unreadable)
            refused(server, {"model_path": str(checkpoint)}, reason, "/update_weights_from_disk")
        nowhere = {"model_path": str(Path(folder, "nowhere"))}
        refused(server, nowhere, "Failed to get weights iterator", "/update_weights_from_disk")
        after = post(server.url, "/generate", question)["output_ids"]
        if after != before:
            raise ClientError(f"checkpoints that were refused changed an answer from {before} to {after}")
        shutil.copytree(pair.model, Path(folder, "same"))
        answer = post(server.url, "/update_weights_from_disk", {"model_path": str(Path(folder, "same"))})
        if not answer["success"]:
            raise ClientError(f"the server's own weights were refused: {answer}")


def failing_adapters(server: LaneServer, pair: TinyPair) -> None:
    """Adapters that cannot be read, or fit nowhere: refused when they are loaded, not when they are used."""
    matrix = "base_model.model.model.layers.0.self_attn.o_proj.lora_{}.weight"
    size = pair.target.config.hidden_size
    good = {matrix.format("A"): torch.zeros(4, size), matrix.format("B"): torch.zeros(size, 4)}
    with tempfile.TemporaryDirectory() as folder:
        for number, (reason, changed) in enumerate(
            (
                ("does not match weight shape", {matrix.format("A"): torch.zeros(4, size - 1)}),
                ("does not match weight shape", {matrix.format("B"): torch.zeros(size, 3)}),
                ("", {matrix.format("B"): None}),
                ("", {"base_model.model.model.layers.9.self_attn.o_proj.lora_A.weight": torch.zeros(4, size)}),
                ("Error while deserializing", {}),
            )
        ):
            adapter = Path(folder, str(number))
            adapter.mkdir()
            config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["o_proj"]}
            (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
            weights = {name: one for name, one in (good | changed).items() if one is not None}
            save_file(weights, adapter / "adapter_model.safetensors")
            if not changed:
                _cut(adapter / "adapter_model.safetensors")
            body = {"lora_name": f"broken-{number}", "lora_path": str(adapter)}
            refused(server, body, reason, "/load_lora_adapter")


def refused(server: LaneServer, body: dict[str, Any], reason: str, path: str = "/update_weights_from_tensor") -> None:
    """Raise ClientError unless the answer is a 400 that gives this reason."""
    try:
        answer = post(server.url, path, body)
    except ClientError as error:
        if "400" in str(error) and reason in str(error):
            return
        answer = str(error)
    raise ClientError(f"{path} was to be refused with 400 and {reason!r}, got {answer!r}")


def tensors(*of_ranks: Any) -> dict[str, Any]:
    """A payload for each rank; bytes go as they are."""
    payloads = [one if isinstance(one, bytes) else pickle.dumps(one) for one in of_ranks]
    return {"serialized_named_tensors": [base64.b64encode(one).decode() for one in payloads]}


def _shapes(pair: TinyPair) -> dict[str, torch.Size]:
    """Of the target's weights by name; the head's comes last."""
    shapes = {name: one.shape for name, one in pair.target.state_dict().items()}
    return {**{name: shape for name, shape in shapes.items() if name != _LAST}, _LAST: shapes[_LAST]}


def _wrong_files(pair: TinyPair) -> Iterator[tuple[str, Mapping[str, torch.Tensor], bool]]:
    """Why each is refused, what its second file holds, and whether that is cut short."""
    head = torch.zeros(_shapes(pair)[_LAST])
    yield "SafetensorError", {_LAST: head}, True
    yield f"{_LAST} [3, 3] of torch.float32: AssertionError", {_LAST: torch.zeros(3, 3)}, False
    yield "weights of torch.int64 cannot be loaded into torch.float32", {_LAST: head.long()}, False
    yield "KeyError", {_LAST: head, "model.layers.0.self_attn.q_proj.bent": torch.zeros(3)}, False
    yield f"the checkpoint has no {_LAST}", {"nonsense": torch.zeros(3)}, False


def _write(checkpoint: Path, pair: TinyPair, last: Mapping[str, torch.Tensor], unreadable: bool) -> None:
    """A copy of the pair's target with all weights zero: one file of all but the head, and one of `last`."""
    shutil.copytree(pair.model, checkpoint, ignore=shutil.ignore_patterns("*.safetensors*"))
    first = {name: torch.zeros_like(one) for name, one in load_file(Path(pair.model, _CHECKPOINT)).items()}
    first.pop(_LAST)
    files = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": dict(last)}
    for file, weights in files.items():
        save_file(weights, checkpoint / file, metadata={"format": "pt"})
    index = {name: file for file, weights in files.items() for name in weights}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    if unreadable:
        _cut(checkpoint / "model-00002-of-00002.safetensors")


def _cut(file: Path) -> None:
    """Take the last bytes off."""
    file.write_bytes(file.read_bytes()[:-9])
