"""A line between two machines that delays, damages and breaks: a TCP proxy.

    python3 line.py LISTEN TARGET PORT '{"delay_s": 0.1, "damage_bytes": 100000}'

delay_s: each piece is passed on so much later. damage_bytes: in so many bytes, one bit
is flipped. cut_bytes: a connection is cut after a random number of bytes, at most so
many. It tells each damage and each cut on stdout. Random, but from a fixed seed.
"""

import json
import queue
import random
import socket
import sys
import threading
import time
from typing import Any, Dict

PIECE_BYTES = 1 << 14
luck = random.Random(1)


def tell(what: str) -> None:
    print(what, flush=True)


class Wire:
    """One direction of one connection."""

    def __init__(
        self, source: socket.socket, target: socket.socket, options: Dict[str, Any]
    ) -> None:
        self.source, self.target = source, target
        self.delay_s = options.get("delay_s", 0.0)
        self.damage_bytes = options.get("damage_bytes", 0)
        self.left = luck.randrange(1, options.get("cut_bytes", 0) or 1 << 60)
        self.pieces: queue.Queue[Any] = queue.Queue(1000)
        for part in (self._take, self._give):
            threading.Thread(target=part, daemon=True).start()

    def _take(self) -> None:
        try:
            while True:
                piece = self.source.recv(PIECE_BYTES)
                self.pieces.put((time.monotonic() + self.delay_s, piece))
                if not piece:
                    return
        except OSError:
            self.pieces.put((0.0, b""))

    def _give(self) -> None:
        try:
            while True:
                due, piece = self.pieces.get()
                time.sleep(max(0.0, due - time.monotonic()))
                self.target.sendall(self._spoil(piece[: self.left]))
                self.left -= len(piece)
                if self.left <= 0:
                    tell("cut")
                if not piece or self.left <= 0:
                    break
        except OSError:
            pass
        for end in (self.source, self.target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other direction has done it

    def _spoil(self, piece: bytes) -> bytes:
        if self.damage_bytes and luck.random() < len(piece) / self.damage_bytes:
            tell("damage")
            spoilt = bytearray(piece)
            spoilt[luck.randrange(len(piece))] ^= 1 << luck.randrange(8)
            return bytes(spoilt)
        return piece


def main(listen: str, target: str, port: str, text: str) -> None:
    options = json.loads(text)
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((listen, int(port)))
    server.listen(16)
    tell("ready")
    while True:
        one, _ = server.accept()
        try:
            other = socket.create_connection((target, int(port)), 5)
        except OSError:
            one.close()
            continue
        other.settimeout(None)
        for end in (one, other):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Wire(one, other, options)
        Wire(other, one, options)


if __name__ == "__main__":
    main(*sys.argv[1:])
