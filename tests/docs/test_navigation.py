# SPDX-License-Identifier: MIT
"""The site that `make docs` builds: every page stands in its navigation, once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tests.docs.sources import ROOT, matching, text

NAV = re.compile(r"(?ms)^nav:\n(.*)\Z")
ENTRY = re.compile(r"(?m)^ +- ([\w./-]+)$")


def navigated() -> Iterator[str]:
    """Pages by the lines of `nav` in mkdocs.yml; a folder stands for all of its pages."""
    nav = NAV.search(text("mkdocs.yml"))
    assert nav is not None
    for entry in ENTRY.findall(nav[1]):
        if entry.endswith("/"):
            yield from (p.removeprefix("docs/") for p in matching(f"docs/{entry}*.md"))
        else:
            yield entry


def test_every_page_is_in_the_navigation_once() -> None:
    pages = Counter(path.removeprefix("docs/") for path in matching("docs/*.md"))
    assert Counter(navigated()) == pages, "mkdocs.yml and docs/ differ"


def test_every_page_begins_with_its_title() -> None:
    found = [path for path in matching("docs/*.md") if not text(path).startswith("# ")]
    assert found == []


def test_the_reference_names_what_there_is() -> None:
    import vmalloc

    named = {at.rpartition(".")[2] for at in re.findall(r"(?m)^::: vmalloc\.([\w.]+)$", text("docs/api.md"))}
    errors = {name for name in vmalloc.__all__ if vmalloc._HOME.get(name) is None and name[0].isupper()}
    assert set(vmalloc.__all__) - errors == named - {"errors"}
    assert (ROOT / "src/vmalloc/errors.py").is_file()
