# SPDX-License-Identifier: MIT
"""What makes the running kernel take and give back vmalloc memory, whatever else it takes from there.

A socket's filter lies in vmalloc memory on every kernel with sockets. A task's stack lies there only if the
kernel was built so, and a small cache of stacks serves the first ones.
"""

from __future__ import annotations

import sys

__all__ = ["attach_filters"]

ATTACH_FILTERS = """
import ctypes, socket, struct, sys
accept_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))
program = struct.pack("HP", 1, ctypes.addressof(accept_all))
def attached():
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
    return one
kept = [attached() for _ in range(int(sys.argv[1]))]
"""


def attach_filters(nr: int) -> list[str]:
    """A command that makes the kernel allocate `nr` ranges and free them."""
    return [sys.executable, "-c", ATTACH_FILTERS, str(nr)]
