# SPDX-License-Identifier: MIT
"""`vmalloc doctor`: what on this machine will hurt, one line each, with the command that helps."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from vmalloc.cli.manners import Command, Output, json_option

GOOD, WARN, BAD = "ok", "warn", "bad"
DESCRIPTORS_WISHED = 1024
MAPPINGS_WISHED = 65530
MIB = 1 << 20
YAMA = "/proc/sys/kernel/yama/ptrace_scope"


@dataclass
class Finding:
    """One line."""

    subject: str
    level: str  #: ok, warn (slower, or less) or bad (does not work)
    text: str
    help: str = ""  #: a command, or what to change


Check = Callable[[], Finding]


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _package() -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    from vmalloc.facts import FORMAT

    try:
        own = version("vmalloc")
    except PackageNotFoundError:
        own = "from a source tree"
    python = ".".join(map(str, sys.version_info[:3]))
    return Finding("package", GOOD, f"vmalloc {own}, region format {FORMAT}, Python {python}")


def _core() -> Finding:
    try:
        import vmalloc._core  # noqa: F401
    except ImportError as error:
        text = f"the compiled core cannot be loaded: {error}"
        return Finding("core", BAD, text, "on Linux: pip install --force-reinstall vmalloc")
    return Finding("core", GOOD, "the compiled core is loaded")


def _numpy() -> Finding:
    try:
        import numpy
    except ModuleNotFoundError:
        return Finding("numpy", WARN, "not installed: blocks only, no arrays", "pip install 'vmalloc[numpy]'")
    return Finding("numpy", GOOD, f"numpy {numpy.__version__}")


def _region() -> Finding:
    from vmalloc.errors import VmallocError
    from vmalloc.region import Region

    try:
        with Region("1M", helper=False) as region:
            block = region.alloc(1)
            block.release()
    except (VmallocError, OSError, MemoryError) as error:
        return Finding("region", BAD, f"none can be made: {error}", "see what is bad above and below")
    return Finding("region", GOOD, "one was made, used and dropped (memfd, sealing)")


def _proc() -> Finding:
    try:
        os.listdir("/proc/self/fd")
    except OSError as error:
        text = (
            f"/proc cannot be read ({error.strerror}): regions are not found by name, references not loaded"
        )
        return Finding("proc", BAD, text, "mount -t proc proc /proc")
    options = next(
        (line for line in (_read("/proc/mounts") or "").splitlines() if " /proc proc " in line), ""
    )
    if "hidepid=" in options and os.geteuid() != 0:
        text = "mounted with hidepid: other users' processes are not seen; your own are"
        return Finding("proc", GOOD, text)
    return Finding("proc", GOOD, "/proc is there, so processes of one user find each other's regions")


def _ptrace() -> Finding:
    import ctypes

    if ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) != 1:  # PR_GET_DUMPABLE
        text = "this process hides its descriptors (PR_SET_DUMPABLE): references go by a socket instead"
        return Finding("ptrace", WARN, text, "call region.serve() before the first send")
    return Finding("ptrace", GOOD, f"yama ptrace_scope {_read(YAMA) or 'none'}: "
                   "descriptors of your processes can be opened")  # fmt: skip


def _address_space() -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return Finding("ulimit -v", GOOD, "addresses are not limited")
    text = f"{limit // MIB} MiB of addresses: a region must fit, with all else"
    return Finding("ulimit -v", WARN, text, "ulimit -v unlimited, or VMALLOC_DEFAULT_SIZE=256M")


def _file_size() -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return Finding("ulimit -f", GOOD, "file sizes are not limited")
    text = f"{limit // MIB} MiB: no region can be larger"
    return Finding("ulimit -f", WARN, text, "ulimit -f unlimited")


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS_WISHED:
        return Finding("ulimit -n", WARN, f"{soft} descriptors; attaching a region takes 4", "ulimit -n 4096")
    return Finding("ulimit -n", GOOD, f"{soft} descriptors, at most {hard}")


def _mappings() -> Finding:
    text = _read("/proc/sys/vm/max_map_count")
    if text is None:
        return Finding("max_map_count", WARN, "cannot be read")
    if int(text) < MAPPINGS_WISHED:
        what = f"{text} mappings: install(private=True) and torch need many"
        return Finding("max_map_count", WARN, what, "sysctl vm.max_map_count=262144")
    return Finding("max_map_count", GOOD, f"{text} mappings")


def _memory() -> Finding:
    from vmalloc.limits import room_for_a_region

    room, limited_by = room_for_a_region()
    text = f"the default region can be {room // MIB} MiB"
    if limited_by:
        return Finding(
            "memory", WARN, f"{text}, limited by {limited_by}", "raise that limit, or plan with it"
        )
    return Finding("memory", GOOD, f"{text}: the machine's memory")


def _overcommit() -> Finding:
    if _read("/proc/sys/vm/overcommit_memory") == "2":
        text = "strict: a region's whole size may be counted at once"
        return Finding("overcommit", WARN, text, "sysctl vm.overcommit_memory=0, or smaller regions")
    return Finding("overcommit", GOOD, "pages count when they are touched")


def _pressure() -> Finding:
    if _read("/proc/pressure/memory") is None:
        text = "no PSI: memory pressure is told by what is available only"
        return Finding("PSI", WARN, text, "boot with psi=1")
    return Finding("PSI", GOOD, "memory pressure is told by the kernel")


def _huge() -> Finding:
    text = _read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if text is None:
        return Finding(
            "huge pages", GOOD, 'the kernel has none for shared memory; huge="try" changes nothing'
        )
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen in ("never", "deny"):
        what = f'shmem_enabled is {chosen}: huge="try" changes nothing'
        path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
        return Finding("huge pages", WARN, what, f"echo advise > {path}   (only if you use them)")
    return Finding("huge pages", GOOD, f"shmem_enabled is {chosen}")


def _membarrier() -> Finding:
    import ctypes
    import platform

    number = {"x86_64": 324, "aarch64": 283}.get(platform.machine())
    if number is None:
        return Finding("membarrier", WARN, f"not known on {platform.machine()}")
    commands = ctypes.CDLL(None).syscall(number, 0, 0, 0)
    global_expedited = 1 << 1
    if commands < 0 or not commands & global_expedited:
        text = "refused: what lies in other processes' magazines is taken back later"
        return Finding("membarrier", WARN, text, "let the container's seccomp profile allow membarrier")
    return Finding("membarrier", GOOD, "idle magazines of other processes can be taken back")


def _container() -> Finding:
    inside = [
        name
        for name, path in (("docker", "/.dockerenv"), ("podman", "/run/.containerenv"))
        if Path(path).exists()
    ]
    if inside:
        text = f"in {inside[0]}: processes of other containers are not seen"
        return Finding(
            "container", WARN, text, "share a folder and region.serve(PATH), or --pid=container:NAME"
        )
    return Finding("container", GOOD, "none that can be told")


def _regions() -> Finding:
    from vmalloc.overview import look_at_all

    try:
        seen = look_at_all()
    except OSError as error:
        return Finding("regions", BAD, f"cannot be looked for: {error.strerror}", "mount -t proc proc /proc")
    ill = [f"{s.name or '-'}: {s.health}" for s in seen if s.health not in ("ok",)]
    if ill:
        return Finding("regions", WARN, f"{len(seen)} open; {'; '.join(ill)}", "vmalloc ps")
    return Finding("regions", GOOD, f"{len(seen)} open, all well")


CHECKS: tuple[Check, ...] = (
    _package, _core, _numpy, _region, _proc, _ptrace, _memory, _overcommit, _address_space, _file_size,
    _descriptors, _mappings, _pressure, _huge, _membarrier, _container, _regions,
)  # fmt: skip


def examine() -> Iterator[Finding]:
    """All of it. A check that fails itself is a finding."""
    for check in CHECKS:
        try:
            yield check()
        except Exception as error:
            yield Finding(check.__name__.strip("_"), WARN, f"could not be examined: {error}")


@click.command("doctor", cls=Command)
@json_option
def command(json_path: str | None) -> None:
    """Say what on this machine will hurt, one line each, and the command that helps.

    Exit status: 0 if nothing is bad, 1 if something does not work here at all. `warn` means slower, or less.

    \b
    Examples:
      vmalloc doctor
      vmalloc doctor --json | jq '.[] | select(.level != "ok")'
    """
    from vmalloc.cli.manners import safe

    output = Output(json_path)
    colours = {GOOD: "green", WARN: "yellow", BAD: "red"}
    found: list[Finding] = []
    for finding in examine():
        found.append(finding)
        if not output.json_is_alone:
            mark = click.style(f"{finding.level:<4}", fg=colours[finding.level])
            remedy = f" → {finding.help}" if finding.help else ""
            color = False if os.environ.get("NO_COLOR") else None
            click.echo(f"{mark}  {finding.subject}: {safe(finding.text)}{remedy}", color=color)
    output.json([asdict(f) for f in found])
    raise SystemExit(1 if any(f.level == BAD for f in found) else 0)
