"""`resume` and a server that is not there yet, or that says no."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline import retrying, running
from pipeline.store import NoSuchSweepError, StoreAwayError, StoreError, open_store
from tests.servers import free_port


class Late:
    """A store that does not answer the first times it is asked."""

    def __init__(self, silent):
        self.asked, self._silent = 0, silent

    def sweep(self, name):
        self.asked += 1
        if self.asked <= self._silent:
            raise StoreAwayError("MLflow store http://there: connection refused")
        return f"sweep {name}"


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(retrying, "RETRY_SECONDS", (0.01, 0.02))


def test_a_store_that_comes_late_is_waited_for_and_said_to_be_away_once(capsys):
    store = Late(silent=4)
    assert running.begun(store, "big", None) == "sweep big"
    assert store.asked == 5
    said = capsys.readouterr().err
    assert said == "MLflow store http://there: connection refused; asking again for 600 s\n"


def test_patience_ends(capsys):
    store = Late(silent=10_000)
    with pytest.raises(StoreAwayError):
        running.begun(store, "big", ["execution.threads=1", "execution.patience=0.1"])
    assert 3 <= store.asked <= 12
    with pytest.raises(StoreAwayError):
        running.begun(Late(silent=1), "big", ["execution.patience=0"])


def test_what_waiting_does_not_mend_is_said_at_once(tmp_path, capsys):
    for uri in (f"sqlite:///{tmp_path / 'mlflow.db'}", f"folder:{tmp_path / 'store'}"):
        with pytest.raises(NoSuchSweepError):
            running.begun(open_store(uri), "big", None)
    assert capsys.readouterr().err == ""


@pytest.fixture
def answering():
    """Starts a server on loopback that answers everything with one code; returns its URL."""
    started = []

    def start(code):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("code", "is_away"), [(500, True), (503, True), (401, False), (403, False)]
)
def test_a_server_in_trouble_may_answer_later_and_one_that_refuses_will_not(
    answering, code, is_away
):
    with pytest.raises(StoreError) as caught:
        running.begun(open_store(answering(code)), "big", ["execution.patience=0"])
    assert isinstance(caught.value, StoreAwayError) == is_away


def test_nobody_at_the_port_is_a_server_that_may_come():
    store = open_store(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreAwayError, match=r"127\.0\.0\.1"):
        running.begun(store, "big", ["execution.patience=0"])
