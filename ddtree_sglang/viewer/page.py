"""The page: one file with its style, its script and its data, which asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

SCRIPTS = ("basics.js", "tree.js", "parts.js", "course.js", "page.js")
"""One script in the page, in this order."""


def page(data: Mapping[str, Any], title: str) -> str:
    """The HTML. The browser is told to run this script and this style alone, whatever a token says."""
    style, script = _part("page.css"), "\n".join(map(_part, SCRIPTS))
    filled = {
        "title": escape(title),
        "style": style,
        "script": script,
        "policy": f"script-src {_hash(script)}; style-src {_hash(style)}",
        "data": embedded_json(data),
    }
    # One pass: what is filled in is not looked through again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found.group(1)], _part("page.html"))


def embedded_json(data: Mapping[str, Any]) -> str:
    """JSON for a script element: without a `<`, no text in it can end the element or begin a comment."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    return files("ddtree_sglang.viewer").joinpath("assets", name).read_text(encoding="utf-8")
