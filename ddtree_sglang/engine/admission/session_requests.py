"""Requests of sessions: one that begins its session anew finds it empty.

A request with `session_params.replace` and no `rid` ends all requests of its session and takes their place. Stock
removes them from the dictionary that it walks (session/session_controller.py, `Session.create_req`), which raises in
the scheduler and ends the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.session.session_controller import Session


def clear_before_replacing(session: Session, request: TokenizedGenerateReqInput, *_args: Any, **_kwargs: Any) -> None:
    """BEFORE hook on `Session.create_req`: end the session's requests, and forget them."""
    asked = request.session_params
    if session.streaming or not asked.replace or asked.rid is not None:
        return
    for node in session.req_nodes.values():
        node.abort()
    session.req_nodes.clear()
