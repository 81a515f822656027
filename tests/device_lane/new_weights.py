"""What is done to a server of two ranks before its requests: new weights that one rank cannot read."""

from __future__ import annotations

import base64
import pickle

from deploy.local.client import ClientError, post
from tests.device_lane.asking import LaneServer


def unreadable_weights(server: LaneServer) -> None:
    """New weights of which the second of two ranks cannot read its own: refused on both, and nothing is changed."""
    post(server.url, "/begin_weight_update", {})
    payloads = [base64.b64encode(one).decode() for one in (pickle.dumps([]), b"no pickle")]
    refused = ""
    try:
        post(server.url, "/update_weights_from_tensor", {"serialized_named_tensors": payloads})
    except ClientError as error:
        refused = str(error)
    if "cannot be read by rank 1: UnpicklingError" not in refused:
        raise ClientError(f"weights that a rank cannot read were not refused, got {refused!r}")
    post(server.url, "/end_weight_update", {})
