# SPDX-License-Identifier: MIT
"""`python -m vmalloc.cli` is the `vmalloc` command."""

from vmalloc.cli import main

main(prog_name="vmalloc")
