"""What a node agent tells a ztunnel: which pods it has, each with its network namespace (proto/zds.proto of ztunnel).

Messages are protocol buffers, one in a packet of a Unix socket (SOCK_SEQPACKET), each acknowledged before the next.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path as File

from .model import Refused

DEADLINE = 60.0


@dataclass(frozen=True)
class Pod:
    """`namespace_file`: its network namespace."""

    uid: str
    name: str
    namespace: str
    account: str
    namespace_file: File


def _field(number: int, value: bytes) -> bytes:
    """A field of bytes: tag, length, value (protobuf.dev, Encoding)."""
    length, varint = len(value), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *varint, length]) + value


def add(pod: Pod) -> bytes:
    """WorkloadRequest.add: AddWorkload of uid and WorkloadInfo."""
    info = _field(1, pod.name.encode()) + _field(2, pod.namespace.encode()) + _field(3, pod.account.encode())
    return _field(1, _field(1, pod.uid.encode()) + _field(2, info))


SNAPSHOT_SENT = _field(3, b"")


def error_of(answer: bytes) -> str | None:
    """Of a WorkloadResponse.ack: what it complains of."""
    if answer[:1] != b"\x0a":
        return f"not an acknowledgement: {answer!r}"
    return answer[2:].decode(errors="replace") or None


class Agent:
    """Listens at `path` and tells one ztunnel of the pods."""

    def __init__(self, path: File, pods: list[Pod]) -> None:
        self.path, self.pods = path, pods
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(DEADLINE)
        self._connection: socket.socket | None = None
        self._wrong: str | None = None
        self._told = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        try:
            self._connection, _ = self._listener.accept()
            self._connection.settimeout(DEADLINE)
            # Its greeting: a version, of which there is one.
            self._connection.recv(1024)
            for pod in self.pods:
                namespace = os.open(pod.namespace_file, os.O_RDONLY)
                try:
                    socket.send_fds(self._connection, [add(pod)], [namespace])
                finally:
                    os.close(namespace)
                self._acknowledged(pod.name)
            self._connection.send(SNAPSHOT_SENT)
            self._acknowledged("the end of the list")
        except (OSError, Refused) as error:
            self._wrong = str(error)
        finally:
            self._told.set()

    def _acknowledged(self, what: str) -> None:
        if wrong := error_of(self._connection.recv(4096)):
            raise Refused(f"ztunnel does not take {what}: {wrong}")

    def wait(self) -> None:
        """Returns when it has all of them."""
        if not self._told.wait(DEADLINE):
            raise Refused(f"no ztunnel has asked at {self.path} for its pods")
        if self._wrong:
            raise Refused(self._wrong)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._connection:
                self._connection.close()
            self._listener.close()
        self.path.unlink(missing_ok=True)
