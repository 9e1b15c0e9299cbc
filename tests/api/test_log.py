# SPDX-License-Identifier: MIT
"""The log: silent unless asked for; then recovery, refusals, and what went by value."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import warnings
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

import vmalloc

REFUSED = """
import vmalloc
region = vmalloc.Region("1M")
try: region.alloc(1 << 30)
except vmalloc.OutOfPages: pass
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("before", ["", "import logging\n"], ids=["not imported", "not set up"])
def test_without_logging_set_up_nothing_is_said(before: str) -> None:
    done = run(before + REFUSED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_logging_is_not_imported_for_it() -> None:
    assert run(REFUSED + "import sys; assert 'logging' not in sys.modules").stderr == ""


def test_a_refusal_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    region = vmalloc.Region("1M", helper=False)
    with caplog.at_level(logging.INFO, "vmalloc"), pytest.raises(vmalloc.OutOfPages):
        region.alloc(2 << 20)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("vmalloc", "INFO")
    assert record.getMessage().startswith("OutOfPages: 512 pages requested (2 MiB); ")


def test_a_mistake_of_the_program_is_no_refusal(caplog: pytest.LogCaptureFixture) -> None:
    region = vmalloc.Region("1M", helper=False)
    with caplog.at_level(logging.DEBUG, "vmalloc"), pytest.raises(KeyError):
        region["nothing of that name"]
    assert not caplog.records


def test_what_goes_by_value_for_want_of_room_is_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    region = vmalloc.Region("1M", helper=False)
    vmalloc.install(region, on_full="copy")
    try:
        with caplog.at_level(logging.DEBUG, "vmalloc"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(2):
                ForkingPickler.dumps(np.zeros(2 << 20, "u1"))
    finally:
        vmalloc.uninstall()
    assert [r.levelname for r in caplog.records] == ["WARNING", "DEBUG"]
    assert all(r.getMessage().startswith("arrays go by value until") for r in caplog.records)


def test_recovery_is_told_by_who_does_it_and_by_who_looks(caplog: pytest.LogCaptureFixture) -> None:
    region = vmalloc.Region("16M", name=f"log-{os.getpid()}", helper=False)
    code = (
        "import sys, vmalloc; r = vmalloc.Region.attach(sys.argv[1], helper=False); b = r.alloc(8 * 4096);"
        "print(1, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, region.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "1\n"
        child.send_signal(signal.SIGKILL)
    with caplog.at_level(logging.INFO, "vmalloc"):
        assert region.recover() >= 8 * 4096
        region.stats()
        region.stats()
    first, second = (r.getMessage() for r in caplog.records)
    assert first.startswith("recovered ")
    assert second.endswith(" pages of processes that died were recovered, " + second.split()[0] + " in all")


def test_a_handler_that_fails_does_not_spoil_a_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError

    logger, broken = logging.getLogger("vmalloc"), Broken()
    logger.addHandler(broken)
    try:
        with caplog.at_level(logging.INFO, "vmalloc"), pytest.raises(vmalloc.OutOfPages):
            vmalloc.Region("1M", helper=False).alloc(1 << 30)
    finally:
        logger.removeHandler(broken)
