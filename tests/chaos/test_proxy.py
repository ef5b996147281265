"""The proxies harm what they are told to and nothing else."""

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from tests.chaos.proxy import HTTP_FAULTS, HttpProxy, TcpProxy


class _Server(http.server.BaseHTTPRequestHandler):
    """Answers a POST with what it was sent, and counts."""

    done: list[bytes]

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        try:
            body = self.rfile.read(size)
        except ConnectionError:  # as the proxy was told
            return
        if len(body) == size:
            self.done.append(body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def behind() -> Iterator[tuple[HttpProxy, list[bytes]]]:
    handler = type("Handler", (_Server,), {"done": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = HttpProxy(server.server_address[1], seconds=0.3)
    proxy.start()
    yield proxy, handler.done
    proxy.stop()
    server.shutdown()
    server.server_close()
    assert proxy.failures == []


BODY = bytes(range(256)) * 1000


def test_what_passes_is_untouched(behind) -> None:
    proxy, done = behind
    with requests.Session() as session:
        for size in (0, 1, len(BODY)):
            assert session.post(proxy.url, data=BODY[:size], timeout=5).content == BODY[:size]
    assert done == [b"", BODY[:1], BODY]
    assert not proxy.harmed


@pytest.mark.parametrize("fault", HTTP_FAULTS)
def test_one_request_is_harmed_and_the_next_is_not(behind, fault) -> None:
    proxy, done = behind
    proxy.arm(fault)
    begun = time.monotonic()
    try:
        answer = requests.post(proxy.url, data=BODY, timeout=5)
        said = str(answer.status_code) if answer.content != BODY else "whole"
    except requests.ConnectionError:
        said = "broken"
    except requests.exceptions.ChunkedEncodingError:
        said = "cut"
    assert (
        said
        == {
            "500 instead of an answer": "500",
            "503 instead of an answer": "503",
            "500 after it was done": "500",
            "reset before it was sent": "broken",
            "reset after it was done": "broken",
            "request cut in its body": "broken",
            "answer cut in its body": "cut",
            "delay": "whole",
        }[fault]
    )
    is_done = fault.endswith("done") or fault in ("answer cut in its body", "delay")
    assert done == ([BODY] if is_done else [])
    assert fault != "delay" or time.monotonic() - begun > 0.25
    assert proxy.harmed == {fault: 1}
    assert requests.post(proxy.url, data=b"next", timeout=5).content == b"next"


def test_what_is_disarmed_does_not_strike(behind) -> None:
    proxy, _ = behind
    proxy.arm("delay", 2)
    proxy.arm("503 instead of an answer")
    proxy.disarm("delay")
    assert requests.post(proxy.url, data=b"x", timeout=5).status_code == 503
    proxy.arm("503 instead of an answer")
    proxy.disarm()
    assert requests.post(proxy.url, data=b"x", timeout=5).status_code == 200


@pytest.fixture
def echo() -> Iterator[TcpProxy]:
    """A proxy before a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                one, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(one,), daemon=True).start()

    def answer(one: socket.socket) -> None:
        with one:
            try:
                while data := one.recv(1 << 16):
                    one.sendall(data)
            except OSError:
                pass

    threading.Thread(target=serve, daemon=True).start()
    proxy = TcpProxy(server.getsockname()[1], seconds=0.3)
    proxy.start()
    yield proxy
    proxy.stop()
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    assert proxy.failures == []


def _open(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def _asked(connection: socket.socket, data: bytes) -> bytes:
    """What comes back, up to as much or the end."""
    try:
        connection.sendall(data)
        found = b""
        while len(found) < len(data) and (more := connection.recv(1 << 16)):
            found += more
        return found
    except ConnectionError:
        return b"broken"


def test_bytes_pass_both_ways_and_connections_break_when_told(echo) -> None:
    with _open(echo) as first, _open(echo) as second:
        assert _asked(first, b"abcd") == _asked(second, b"abcd") == b"abcd"
        assert echo.reset_all() == 2
        assert _asked(first, b"abcd") in (b"", b"broken")
        assert _asked(second, b"abcd") in (b"", b"broken")
    with _open(echo) as third:
        assert _asked(third, b"abcd") == b"abcd"


@pytest.mark.parametrize(("fault", "back"), [("reset", b""), ("answer cut", b"ab")])
def test_an_answer_is_harmed(echo, fault, back) -> None:
    echo.arm(fault)
    with _open(echo) as one:
        assert _asked(one, b"abcd") in (back, b"broken")
    with _open(echo) as one:
        assert _asked(one, b"abcd") == b"abcd"


def test_new_connections_are_refused_for_a_while(echo) -> None:
    echo.refuse_for(60)
    # The reset may come while the connection is still being made, or at the first byte.
    with contextlib.suppress(ConnectionError), _open(echo) as one:
        assert _asked(one, b"abcd") in (b"", b"broken")
    assert echo.harmed["refuse"] == 1
    echo.refuse_for(0)
    with _open(echo) as one:
        assert _asked(one, b"abcd") == b"abcd"
    assert echo.harmed["refuse"] == 1
