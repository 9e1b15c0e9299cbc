# SPDX-License-Identifier: MIT
"""Children made by fork that the tests drive step by step, and what must be left of them: nothing."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.conftest import PAGE, assert_at_rest

import vmalloc


@contextmanager
def region_for_children(**options: Any) -> Iterator[vmalloc.Region]:
    """64 MiB of which nothing may be left when the test is over."""
    region = vmalloc.Region("64M", **options)
    yield region
    assert_left(region)


def assert_left(region):
    """Once the children are gone nothing is left of them."""
    gc.collect()
    region.recover()
    assert region.stats().busy_pages == 0
    assert region.stats().nr_leases == 0
    assert region.stats().nr_processes == 1
    assert_at_rest(region)


class Forked:
    """A child that runs `work` when told to, and this process's end of the talk."""

    def __init__(self, work):
        told, self.tell = os.pipe()
        self.answer, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self.tell)
                work(lambda: os.read(told, 1) or os._exit(3), lambda: os.write(answers, b"."))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(told)
        os.close(answers)

    def go(self):
        """Let it pass its next wait."""
        os.write(self.tell, b".")

    def wait_for_answer(self):
        assert os.read(self.answer, 1) == b"."

    def end(self):
        """Its exit code."""
        os.close(self.tell)
        os.close(self.answer)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def forked(work):
    """The exit code of a child that runs `work()`."""
    return Forked(lambda wait, say: work()).end()


def fill_anew(region, nr_pages):
    """Take whatever is free and write to it."""
    taken = []
    try:
        while True:
            taken.append(region.full(nr_pages * PAGE, 0xEE, "u1"))
    except vmalloc.OutOfPages:
        return taken


def nr_slots(region):
    region.recover()
    return region.stats().nr_processes
