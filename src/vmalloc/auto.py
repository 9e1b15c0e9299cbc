# SPDX-License-Identifier: MIT
"""`import vmalloc.auto` is `vmalloc.install()`: arrays go by reference from here on."""

from vmalloc.message import install

install()
