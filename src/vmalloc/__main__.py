# SPDX-License-Identifier: MIT
"""`python -m vmalloc` is the command `vmalloc`."""

from vmalloc.cli import main

main(prog_name="vmalloc")
