# SPDX-License-Identifier: MIT
"""Channel: each message's leases know where its bytes are, so that none is kept that nobody can load.

The methods here take the place of multiprocessing's while install() is in force. Those that pickle for a
connection say so first, and the leases made meanwhile are born with its number; those that write and read
bytes look for references in them, so whatever pickled a message, and whoever passes its bytes on, the leases
know. Those that read and load at once tell when that failed: the bytes are lost then, so their leases end.
core/share/channel.c says what that is good for. A connection's number is asked for once.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.pool import Pool
from multiprocessing.queues import Queue, SimpleQueue
from typing import Any

from vmalloc._core import (
    NUMBER,
    attached,
    channel_of,
    holds_id,
    pickle_for,
    putting,
    receiving,
    send_bytes,
    wrapped,
)
from vmalloc.attach import attach_where, kept_ids, kept_where
from vmalloc.region import Region
from vmalloc.window import keep_leases_in

__all__ = [
    "SEND_BYTES",
    "WRAPPERS",
    "keep_unattached",
    "number_of",
]

SEND_BYTES = (Connection, "_send_bytes")


def number_of(connection: Connection[Any, Any]) -> int:
    """Of its channel, for leases; 0: it has none, or none yet."""
    told: int = connection.__dict__.get(NUMBER, 0)
    return told if told > 0 else _ask_number(connection, -told)


def _ask_number(connection: Connection[Any, Any], nr_messages: int) -> int:
    """One that is not accepted yet has a number later: asked for at messages 1, 2, 4, 8 and so on."""
    number = 0
    if (nr_messages & (nr_messages + 1)) == 0 and not connection.closed:
        number = channel_of(connection.fileno())
    connection.__dict__[NUMBER] = number or -nr_messages - 1
    return number


def _feed(items: Any, notempty: Any, send_bytes: Callable[..., None], *others: Any) -> None:
    """Queue._feed: a thread that does nothing else."""
    writer: Connection[Any, Any] | None = getattr(send_bytes, "__self__", None)
    pickle_for(number_of(writer) if isinstance(writer, Connection) else 0)
    wrapped[Queue, "_feed"].__func__(items, notempty, send_bytes, *others)


def _can_attach(id: bytes) -> bool:
    """Attaches a region that this process was given at its start and did not need before."""
    where = kept_where(id)
    try:
        if where is None:
            return False
        attach_where(where, Region)
    except (OSError, MemoryError):
        return False
    return True


def keep_unattached(message: memoryview) -> None:
    """Of a message that was read: leases of regions that this process was given and cannot attach."""
    for id in kept_ids():
        if id not in attached and holds_id(message, id) and not _can_attach(id):
            keep_leases_in(message, id)  # it will receive a copy


def _terminate_pool(cls: type[Pool], taskqueue: Any, inqueue: Any, outqueue: Any, *others: Any) -> None:
    """Pool._terminate_pool, after which nobody reads these two, though the pool's object may live on."""
    wrapped[Pool, "_terminate_pool"].__func__(cls, taskqueue, inqueue, outqueue, *others)
    for queue in (inqueue, outqueue):
        if type(queue) is SimpleQueue:
            queue.close()


_Connection: Any = Connection.__mro__[1]  # whose recv() all connections have

WRAPPERS: dict[tuple[Any, str], Any] = {
    (SimpleQueue, "put"): putting(SimpleQueue),
    (SimpleQueue, "get"): receiving(SimpleQueue, "get"),
    (Queue, "get"): receiving(Queue, "get"),
    (_Connection, "recv"): receiving(_Connection, "recv"),
    (Queue, "_feed"): staticmethod(_feed),
    (Pool, "_terminate_pool"): classmethod(_terminate_pool),
    SEND_BYTES: send_bytes,
}
