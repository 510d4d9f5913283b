"""A utility's call without bash: for tests that make thousands, or kill at the answer.

    code, out, err = ask(node, "add_task", "1K", "1", "1K", "true", "", "", "true")

Speaks to the control port as leoronic_utilities does. `then` is called as soon as the
answer is whole, before anything else: a microsecond after its last byte was read.
"""

import socket
from typing import Callable, Optional, Tuple

from helpers import Node

ASK_TIMEOUT_S = 30.0


class NoAnswer(Exception):
    """The comrade didn't answer, or not to the end: whether it happened is unknown."""


def ask(
    node: Node,
    *args: str,
    then: Optional[Callable[[], None]] = None,
    timeout: float = ASK_TIMEOUT_S,
) -> Tuple[int, bytes, bytes]:
    """Call a verb; give code, stdout and stderr."""
    try:
        port, token = (node.home / "control").read_text().split()[:2]
        with socket.create_connection(("127.0.0.1", int(port)), timeout) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = [token, str(len(args)), str(node.directory), "80", ""]
            fields = [*head, *args]
            sock.sendall(b"".join(f.encode("utf-8") + b"\0" for f in fields))
            data = bytearray()
            while not _is_whole(data):
                piece = sock.recv(1 << 16)
                if not piece:
                    raise NoAnswer(bytes(data))
                data += piece
            if then is not None:
                then()
    except (OSError, ValueError) as problem:
        raise NoAnswer(str(problem)) from problem
    return _parse(bytes(data))


def _is_whole(data: bytearray) -> bool:
    line = data[data.rfind(b"\n", 0, -1) + 1 :]
    return line.startswith(b"X ") and line.endswith(b"\n")


def _parse(data: bytes) -> Tuple[int, bytes, bytes]:
    out, err = b"", b""
    while data:
        line, _, data = data.partition(b"\n")
        kind, text = line[:1], line[2:]
        if kind == b"L":
            out += text + b"\n"
        elif kind == b"E":
            err += text + b"\n"
        elif kind == b"O":
            out, data = out + data[: int(text)], data[int(text) :]
        elif kind == b"X":
            return int(text), out, err
    raise NoAnswer("no end")
