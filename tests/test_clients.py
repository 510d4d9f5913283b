"""The control port's sockets, in a loop of the test's own: no comrade, no waiting."""

import os
import resource
import selectors
import socket
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

import clients
from clients import CLIENTS_MAX, REQUEST_S, ControlPort
from control import Call


class Loop:
    """A selector whose turn takes no time."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()

    def watch(self, fd: int, on_read: Any, on_write: Any = None) -> None:
        self.unwatch(fd)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if on_write else 0)
        self.selector.register(fd, events, (on_read, on_write))

    def unwatch(self, fd: int) -> None:
        if fd >= 0 and fd in self.selector.get_map():
            self.selector.unregister(fd)

    def turn(self) -> bool:
        ready = self.selector.select(0.05)
        for key, mask in ready:
            for function, event in zip(key.data, (1, 2)):
                if mask & event and function:
                    function()
        return bool(ready)

    def settle(self) -> None:
        while self.turn():
            pass


class Desk:
    """A control port whose calls wait for the test."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.loop = Loop()
        self.calls: List[Call] = []
        self.closed: List[Call] = []
        self.port = ControlPort(
            str(home),
            self.loop.watch,
            self.loop.unwatch,
            self.calls.append,
            self.closed.append,
        )
        self.port.announce()

    def connect(self) -> socket.socket:
        number = int((self.home / "control").read_text().split()[0])
        sock = socket.create_connection(("127.0.0.1", number))
        sock.settimeout(5)
        self.loop.settle()
        return sock

    def request(self, *words: bytes) -> bytes:
        head = [self.port.token, b"%d" % len(words), b"/", b"80", b""]
        return b"".join(word + b"\0" for word in [*head, *words])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    one = Desk(tmp_path)
    yield one
    one.port.close()


def test_the_control_file_is_private_and_gone_with_the_port(desk: Desk) -> None:
    path = desk.home / "control"
    port, token, pid = path.read_text().split()
    assert path.stat().st_mode & 0o777 == 0o600
    assert (token.encode(), int(pid)) == (desk.port.token, os.getpid())
    assert int(port) > 0 and len(token) == 32
    desk.port.close()
    assert os.listdir(str(desk.home)) == []


def test_a_request_in_pieces_is_one_call_and_its_answer_ends_the_link(
    desk: Desk,
) -> None:
    with desk.connect() as sock:
        for byte in desk.request(b"get_tags", b"x y"):
            sock.sendall(bytes([byte]))
            desk.loop.settle()
        (call,) = desk.calls
        assert call.args == ["get_tags", "x y"]
        call.line("a")
        call.end(0)
        desk.port.flush()
        assert sock.recv(100) == b"L a\nX 0\n" and sock.recv(100) == b""
    assert desk.closed == [call] and not desk.port.clients


def test_a_request_that_comes_with_its_client_is_served_in_the_same_turn(
    desk: Desk,
) -> None:
    desk.port.on_call = lambda call: (desk.calls.append(call), call.end(0))[0]
    number = int((desk.home / "control").read_text().split()[0])
    with socket.create_connection(("127.0.0.1", number), timeout=5) as sock:
        sock.sendall(desk.request(b"get_tags"))
        assert desk.loop.turn()  # one
        assert [call.args for call in desk.calls] == [["get_tags"]]
        assert sock.recv(100) == b"X 0\n" and sock.recv(100) == b""
    assert desk.closed == desk.calls and not desk.port.clients


def test_a_bug_of_ours_in_the_first_turn_costs_that_client_alone(desk: Desk) -> None:
    def broken(call: Call) -> None:
        raise ZeroDivisionError("a bug of ours")

    number = int((desk.home / "control").read_text().split()[0])
    desk.port.on_call = broken
    with socket.create_connection(("127.0.0.1", number), timeout=5) as sock:
        sock.sendall(desk.request(b"get_tags"))
        with pytest.raises(ZeroDivisionError):
            desk.loop.turn()
        assert sock.recv(100) == b"" and not desk.port.clients


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n" * 4, b"\0" * 40])
def test_who_has_no_token_is_dropped_without_an_answer(desk: Desk, data: bytes) -> None:
    with desk.connect() as sock:
        sock.sendall(data)
        desk.loop.settle()
        assert not desk.port.clients and not desk.calls
        received: Callable[[], bytes] = lambda: sock.recv(100)  # noqa: E731
        try:
            assert received() == b""
        except ConnectionResetError:
            pass  # it hadn't read all of it


def test_who_keeps_silent_before_the_request_is_whole_is_dropped(desk: Desk) -> None:
    assert desk.port.drop_silent(100.0) is None  # an idle port needs no time
    silent, slow = desk.connect(), desk.connect()
    with silent, slow:
        assert desk.port.drop_silent(100.0) == 100.0 + REQUEST_S
        slow.sendall(desk.request(b"get_tags")[:40])
        desk.loop.settle()
        assert desk.port.drop_silent(105.0) == 100.0 + REQUEST_S
        assert desk.port.drop_silent(100.0 + REQUEST_S) == 105.0 + REQUEST_S
        assert silent.recv(1) == b"" and len(desk.port.clients) == 1
        slow.sendall(desk.request(b"get_tags")[40:])
        desk.loop.settle()
        assert len(desk.calls) == 1
        assert desk.port.drop_silent(1e9) is None  # its answer may take for ever
        assert len(desk.port.clients) == 1


def test_more_clients_than_the_limit_are_turned_away(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CLIENTS_MAX >= 100
    monkeypatch.setattr(clients, "CLIENTS_MAX", 3)
    socks = [desk.connect() for _ in range(4)]
    assert len(desk.port.clients) == 3 and socks[3].recv(1) == b""
    socks[0].close()
    desk.loop.settle()
    socks.append(desk.connect())
    assert len(desk.port.clients) == 3
    for sock in socks:
        sock.close()


def test_without_a_descriptor_the_port_rests_and_who_waits_is_served_later(
    desk: Desk,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as sock:
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, limits[1]))
            number = int(desk.port._listener.getsockname()[1])
            sock.connect(("127.0.0.1", number))
            desk.loop.settle()  # comes to rest
            assert desk.port.drop_silent(100.0) == 100.0 + clients.REST_S
            assert not desk.port.clients
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        desk.loop.settle()
        assert not desk.port.clients
        assert desk.port.drop_silent(100.0 + clients.REST_S) is None
        desk.loop.settle()
        assert len(desk.port.clients) == 1


def test_a_client_that_goes_away_ends_its_call(desk: Desk) -> None:
    with desk.connect() as sock:
        sock.sendall(desk.request(b"wait"))
        desk.loop.settle()
        assert len(desk.calls) == 1 and not desk.closed
    desk.loop.settle()
    assert desk.closed == desk.calls


def test_a_client_that_does_not_read_blocks_nobody_and_gets_all_later(
    desk: Desk,
) -> None:
    with desk.connect() as sock:
        sock.sendall(desk.request(b"get_queue"))
        desk.loop.settle()
        (call,) = desk.calls
        for _ in range(300):
            call.raw(b"x" * 65536)
        call.end(0)
        desk.port.flush()
        assert len(call.out) > 1 << 20  # the rest waits here
        got = 0
        while not got or desk.port.clients:
            got += len(sock.recv(1 << 20))
            desk.loop.turn()
        while True:
            piece = sock.recv(1 << 20)
            if not piece:
                break
            got += len(piece)
        assert got == 300 * (65536 + len("O 65536\n")) + len("X 0\n")
