# SPDX-License-Identifier: MIT
"""What mkdocs does beside its own: folders in the navigation, and links to files that are no pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]\[]*)\]\(((?:\.\./)+[^)\s#]+)(#[^)\s]*)?\)")


def pages_of(entry: str, docs: Path) -> list[str]:
    """The page, or all pages of the folder, that an entry of the navigation names."""
    if not entry.endswith("/"):
        return [entry]
    return sorted(path.relative_to(docs).as_posix() for path in (docs / entry).glob("*.md"))


def expanded(nav: list[Any], docs: Path) -> list[Any]:
    """`nav` with pages only."""
    entries: list[Any] = []
    for entry in nav:
        if isinstance(entry, str):
            entries += pages_of(entry, docs)
        else:
            entries.append({title: expanded(inner, docs) for title, inner in entry.items()})
    return entries


def on_config(config: Any) -> Any:
    config["nav"] = expanded(config["nav"], Path(config["docs_dir"]))
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link out of the documents leads to a file that the site does not have: it is named."""
    folder = posixpath.dirname(page.file.src_uri)

    def named(at: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, at[2]))
        return at[0] if path.startswith("docs/") else f"{at[1]} (`{path}`)"

    return LINK.sub(named, markdown)
