# SPDX-License-Identifier: MIT
"""iceoryx2: a sample is loaned from the publisher's segment, filled in place and read in place.

A pipe wakes the other side, as for the hand-written rings it competes with; iceoryx2 itself would be polled.
"""

from __future__ import annotations

import ctypes
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import iceoryx2 as iox2  # pyright: ignore[reportMissingImports]
import numpy as np

from vmalloc.bench.peers.peer import Array, Other, Peer, TaskPeer, fill, read

__all__ = ["SampleQueue", "SampleTask"]


class _Port:
    """One service per size: a publisher or a subscriber of slices of bytes."""

    def __init__(self, prefix: str) -> None:
        iox2.set_log_level(iox2.LogLevel.Error)
        config = iox2.config.default()
        config.global_cfg.prefix = iox2.FileName.new(prefix)
        config.global_cfg.root_path = iox2.Path.new(tempfile.gettempdir())
        self._node = (
            iox2.NodeBuilder.new()
            .config(config)
            .signal_handling_mode(iox2.SignalHandlingMode.Disabled)
            .create(iox2.ServiceType.Ipc)
        )
        self._ports: dict[tuple[str, int], Any] = {}

    def _service(self, nbytes: int) -> Any:
        return (
            self._node.service_builder(iox2.ServiceName.new(f"bench/{nbytes}"))
            .publish_subscribe(iox2.Slice[ctypes.c_uint8])
            .payload_alignment(iox2.Alignment.new(64))
            .max_publishers(1)
            .max_subscribers(1)
            .open_or_create()
        )

    def publisher(self, nbytes: int) -> Any:
        """The port that sends arrays of this size."""
        key = ("publisher", nbytes)
        if key not in self._ports:
            self._ports[key] = (
                self._service(nbytes).publisher_builder().initial_max_slice_len(nbytes).create()
            )
        return self._ports[key]

    def subscriber(self, nbytes: int) -> Any:
        """The port that gets arrays of this size; nothing sent before it exists arrives."""
        key = ("subscriber", nbytes)
        if key not in self._ports:
            self._ports[key] = self._service(nbytes).subscriber_builder().create()
        return self._ports[key]

    def send(self, nbytes: int, seed: int) -> None:
        """Loan, fill in place, send."""
        sample = self.publisher(nbytes).loan_slice_uninit(nbytes)
        fill(_view(sample.payload_ptr, nbytes), seed)
        sample.assume_init().send()

    def receive(self, nbytes: int) -> Any:
        """The sample that was sent."""
        sample = self.subscriber(nbytes).receive()
        if sample is None:
            raise RuntimeError("the pipe said that a sample was sent, and there is none")
        return sample


def _view(address: int, nbytes: int) -> Array:
    return np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)), np.uint64)


def _answer(pipe: Connection, prefix: str) -> None:
    port = _Port(prefix)
    while True:
        what, nbytes, _ = pipe.recv()
        if what == "meet":
            port.subscriber(nbytes)
            pipe.send(None)
            continue
        sample = port.receive(nbytes)
        checksum = read(_view(sample.payload_ptr, nbytes))
        del sample
        pipe.send(checksum)


def _produce_for(pipe: Connection, prefix: str) -> None:
    port = _Port(prefix)
    while True:
        what, nbytes, seed = pipe.recv()
        if what == "send":
            port.send(nbytes, seed)
        pipe.send(None)


class SampleQueue(Peer):
    """Publisher here, subscriber there."""

    def start(self) -> None:
        self._port = _Port(self.prefix)
        self._other = Other(self.context, _answer, self.prefix)
        self._met: set[int] = set()

    def hand_over(self, nbytes: int, seed: int) -> int:
        if nbytes not in self._met:
            self._other.pipe.send(("meet", nbytes, 0))
            self._other.pipe.recv()
            self._met.add(nbytes)
        self._port.send(nbytes, seed)
        self._other.pipe.send(("sent", nbytes, 0))
        checksum: int = self._other.pipe.recv()
        return checksum

    def stop(self) -> None:
        self._other.stop()
        del self._port


class SampleTask(TaskPeer):
    """It has no executor: a pipe asks, publisher there, subscriber here."""

    def start(self) -> None:
        self._port = _Port(self.prefix)
        self._other = Other(self.context, _produce_for, self.prefix)
        self._sample: Any = None

    def fetch(self, nbytes: int, seed: int) -> Array:
        self._port.subscriber(nbytes)
        self._other.pipe.send(("send", nbytes, seed))
        self._other.pipe.recv()
        self._sample = self._port.receive(nbytes)
        return _view(self._sample.payload_ptr, nbytes)

    def release(self) -> None:
        self._sample = None

    def stop(self) -> None:
        self.release()
        self._other.stop()
        del self._port
