"""The downloader against a server that stalls, truncates, lies and drops connections."""

import hashlib
import os
import random
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.fetch import FetchError, fetch, overview, verify
from tasks import datasets
from tasks.base import MissingDataError
from tasks.datasets import DataFile, DataSet

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(len(BODY))
SMALL = b"labels"
PART = ".incoming/toy-big.bin.part"


def data_file(path, content):
    return DataFile(path, len(content), hashlib.sha256(content).hexdigest(), ("https://x.invalid",))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """A registered set of two files; and no proxy between us and this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files = (data_file("toy/big.bin", BODY), data_file("toy/small.bin", SMALL))
    toy = DataSet("toy", "a toy", ("https://x.invalid",), "none", "none", files)
    monkeypatch.setitem(datasets.DATA_SETS, "toy", toy)


class Server:
    """Serves BODY under any name ending in big.bin. What it does to it is one of the methods.

    `requests` are the (path, Range header) of the requests for it, in order.
    """

    def __init__(self, *behaviours):
        self.behaviours = behaviours
        self.requests = []
        self.released = threading.Event()

    def answer(self, handler):
        if not handler.path.endswith("big.bin"):
            return self.honest(handler, SMALL)
        behaviour = self.behaviours[min(len(self.requests), len(self.behaviours) - 1)]
        self.requests.append((handler.path, handler.headers.get("Range")))
        return getattr(self, behaviour)(handler)

    def head(self, handler, status, length, **more):
        handler.send_response(status)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        for key, value in more.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.end_headers()

    def honest(self, handler, body=BODY):
        self.head(handler, 200, len(body))
        handler.wfile.write(body)

    def start_of(self, handler):
        found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        return int(found[1]) if found else None

    def resumes(self, handler, most=None, body=BODY):
        """Honours Range, sends at most `most` bytes, then drops the connection."""
        start = self.start_of(handler)
        if start is None:
            self.head(handler, 200, len(BODY))
        else:
            span = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
            self.head(handler, 206, len(BODY) - start, Content_Range=span)
        handler.wfile.write(body[start or 0 :][:most])

    def truncates(self, handler):
        self.resumes(handler, most=100_000)

    def truncates_without_ranges(self, handler):
        self.head(handler, 200, len(BODY))
        handler.wfile.write(BODY[:100_000])

    def truncates_silently(self, handler):
        self.head(handler, 200, None)
        handler.wfile.write(BODY[:100_000])

    def unsized(self, handler):
        self.head(handler, 200, None)
        handler.wfile.write(BODY + b"and more")

    def lies(self, handler):
        self.honest(handler, OTHER)

    def resumes_with_lies(self, handler):
        self.resumes(handler, body=OTHER)

    def truncates_lies(self, handler):
        self.resumes(handler, most=100_000, body=OTHER)

    def overstates(self, handler):
        self.head(handler, 200, len(BODY) + 7)
        handler.wfile.write(BODY)

    def understates(self, handler):
        self.head(handler, 200, len(BODY) - 7)
        handler.wfile.write(BODY)

    def resumes_elsewhere(self, handler):
        if self.start_of(handler) is None:
            return self.honest(handler)
        self.head(handler, 206, 10, Content_Range=f"bytes 5-14/{len(BODY)}")
        return handler.wfile.write(BODY[5:15])

    def refuses_ranges(self, handler):
        if self.start_of(handler) is None:
            return self.honest(handler)
        return self.head(handler, 416, 0)

    def stalls_before_answering(self, handler):
        self.released.wait(10)

    def stalls_midway(self, handler):
        self.head(handler, 200, len(BODY))
        handler.wfile.write(BODY[:1000])
        self.released.wait(10)

    def trickles(self, handler):
        self.head(handler, 200, len(BODY))
        for k in range(200):
            handler.wfile.write(BODY[k : k + 1])
            if self.released.wait(0.05):
                return

    def drops(self, handler):
        pass

    def is_gone(self, handler):
        self.head(handler, 404, 0)

    def is_overloaded(self, handler):
        self.head(handler, 503, 0)


@contextmanager
def serving(*behaviours):
    server = Server(*behaviours)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with suppress(OSError):  # the client hung up, as it should on most of these
                server.answer(self)
            self.close_connection = True

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}/data/"
    try:
        yield server
    finally:
        server.released.set()
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def get(folder, *servers, **options):
    options = {"timeout": 2.0, "attempts": 2, "pause": 0.01} | options
    return fetch("toy", urls=[s.url for s in servers], folder=folder, **options)


def names(folder):
    """Everything below `folder` but the lock."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p.relative_to(folder).as_posix() for p in files if p.name != ".fetch.lock")


def assert_complete(folder):
    assert names(folder) == ["toy/big.bin", "toy/small.bin"]
    assert (folder / "toy/big.bin").read_bytes() == BODY
    assert all(check.ok for check in verify("toy", folder))


def assert_nothing_under_its_final_name(folder):
    assert set(names(folder)) <= {PART}


def test_an_honest_server(tmp_path):
    seen = []
    with serving("honest") as server:
        paths = get(tmp_path / "new" / "folder", server, progress=lambda *at: seen.append(at))
        assert server.requests == [("/data/big.bin", None)]
    assert paths == tuple(tmp_path / "new/folder/toy" / n for n in ("big.bin", "small.bin"))
    assert_complete(tmp_path / "new" / "folder")
    steps = [done for file, done, size in seen if file == "toy/big.bin"]
    assert steps == sorted(steps)
    assert seen[len(steps) - 1] == ("toy/big.bin", len(BODY), len(BODY))


def test_what_is_here_is_not_fetched_again_even_without_a_server(tmp_path):
    with serving("honest") as server:
        get(tmp_path, server)
    before = (tmp_path / "toy/big.bin").stat().st_mtime_ns
    assert fetch("toy", urls=[], folder=tmp_path)[0].stat().st_mtime_ns == before


def test_a_damaged_file_is_replaced(tmp_path):
    with serving("honest") as server:
        get(tmp_path, server)
        (tmp_path / "toy/big.bin").write_bytes(OTHER)
        assert [c.ok for c in verify("toy", tmp_path)] == [False, True]
        get(tmp_path, server)
        assert len(server.requests) == 2
    assert_complete(tmp_path)


def test_a_damaged_file_stays_until_a_right_one_is_here(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/big.bin").write_bytes(BODY[:-1])
    with serving("lies") as server, pytest.raises(FetchError):
        get(tmp_path, server)
    assert (tmp_path / "toy/big.bin").read_bytes() == BODY[:-1]


def test_a_truncated_transfer_goes_on_where_it_broke_off(tmp_path):
    with serving("truncates") as server:
        get(tmp_path, server, attempts=1)
        ranges = [r for _, r in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert_complete(tmp_path)


def test_an_earlier_run_is_resumed(tmp_path):
    (tmp_path / PART).parent.mkdir()
    (tmp_path / PART).write_bytes(BODY[:123_456])
    with serving("resumes") as server:
        get(tmp_path, server)
        assert server.requests == [("/data/big.bin", "bytes=123456-")]
    assert_complete(tmp_path)


def test_a_run_that_died_before_the_rename_needs_no_server(tmp_path):
    (tmp_path / PART).parent.mkdir()
    (tmp_path / PART).write_bytes(BODY)
    with serving("is_gone") as server:
        get(tmp_path, server)
        assert server.requests == []
    assert_complete(tmp_path)


@pytest.mark.parametrize("left", [OTHER[:5000], OTHER, OTHER + b"more", b""])
@pytest.mark.parametrize("behaviour", ["resumes", "honest", "refuses_ranges", "resumes_elsewhere"])
def test_whatever_was_left_behind_does_no_harm(tmp_path, left, behaviour):
    (tmp_path / PART).parent.mkdir()
    (tmp_path / PART).write_bytes(left)
    with serving(behaviour) as server:
        get(tmp_path, server)
    assert_complete(tmp_path)


@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        ("truncates_without_ranges", "broke off at 100000 of 300000 bytes"),
        ("truncates_silently", "broke off at 100000 of 300000 bytes"),
        ("lies", "sends other bytes than sha256"),
        ("resumes_with_lies", "sends other bytes than sha256"),
        ("truncates_lies", "sends other bytes than sha256"),
        ("overstates", "serves 300007 bytes, toy/big.bin has 300000"),
        ("understates", "serves 299993 bytes, toy/big.bin has 300000"),
        ("drops", "sent nothing ("),
        ("is_gone", "answers HTTP 404 Not Found"),
        ("is_overloaded", "answers HTTP 503 Service Unavailable"),
    ],
)
def test_a_server_that_never_gets_it_right(tmp_path, behaviour, complaint):
    with serving(behaviour) as server:
        with pytest.raises(FetchError) as caught:
            get(tmp_path, server)
        assert len(server.requests) <= 10
    message = str(caught.value)
    assert message.startswith(f"could not download toy/big.bin; {server.url}big.bin: ")
    assert complaint in message
    assert "\n" not in message
    assert_nothing_under_its_final_name(tmp_path)


@pytest.mark.parametrize("behaviour", ["stalls_before_answering", "stalls_midway", "trickles"])
def test_a_stalled_server_is_given_up(tmp_path, behaviour):
    with serving(behaviour) as server:
        start = time.monotonic()
        with pytest.raises(FetchError, match=r"stalled at \d+ of 300000 bytes"):
            get(tmp_path, server, timeout=0.2)
        assert time.monotonic() - start < 3
        assert len(server.requests) == 2
    assert_nothing_under_its_final_name(tmp_path)


@pytest.mark.parametrize(
    "behaviour",
    ["lies", "truncates_lies", "stalls_midway", "truncates", "is_gone", "drops", "understates"],
)
def test_the_next_mirror_makes_good(tmp_path, behaviour):
    with serving(behaviour) as first, serving("resumes") as second:
        get(tmp_path, first, second, timeout=0.2, attempts=1)
    assert_complete(tmp_path)


@pytest.mark.parametrize("behaviour", ["drops", "is_overloaded", "lies", "understates"])
def test_a_passing_fault_is_tried_again_unless_it_cannot_pass(tmp_path, behaviour):
    with serving(behaviour, "honest") as server:
        if behaviour == "understates":
            with pytest.raises(FetchError, match="serves 299993"):
                get(tmp_path, server)
        else:
            get(tmp_path, server)
            assert_complete(tmp_path)


def test_no_more_is_taken_than_the_file_has(tmp_path):
    with serving("unsized") as server:
        get(tmp_path, server)
    assert_complete(tmp_path)


def test_nobody_listens(tmp_path):
    with serving("honest") as server:
        pass
    with pytest.raises(FetchError, match=r"sent nothing \(.*refused"):
        get(tmp_path, server)
    with pytest.raises(FetchError, match="is no usable address"):
        fetch("toy", urls=["nonsense"], folder=tmp_path, pause=0.01)


def test_concurrent_fetches_share_one_download(tmp_path):
    with serving("truncates") as server:
        failures = []

        def run():
            try:
                get(tmp_path, server)
            except Exception as error:  # noqa: BLE001 - handed to the assertion below
                failures.append(error)

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert [r for _, r in server.requests] == [None, "bytes=100000-", "bytes=200000-"]
    assert_complete(tmp_path)


_FETCH_IN_ANOTHER_PROCESS = """
import hashlib, resource, sys
from pipeline.fetch import FetchError, fetch
from tasks import datasets
from pathlib import Path
url, folder, size, sha256, limit = sys.argv[1:]
file = datasets.DataFile("toy/big.bin", int(size), sha256, ())
toy = datasets.DataSet("toy", "", (), "", "", (file,))
datasets.DATA_SETS["toy"] = toy
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
print("ready", flush=True)
try:
    fetch("toy", urls=[url], folder=Path(folder), timeout=20, pause=0.01)
except FetchError as error:
    sys.exit(f"FetchError: {error}")
"""


def start_process(server, folder, limit=0):
    sha256 = hashlib.sha256(BODY).hexdigest()
    arguments = [server.url, str(folder), str(len(BODY)), sha256, str(limit)]
    return subprocess.Popen(
        [sys.executable, "-c", _FETCH_IN_ANOTHER_PROCESS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_fetch_is_taken_up_by_the_next(tmp_path):
    with serving("stalls_midway", "resumes") as server:
        process = start_process(server, tmp_path)

        def has_begun():
            return (tmp_path / PART).exists() and (tmp_path / PART).stat().st_size > 0

        deadline = time.monotonic() + 30
        while not has_begun() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        left = (tmp_path / PART).stat().st_size
        assert (tmp_path / PART).exists()
        assert not (tmp_path / "toy/big.bin").exists()
        get(tmp_path, server)
        assert [r for _, r in server.requests] == [None, f"bytes={left}-"]
    assert_complete(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_disk_with_no_room_is_explained(tmp_path):
    with serving("honest") as server:
        _, errors = start_process(server, tmp_path, limit=50_000).communicate(timeout=60)
    assert errors.startswith(f"FetchError: cannot write data set toy into {tmp_path}: File too lar")
    assert errors.count("\n") == 1
    assert_nothing_under_its_final_name(tmp_path)


def test_a_folder_that_cannot_be_is_explained(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with serving("honest") as server, pytest.raises(FetchError) as caught:
        get(tmp_path / "file" / "data", server)
    assert str(tmp_path / "file" / "data") in str(caught.value)
    assert datasets.FOLDER_VARIABLE in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_read_only_folder_serves_what_it_has_and_says_what_it_cannot(tmp_path):
    with serving("honest") as server:
        get(tmp_path, server)
        (tmp_path / "toy/small.bin").unlink()
        for path in (tmp_path / "toy", tmp_path):
            path.chmod(0o555)
        try:
            with pytest.raises(FetchError, match="cannot write data set toy"):
                get(tmp_path, server)
        finally:
            for path in (tmp_path, tmp_path / "toy"):
                path.chmod(0o755)


def test_complete_data_is_served_without_touching_the_folder(tmp_path):
    with serving("honest") as server:
        get(tmp_path, server)
    (tmp_path / ".fetch.lock").unlink(missing_ok=True)
    fetch("toy", folder=tmp_path)
    assert not (tmp_path / ".fetch.lock").exists()


def test_sets_that_need_no_download_and_sets_that_have_none(tmp_path):
    assert fetch("pydoc", folder=tmp_path) == ()
    assert names(tmp_path) == []
    with pytest.raises(FetchError, match=r"no mirror serves cmu_mocap\.parquet; put it into"):
        fetch("cmu_mocap", folder=tmp_path)
    with pytest.raises(MissingDataError, match="no data set 'wap'"):
        fetch("wap", folder=tmp_path)


def test_overview_and_verify_say_what_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(tmp_path))

    def state():
        return {row.name: row.state for row in overview()}["toy"]

    assert {row.name: row.state for row in overview()}["pydoc"] == "built in"
    assert state() == "missing"
    assert [c.ok for c in verify("toy")] == [False, False]
    assert "missing in" in verify("toy")[0].message
    assert "`lyapsweep data fetch toy`" in verify("toy")[0].message
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/big.bin").write_bytes(BODY)
    assert state() == "incomplete"
    (tmp_path / "toy/small.bin").write_bytes(b"libels")
    assert state() == "present"
    assert [c.ok for c in verify("toy")] == [True, False]
    assert "must have sha256" in verify("toy")[1].message
    assert [c.ok for c in verify("pydoc") + verify("digits8x8")] == [True, True]
