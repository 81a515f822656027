"""The page: one file with its style, its script and its data, which asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
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


def still_page(title: str, sections: Sequence[str]) -> str:
    """A page in the same style that runs no script: `sections` are HTML, whoever makes them escapes what is text."""
    style = _part("page.css")
    policy = f"default-src 'none'; style-src {_hash(style)}"
    body = "\n".join(f"<section>{section}</section>" for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1></header>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first one the head, as an HTML table that scrolls where it is too wide."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows[1:]]
    filled = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{filled}</tbody></table></div>'


def embedded_json(data: Mapping[str, Any]) -> str:
    """JSON for a script element: without a `<`, no text in it can end the element or begin a comment."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    return files("ddtree_sglang.viewer").joinpath("assets", name).read_text(encoding="utf-8")
