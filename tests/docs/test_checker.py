# SPDX-License-Identifier: MIT
"""The checker of names can fail: made-up texts, and an allow list without ballast."""

from __future__ import annotations

import pytest
from tests.docs.checker import ALLOWED, findings, unknown
from tests.docs.defined import Defined, scan_c, scan_cython, scan_python
from tests.docs.mentioned import in_file, in_markdown, in_source
from tests.docs.sources import documents
from tests.docs.test_names import SOURCES

TEXT = """\
# Made up

`vm_alloc()` is here, `vm_allocate()` is not, nor are `Region.recovery()`, `vm_pool.heads_up`, `frobnicate`,
`VM_MAGAZIN_CAP`, `gone.c`, `vmalloc check --mend`, `vmalloc chek`, `make tests`, `docs/nowhere.md`,
`errno.ENOWHERE`, `region.vanish()` and outside of code vm__never() and nowhere.c.

`Region.recover()`, `vm_pool.head`, `POOL_PAGES_MAX`, `vmalloc check --repair`, `make test TESTS=tests/api`,
`docs/design.md`, `errno.ENOENT`, `0x1f`, `--json`, `decay_va_pool_node()` and `np.ndarray` exist.

    make tset                      # a command in a block

```python
import vmalloc
from vmalloc.errors import OutOfCheese

region = vmalloc.Reggion("1G")
```
"""

WRONG = (
    "3: vm_allocate()",
    "3: Region.recovery()",
    "3: vm_pool.heads_up",
    "3: frobnicate",
    "4: VM_MAGAZIN_CAP",
    "4: gone.c",
    "4: --mend",
    "4: vmalloc chek",
    "4: make tests",
    "4: docs/nowhere.md",
    "5: errno.ENOWHERE",
    "5: region.vanish()",
    "5: vm__never()",
    "5: nowhere.c",
    "10: make tset",
    "14: OutOfCheese",
    "16: vmalloc.Reggion",
)


def test_what_does_not_exist_is_found_with_its_line_and_nothing_else_is() -> None:
    found = findings(in_markdown("made-up.md", TEXT))
    assert {line.split(" does not exist")[0] for line in found} == {f"made-up.md:{wrong}" for wrong in WRONG}


def test_a_finding_names_the_nearest_thing_that_exists() -> None:
    (found,) = findings(in_markdown("made-up.md", "`vm_aloc()`"))
    assert found == "made-up.md:1: vm_aloc() does not exist; nearest: vm_alloc"


def test_comments_are_read_and_code_is_not() -> None:
    source = (
        "/* As vm_aloc() says.\n * See `VM_POOLS_OFF`, lost.c and VM_GONE_FOR_GOOD. */\n"
        'int x = vm_nothing("y() /* z() */");\n'
    )
    found = findings(in_source("core/made_up.c", source))
    assert [line.split(" does")[0].split(":", 1)[1] for line in found] == [
        "2: lost.c",
        "1: vm_aloc()",
        "2: VM_GONE_FOR_GOOD",
    ]


def test_a_prototype_is_no_definition() -> None:
    found = Defined()
    scan_c(
        "int vm_gone(void);\nstatic int kept(int x)\n{\n    return called(x);\n}\n"
        "#define SQUARE(x) ((x) * (x))\n",
        found,
    )
    assert found.functions == {"kept", "SQUARE"}


@pytest.mark.parametrize(
    ("source", "owner", "members"),
    [
        (
            "typedef struct pond {\n    int depth, fish[3];\n    bool (*feed)(int);\n} pond_t;",
            "pond",
            "depth fish feed",
        ),
        ("typedef struct {\n    int depth;\n} pond;", "pond", "depth"),
        ("enum pond { EMPTY = 0, FULL };", "pond", "EMPTY FULL"),
    ],
)
def test_members_of_c_types_are_known(source: str, owner: str, members: str) -> None:
    found = Defined()
    scan_c(source, found)
    assert found.members[owner] == set(members.split())


def test_members_of_a_class_and_of_its_bases_are_known() -> None:
    found = Defined()
    scan_python(
        "class A:\n    x: int\n    def f(self):\n        self.y = z = 1\nclass B(A):\n    w = 2\n",
        found,
        True,
    )
    assert found.members_of("B") == {"x", "f", "y", "w"}


def test_members_of_a_cython_class_are_known() -> None:
    found = Defined()
    scan_cython(
        "cdef class Pond:\n    cdef readonly int depth\n    def feed(self, fish):\n        pass\n", found
    )
    assert found.members_of("Pond") == {"depth", "feed"}


def test_every_allowed_name_is_needed() -> None:
    mentions = [mention for path in [*documents(), *SOURCES] for mention in in_file(path)]
    needed = {name.removesuffix("()") for _, name, _ in unknown(mentions, but=())}
    assert sorted(ALLOWED.keys() - needed) == []
