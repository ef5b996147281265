"""What lies between a driver and its servers, and can be made to misbehave.

`HttpProxy` knows requests: one connection each, so that a fault hits this request and no other.
`TcpProxy` knows bytes, for PostgreSQL. Both are told how many of the next requests, or answers, to
harm, and count those they harmed.
"""

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

# Closing with this set sends RST, where an ordinary close says goodbye.
_RESET = struct.pack("ii", 1, 0)
_CHUNK = 1 << 16
HTTP_FAULTS = (
    "500 instead of an answer",
    "503 instead of an answer",
    "500 after it was done",
    "reset before it was sent",
    "reset after it was done",
    "request cut in its body",
    "answer cut in its body",
    "delay",
)
TCP_FAULTS = ("reset", "answer cut", "refuse", "delay")


def _abort(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()


@dataclass
class _Proxy:
    """Listens on a port of loopback, and hands each connection to a thread."""

    upstream: int
    seconds: float = 2.0
    """Of a delay."""
    port: int = 0
    harmed: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """What went wrong in the proxy itself."""

    def start(self) -> None:
        """Listens from now on."""
        self._lock, self._is_open = threading.Lock(), True
        self._armed: list[str | None] = []
        """What happens to each that comes; None lets it pass."""
        self._server = socket.create_server(("127.0.0.1", self.port))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends at once, whatever is under way."""
        self._is_open = False
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)

    def arm(self, fault: str, times: int = 1, after: int = 0) -> None:
        """The next `times` requests, or answers, are harmed so, after `after` that pass."""
        with self._lock:
            self._armed += [None] * after + [fault] * times

    def disarm(self, fault: str | None = None) -> None:
        """What was armed (of one kind, or all) and has not struck will not."""
        with self._lock:
            self._armed = [one for one in self._armed if fault not in (None, one)]

    def _next(self) -> str | None:
        with self._lock:
            fault = self._armed.pop(0) if self._armed else None
            if fault is not None:
                self.harmed[fault] += 1
            return fault

    def _listen(self) -> None:
        while self._is_open:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._guarded, args=(connection,), daemon=True).start()

    def _guarded(self, connection: socket.socket) -> None:
        try:
            self._serve(connection)
        except OSError:
            _abort(connection)  # The server behind us, or who asked, is gone.
        except Exception as error:  # noqa: BLE001 - the storm tells it
            self.failures.append(repr(error))
            _abort(connection)

    def _serve(self, connection: socket.socket) -> None:
        raise NotImplementedError

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.upstream), timeout=60)


class HttpProxy(_Proxy):
    """HTTP/1.1, one request a connection."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(60)
        request = _read_request(client)
        if request is None:
            client.close()
            return
        head, body = request
        fault = self._next()
        if fault is not None and fault.endswith("instead of an answer"):
            _say(client, int(fault[:3]))
            return
        if fault == "reset before it was sent":
            _abort(client)
            return
        if fault == "delay":
            time.sleep(self.seconds)
        with self._connect() as server:
            if fault == "request cut in its body":
                server.sendall(head + body[: len(body) // 2])
                time.sleep(0.05)
                _abort(server)
                _abort(client)
                return
            server.sendall(head + body)
            answer = b"".join(iter(lambda: server.recv(_CHUNK), b""))
        if fault == "reset after it was done":
            _abort(client)
        elif fault == "500 after it was done":
            _say(client, 500)
        elif fault == "answer cut in its body":
            begin = answer.find(b"\r\n\r\n") + 4
            client.sendall(answer[: begin + max(0, len(answer) - begin) // 2])
            time.sleep(0.05)
            _abort(client)
        else:
            client.sendall(answer)
            client.close()


def _say(client: socket.socket, status: int) -> None:
    body = b"made up by the proxy of a test"
    head = f"HTTP/1.1 {status} Made up\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    client.sendall(head.encode() + body)
    client.close()


def _read_request(client: socket.socket) -> tuple[bytes, bytes] | None:
    """Head, with `Connection: close` instead of what it says, and body; None where none comes."""
    read = b""
    while b"\r\n\r\n" not in read:
        more = client.recv(_CHUNK)
        if not more:
            return None
        read += more
    head, _, body = read.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    fields = {k.strip().lower(): v.strip() for k, _, v in (line.partition(b":") for line in lines)}
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        while not body.endswith(b"0\r\n\r\n"):
            body += _more(client)
    else:
        while len(body) < int(fields.get(b"content-length", 0)):
            body += _more(client)
    kept = [line for line in lines if not line.lower().startswith((b"connection:", b"expect:"))]
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""]), body


def _more(client: socket.socket) -> bytes:
    more = client.recv(_CHUNK)
    if not more:
        raise ConnectionError("the request ended in its middle")
    return more


class TcpProxy(_Proxy):
    """Bytes both ways. `reset_all` breaks what is open; armed faults hit answers to come."""

    def start(self) -> None:
        self._open: set[socket.socket] = set()
        self._refusing_until = 0.0
        super().start()

    def stop(self) -> None:
        super().stop()
        self.reset_all()

    def reset_all(self) -> int:
        """Every connection is reset; returns how many there were."""
        with self._lock:
            found, self._open = list(self._open), set()
        for one in found:
            # Wakes the thread that reads it, which closes it.
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.shutdown(socket.SHUT_RD)
        return len(found)

    def refuse_for(self, seconds: float) -> None:
        """New connections are reset at once, for a while."""
        self._refusing_until = time.monotonic() + seconds

    def _serve(self, client: socket.socket) -> None:
        if time.monotonic() < self._refusing_until:
            self.harmed["refuse"] += 1
            _abort(client)
            return
        server = self._connect()
        server.settimeout(None)
        with self._lock:
            self._open.add(client)
        there = threading.Thread(target=self._pump, args=(client, server, client), daemon=True)
        there.start()
        try:
            self._pump(server, client, client)
        finally:
            with self._lock:
                self._open.discard(client)
            _abort(client)
            _abort(server)

    def _pump(self, source: socket.socket, sink: socket.socket, client: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK):
                # Bytes that come after the reset can be read before the thread learns of it.
                with self._lock:
                    if client not in self._open:
                        break
                fault = self._next() if sink is client else None
                if fault == "delay":
                    time.sleep(self.seconds)
                elif fault == "answer cut":
                    sink.sendall(data[: len(data) // 2])
                    break
                elif fault == "reset":
                    break
                sink.sendall(data)
        except OSError:
            pass
        # The other direction learns of it, whoever of the two hung up.
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
