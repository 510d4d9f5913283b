"""The sockets of the control port: who asks, and the file that says where.

Reason for this file beside control.py: a ghost has a control port too; and how bytes
travel is one concern, what they ask for another.

Rules. Loopback only. Reads no request itself (control.Call does), answers none. A
client that shows no token, or falls silent amid its request, is dropped; one that stops
reading holds up nobody: what is made for it waits in its Call, and the verb with it.

Invariants. The control file is 0600, names port, token and pid of this run, is written
by rename and gone when the port is. CLIENTS_MAX at once; the loop never blocks on one.
"""

import os
import socket
from typing import Callable, Optional, Set

from control import Call
from descriptors import are_left
from points import point

CLIENT_BYTES = 65536  # read from or written to a client at once
REQUEST_S = 10.0  # a request may pause this long before it is whole
REST_S = 0.2  # without a descriptor for who waits: else the loop would spin
CLIENTS_MAX = 200  # at once; bash waits for a place in the listener's queue
FILE_NAME = "control"  # in LEORONIC_HOME

OnReady = Callable[[], None]
Watch = Callable[[int, OnReady, Optional[OnReady]], None]


class Client:
    """One connection."""

    is_expendable = True  # a bug of ours costs this connection, not the node

    def __init__(self, port: "ControlPort", sock: socket.socket) -> None:
        self.port = port
        self.sock = sock
        self.call = Call(port.token)
        self.is_asked = False
        self.request_by: Optional[float] = None  # then it is dropped; None: begins anew
        sock.setblocking(False)

    def start(self) -> None:
        """Read what is here, or wait for it; most have asked: that saves a turn."""
        try:
            self.on_readable()
        except Exception:
            self.close()  # as the loop does
            raise
        if self in self.port.clients and not self.is_asked:
            self.port.watch(self.sock.fileno(), self.on_readable, None)

    def on_readable(self) -> None:
        """Read the request; later, notice that the client is gone."""
        try:
            data = self.sock.recv(CLIENT_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        elif not self.is_asked:
            self.request_by = None
            try:
                self.is_asked = self.call.feed(data)
            except ValueError:
                self.close()
                return
            if self.is_asked:
                self.port.on_call(self.call)
                self.flush()

    def flush(self) -> None:
        """Send what can be sent; close behind the end; else watch for room."""
        try:
            while self.call.out:
                point("before answer")
                sent = self.sock.send(self.call.out[:CLIENT_BYTES])
                point("after answer")
                del self.call.out[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            return
        if self.call.is_over and not self.call.out:
            self.close()
        else:
            write = self.flush if self.call.out else None
            self.port.watch(self.sock.fileno(), self.on_readable, write)

    def close(self) -> None:
        """Forget the client."""
        if self in self.port.clients:
            self.port.clients.discard(self)
            self.port.unwatch(self.sock.fileno())
            self.sock.close()
            self.port.on_closed(self.call)


class ControlPort:
    """Listens on loopback for this machine's utilities."""

    def __init__(
        self,
        home: str,
        watch: Watch,
        unwatch: Callable[[int], None],
        on_call: Callable[[Call], None],
        on_closed: Callable[[Call], None],
    ) -> None:
        self.watch = watch
        self.unwatch = unwatch
        self.on_call = on_call
        self.on_closed = on_closed
        self.token = os.urandom(16).hex().encode("ascii")
        self.clients: Set[Client] = set()
        self._rests_until: Optional[float] = None  # 0: from the next turn on
        self._path = os.path.join(home, FILE_NAME)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        self.watch(self._listener.fileno(), self._on_client, None)

    def announce(self) -> None:
        """Write the control file: from now on the utilities find us."""
        port = self._listener.getsockname()[1]
        text = "%d\n%s\n%d\n" % (port, self.token.decode("ascii"), os.getpid())
        new = self._path + ".new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write(text)
        os.replace(new, self._path)

    def flush(self) -> None:
        """Send what the verbs have made."""
        for client in list(self.clients):
            if client.call.out or client.call.is_over:
                client.flush()

    def drop_silent(self, now: float) -> Optional[float]:
        """Close who keeps silent amid a request; give the time when to look again."""
        asking = [client for client in self.clients if not client.is_asked]
        for client in asking:
            if client.request_by is None:
                client.request_by = now + REQUEST_S
            elif client.request_by <= now:
                client.close()
        left = [c.request_by for c in asking if c in self.clients]
        left.append(self._rest(now))
        return min((by for by in left if by is not None), default=None)

    def _rest(self, now: float) -> Optional[float]:
        if self._rests_until == 0:
            self._rests_until = now + REST_S
        elif self._rests_until is not None and now >= self._rests_until:
            self._rests_until = None
            self._listen()
        return self._rests_until

    def close(self) -> None:
        """Take the control file away and close everything."""
        try:
            os.unlink(self._path)
        except OSError:
            pass
        self.unwatch(self._listener.fileno())
        self._listener.close()
        for client in list(self.clients):
            client.close()

    def _on_client(self) -> None:
        if not are_left(self._listener.fileno()):
            self.unwatch(self._listener.fileno())
            self._rests_until = 0
            return
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self.clients) >= CLIENTS_MAX:
            sock.close()
        else:
            client = Client(self, sock)
            self.clients.add(client)
            client.start()
