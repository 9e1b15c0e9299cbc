# SPDX-License-Identifier: MIT
"""Links and references to sections between documents lead somewhere."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

import pytest
from tests.docs import comments
from tests.docs.sources import ROOT, documents, matching, text

LINK = re.compile(r"(?<!!)\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
SECTION = re.compile(r"(?:\]\(|\b)((?:docs/)?[\w-]+\.md)\)?,\s+(?:section\s+)?(\d+)\b")


def anchors(document: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    prose = re.sub(r"(?ms)^```.*?^```", "", document)
    titles = re.findall(r"(?m)^#+ (.+)$", prose)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _prose(document: str) -> str:
    """The document without its code; lines stay where they are."""
    return re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", lambda at: re.sub(r"[^\n]", " ", at[0]), document)


def broken(path: str, document: str) -> Iterator[str]:
    """A line for each relative link that leads nowhere."""
    for at in LINK.finditer(_prose(document)):
        target, _, anchor = (at[1] or at[2]).partition("#")
        if re.match(r"\w+:", target):
            continue
        where = f"{path}:{document.count(chr(10), 0, at.start()) + 1}"
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else path
        if target and not (ROOT / file).exists():
            yield f"{where}: {target} does not exist"
        elif anchor and anchor not in anchors(text(file) if target else document):
            yield f"{where}: {file} has no heading #{anchor}"


def missing_sections(path: str, prose: str, first: int = 1) -> Iterator[str]:
    """A line for each "design.md, section 8" where there is none; `first` is the number of the first line."""
    for at in SECTION.finditer(prose):
        file = next((p for p in documents() if p == at[1] or p.endswith(f"/{at[1]}")), None)
        if file is None or not re.search(rf"(?m)^## {at[2]}\. ", text(file)):
            yield f"{path}:{first + prose.count(chr(10), 0, at.start())}: {at[1]} has no section {at[2]}"


@pytest.mark.parametrize("path", documents())
def test_a_link_leads_somewhere(path: str) -> None:
    found = [*broken(path, text(path)), *missing_sections(path, text(path))]
    assert not found, "\n" + "\n".join(found)


def test_sections_that_comments_refer_to_exist() -> None:
    found = [
        line
        for path in matching("*.c", "*.h")
        for first, prose in comments.of_c(text(path))
        for line in missing_sections(path, prose, first)
    ]
    assert not found, "\n" + "\n".join(found)


def test_a_link_that_leads_nowhere_is_found() -> None:
    document = (
        "# Top\n[a](README.md) [b](gone.md) [c](#top) [d](#bottom)\n"
        "`[e](code.md)` [f](README.md#map-of-the-tree)\n[g](README.md#no-map) [h](https://example.org/x)\n"
    )
    assert list(broken("made-up.md", document)) == [
        "made-up.md:2: gone.md does not exist",
        "made-up.md:2: made-up.md has no heading #bottom",
        "made-up.md:4: README.md has no heading #no-map",
    ]


def test_a_section_that_is_gone_is_found() -> None:
    prose = "see [design.md](docs/design.md), section 1,\nand docs/design.md, 99"
    assert list(missing_sections("x.c", prose)) == ["x.c:2: docs/design.md has no section 99"]
