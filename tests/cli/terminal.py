# SPDX-License-Identifier: MIT
"""A program in a real terminal: a pty of some size, and what is on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from types import TracebackType

_SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b[()][A-Z0-9]|([\x00-\x1f])|([^\x00-\x1f\x1b]+)")
PATIENCE_S = 60


class Screen:
    """What a terminal shows of the sequences that programs of ours send; anything else is an error."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.is_alternate = False
        self.is_cursor_shown = True
        self.row = self.column = 0
        self.clear()

    def clear(self) -> None:
        self.cells = [[" "] * self.width for _ in range(self.height)]

    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.cells]

    def feed(self, text: str) -> None:
        at = 0
        for match in _SEQUENCE.finditer(text):
            assert match.start() == at, f"not understood: {text[at : match.start()]!r}"
            at = match.end()
            if match[2]:
                self._control(match[1], match[2])
            elif match[3]:
                self._move(match[3])
            elif match[4]:
                self._write(match[4])
        assert at == len(text), f"not understood: {text[at:]!r}"

    def _control(self, numbers: str, letter: str) -> None:
        match letter:
            case "m":
                pass
            case "H":
                row, _, column = numbers.partition(";")
                self.row, self.column = int(row or 1) - 1, int(column or 1) - 1
            case "J" if numbers == "2":
                self.clear()
            case "K":
                start, end = (self.column, self.width) if numbers in ("", "0") else (0, self.width)
                self.cells[self.row][start:end] = " " * (end - start)
            case "h" | "l" if numbers == "?1049":
                self.is_alternate = letter == "h"
                self.clear()
            case "h" | "l" if numbers == "?25":
                self.is_cursor_shown = letter == "h"
            case _:
                raise AssertionError(f"not understood: {numbers}{letter}")

    def _move(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row = min(self.row + 1, self.height - 1)

    def _write(self, text: str) -> None:
        for character in text:
            assert self.column < self.width, f"a line does not fit: {text!r}"
            self.cells[self.row][self.column] = character
            self.column += 1


class Terminal:
    """Runs `words`; a context manager that ends them."""

    def __init__(self, words: list[str], width: int, height: int, **env: str) -> None:
        self.screen = Screen(width, height)
        self.fd, theirs = pty.openpty()
        self._tell_size(width, height)
        self._pending = b""
        self.settings = termios.tcgetattr(self.fd)
        names = os.environ | {"TERM": "xterm-256color"} | env
        for name in ("COLUMNS", "LINES"):
            names.pop(name, None)
        self.process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=names, start_new_session=True
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)

    def _tell_size(self, width: int, height: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def resize(self, width: int, height: int) -> None:
        self.screen = Screen(width, height)
        self._tell_size(width, height)
        self.process.send_signal(signal.SIGWINCH)

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def until(self, is_so: Callable[[Screen], bool]) -> list[str]:
        """Lines of the screen when it `is_so`."""
        end = time.monotonic() + PATIENCE_S
        while not is_so(self.screen):
            assert time.monotonic() < end, "\n".join(self.screen.lines())
            self.read()
        return self.screen.lines()

    def until_text(self, text: str) -> list[str]:
        return self.until(lambda screen: any(text in line for line in screen.lines()))

    def until_end(self) -> int:
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < end
            self.read()
        self.read()
        return self.process.returncode

    def read(self) -> None:
        """What came meanwhile, or comes in a moment."""
        text = b""
        try:
            while select.select([self.fd], [], [], 0 if text else 0.05)[0]:
                text += os.read(self.fd, 1 << 16)
        except OSError:  # EIO: nobody has the other side
            pass
        self._pending += text
        whole = _whole(self._pending)
        self.screen.feed(whole.decode())
        self._pending = self._pending[len(whole) :]


def _whole(data: bytes) -> bytes:
    """Without a sequence or a letter at the end that is not all there yet."""
    cut = re.search(rb"\x1b(\[[?0-9;]*)?$|[\xc0-\xff][\x80-\xbf]*$", data)
    if cut is None:
        return data
    try:
        cut[0].decode()
        return data if cut[0][:1] != b"\x1b" else data[: cut.start()]
    except UnicodeDecodeError:
        return data[: cut.start()]
