"""Scenes of a target that sees: a tiny mixture of experts with Qwen3-VL's vision part."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import SMALLER
from tests.device_lane.picture_waves import behind_pictures, pictures_at_once
from tests.device_lane.scenes import Scene

BUDGET = 16
IMAGES = Scene(
    "images-flashinfer",
    "flashinfer",
    (pictures_at_once, behind_pictures),
    pair="sees",
    budget=BUDGET,
    captured=(4,),
    at_once=3,
    clear_at=(BUDGET + 1, SMALLER + 1),
    moves=True,
)
IMAGES_FA3 = replace(IMAGES, name="images-fa3", backend="fa3")
IMAGES_TRITON = replace(IMAGES, name="images-triton", backend="triton")
