"""What all pages have: a head, sections, the style and the script, all in one file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from unirl_env.run.record.files import replace_text

_HERE = Path(__file__).parent


def write_page(path: Path, title: str, body: str, style: str = "") -> Path:
    """Write a page that loads nothing.

    Args:
        path: The file.
        title: What stands in the browser's tab.
        body: HTML.
        style: More style than that of all pages.

    Returns:
        `path`.
    """
    common, script = (
        (_HERE / "page.css").read_text(encoding="utf-8"),
        (_HERE / "page.js").read_text(encoding="utf-8"),
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{common}{style}</style></head>"
        f"<body><main>{body}</main><script>{script}</script></body></html>"
    )
    replace_text(path, page)
    return path


def header(title: str, facts: Sequence[str]) -> str:
    """The head of a page as HTML, from plain text."""
    items = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    return f'<header><p class="brand">unirl_env</p><h1>{html.escape(title)}</h1><ul>{items}</ul></header>'


def section(title: str, content: str, lead: str = "") -> str:
    """A section as HTML, or nothing where there is nothing to show.

    Args:
        title: Plain text.
        content: HTML.
        lead: What is to be known first, plain text.
    """
    if not content:
        return ""
    text = f'<p class="lead">{html.escape(lead)}</p>' if lead else ""
    return f"<section><h2>{html.escape(title)}</h2>{text}{content}</section>"
