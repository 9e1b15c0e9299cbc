# SPDX-License-Identifier: MIT
"""`vmalloc hold`: a keeper, so that a region outlives the restart of everybody else."""

from __future__ import annotations

import os
import signal
import socket

import click

from vmalloc.cli.manners import Command, Output, Refusal, Size, json_option, told


def _tell_systemd(state: str) -> None:
    """What its C library does, if systemd started us with Type=notify."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
            there.connect("\0" + address[1:] if address.startswith("@") else address)
            there.send(state.encode())


@click.command("hold", cls=Command)
@click.argument("name")
@click.option("--size", type=Size(), default="8G", show_default=True, help="If it is made here.")
@click.option("--limit", type=Size(), help="If it is made here: bytes that may be handed out at once.")
@click.option(
    "--socket", "path", metavar="PATH", help="Also hand it out there, for Region.attach('unix:PATH')."
)
@click.option(
    "--allow-uid", "uids", type=click.IntRange(min=0), multiple=True, help="Also to this user, by the socket."
)
@json_option
def command(
    name: str, size: int, limit: int | None, path: str | None, uids: tuple[int, ...], json_path: str | None
) -> None:
    """Keep the region called NAME alive until SIGTERM or Ctrl-C; make it if it is not there.

    What has a name in it (region["model"] = array) stays while all other processes restart. The keeper's
    helper gives back what nobody uses and recovers the dead. Others: Region.open_or_create(NAME).

    \b
    Examples:
      vmalloc hold frames --size 2G
      vmalloc hold frames --size 2G --socket /run/frames/region.sock
    """
    from vmalloc.region import Region

    if uids and path is None:
        raise Refusal("--allow-uid goes with --socket")
    output = Output(json_path)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        region = Region.open_or_create(name, size, limit=limit)
        if path is not None:
            region.serve(path, allow_uids=uids)
    except ValueError as error:  # no name for a region, or a path too long
        raise Refusal(told(error)) from None
    holding = {"name": name, "pid": os.getpid(), "id": region.id, "size": region.size, "socket": path}
    output.json(holding)
    click.echo(f"holding {name} ({region.size >> 20} MiB), pid {os.getpid()}", err=output.json_is_alone)
    _tell_systemd("READY=1")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    _tell_systemd("STOPPING=1")
    region.close()
