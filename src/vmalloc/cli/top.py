# SPDX-License-Identifier: MIT
"""`vmalloc top`: a region at work, on the whole screen."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vmalloc.cli.manners import Command, Output, Refusal, json_option, told

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from vmalloc.cli.screen import View
    from vmalloc.monitor import Look, Watcher

ONCE_WIDTH, ONCE_HEIGHT = 80, 40
ENTER, ESCAPE, DELETE = "\r\n", "\x1b", "\x7f\b"
KEY_BYTES = 64


# ---- which region ----


def _watch(which: str | None, after: Watcher | None = None) -> Watcher:
    """A region by name, pid or path; without one, that with most memory, or the one after `after`'s."""
    from vmalloc.errors import RegionUnavailable
    from vmalloc.image import attach_any
    from vmalloc.monitor import Watcher

    if which is not None:
        try:
            return Watcher(attach_any(which, readonly=True), which)
        except RegionUnavailable as error:
            raise Refusal(told(error)) from None
    for name, path in _regions(after):
        try:
            return Watcher(attach_any(path, readonly=True), name)
        except RegionUnavailable:  # ended meanwhile, or is another's
            continue
    raise Refusal("no regions; vmalloc ps says which there are")


def _regions(after: Watcher | None) -> list[tuple[str, str]]:
    """(name, path): most memory first, or behind `after`'s first, in an order that nothing changes."""
    from vmalloc.find import find_regions

    try:
        found = find_regions()
    except OSError as error:
        raise Refusal(f"regions are found by /proc, which cannot be read: {error.strerror}") from None
    if after is None:
        found.sort(key=lambda f: -f.resident_bytes)
    else:
        status = os.fstat(after.region.fileno())
        here = (status.st_dev, status.st_ino)
        found.sort(key=lambda f: ((f.device, f.inode) <= here, f.device, f.inode))
    return [(f.name or f"pid {f.pids[0]}", f.path) for f in found]


# ---- the terminal ----


@contextmanager
def _keys() -> Iterator[int]:
    """Keys come one by one and are not shown; yields a descriptor that is readable when the size changed."""
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    changed, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    old_wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    old_handler = signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        tty.setcbreak(fd)
        yield changed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, old_handler)
        signal.set_wakeup_fd(old_wakeup)
        os.close(changed)
        os.close(write)


def _wait(changed: int, until_s: float) -> str | None:
    """Keys that were pressed; "" at a new size, None when it is time for a look."""
    timeout = max(until_s - time.monotonic(), 0.0)
    ready, _, _ = select.select([sys.stdin, changed], [], [], timeout)
    if sys.stdin in ready:
        pressed = os.read(sys.stdin.fileno(), KEY_BYTES).decode(errors="replace")
        return pressed or "q"  # the terminal is gone
    if changed in ready:
        os.read(changed, KEY_BYTES)
        return ""
    return None


def _press(view: View, key: str) -> str:
    """What a key does to the view; "quit" and "next" are the caller's."""
    from vmalloc.cli.screen import SORTS

    if view.is_typing:
        if key in ENTER or key == ESCAPE:
            view.is_typing = False
            view.filter = "" if key == ESCAPE else view.filter
        elif key in DELETE:
            view.filter = view.filter[:-1]
        elif key.isprintable():
            view.filter += key
        return ""
    match key:
        case "q":
            return "quit"
        case "n":
            return "next"
        case "s":
            sorts = list(SORTS)
            view.sort = sorts[(sorts.index(view.sort) + 1) % len(sorts)]
        case "/":
            view.is_typing = True
        case "p" | " ":
            view.paused = not view.paused
        case "?" | "h":
            view.help = not view.help
        case "\x1b":
            view.help, view.filter = False, ""
        case _:
            pass
    return ""


class _Top:
    """The loop: look, draw, wait for a key."""

    def __init__(self, watcher: Watcher, interval_s: float, console: Console) -> None:
        from vmalloc.cli.screen import View

        self.watcher, self.interval_s, self.console = watcher, interval_s, console
        self.view = View()
        self._shown: list[Text] = []  # what is on the screen
        self._size = (0, 0)
        self.look: Look = watcher.look()

    def run(self) -> None:
        with ExitStack() as stack:
            changed = stack.enter_context(_keys())
            stack.enter_context(self.console.screen())
            due = time.monotonic()
            while True:
                self._draw()
                pressed = _wait(changed, due + self.interval_s)
                if pressed is None:
                    due = time.monotonic()
                    if not self.view.paused:
                        self.look = self.watcher.look()
                elif not self._obey(pressed):
                    return

    def _obey(self, pressed: str) -> bool:
        for key in pressed:
            match _press(self.view, key):
                case "quit":
                    return False
                case "next":
                    self._go_to_next()
                case _:
                    pass
        return True

    def _go_to_next(self) -> None:
        try:
            following = _watch(None, after=self.watcher)
        except Refusal as refusal:
            self.view.note = refusal.message
            return
        self.watcher.region.close()
        self.watcher, self.view.note = following, ""
        self.look = following.look()

    def _draw(self) -> None:
        from vmalloc.cli.screen import draw

        size = self.console.size
        lines = draw(self.look, self.view, *size)
        if size != self._size:
            self._shown, self._size = [], size
        self._paint(lines)
        self._shown = lines

    def _paint(self, lines: list[Text]) -> None:
        """Only lines that changed: a terminal far away gets few bytes, and this process spends little."""
        from rich.control import Control
        from rich.segment import ControlType

        with self.console:  # one write
            if not self._shown:
                self.console.control(Control.clear())
            for row, line in enumerate(lines):
                if self._shown and self._shown[row] == line:
                    continue
                self.console.control(Control.move_to(0, row), Control((ControlType.ERASE_IN_LINE, 0)))
                self.console.print(line, end="", soft_wrap=True)


def _once(watcher: Watcher, interval_s: float, output: Output) -> None:
    from vmalloc.cli.screen import View, draw

    watcher.look()
    time.sleep(interval_s)
    look = watcher.look()
    output.json(asdict(look))
    if output.json_is_alone:
        return
    width = shutil.get_terminal_size((ONCE_WIDTH, ONCE_HEIGHT)).columns
    lines = draw(look, View(), width, ONCE_HEIGHT)[:-1]
    while lines and not lines[-1].plain.strip():  # what a screen would be filled up with
        lines.pop()
    for line in lines:
        output.console.print(line, soft_wrap=True)


@click.command("top", cls=Command)
@click.argument("which", required=False)
@click.option("--once", is_flag=True, help="Print one screen and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    help="Seconds between looks.",
)
@json_option
def command(which: str | None, once: bool, interval: float, json_path: str | None) -> None:
    """Show a region at work: rates, hits by level, pools, processes, largest ranges, waits for locks.

    WHICH is a name or pid of `vmalloc ps` or a path; without it, the region with most memory. Keys: s sort,
    / filter, p pause, n next region, ? help, q quit. Nobody is disturbed: it is looked at read-only, without
    a lock and without a slot. --json needs --once.

    \b
    Examples:
      vmalloc top
      vmalloc top frames --interval 0.5
      vmalloc top frames --once --json
    """
    output = Output(json_path)
    if json_path is not None and not once:
        raise Refusal("--json is of one look: vmalloc top --once --json")
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Refusal("this needs a terminal; --once prints one screen")
    watcher = _watch(which)
    try:
        if once:
            _once(watcher, interval, output)
        else:
            _Top(watcher, interval, output.console).run()
    finally:
        watcher.region.close()
