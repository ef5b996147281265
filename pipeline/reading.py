"""Many record files, in the order they are asked for, by processes beside this one.

Half of the work on a file is Python's, at which the threads of one process take turns. A reader is
a fresh interpreter that is told paths and answers with tables in Arrow's own format; nothing is
unpickled. A file that ends its reader is named, and does not end whoever asked.
"""

import contextlib
import hashlib
import json
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa

from pipeline import plain_file, records
from pipeline.interpreter import THREAD_VARIABLES, start
from pipeline.records import RecordError, TrialRecord

_LEAST = 1_000
"""Files for one reader, which takes a second to start."""
_MOST_READERS = 8
_AHEAD = 8
_TABLE, _WRONG = b"T", b"W"


@dataclass(frozen=True)
class File:
    """A trial's file, and what its sha256 should be where that is on record."""

    path: Path
    sha256: str | None = None


def read(file: File) -> TrialRecord:
    """One file. Raises RecordError."""
    try:
        if file.sha256:
            with plain_file.opened(file.path) as source:
                found = hashlib.sha256(source.read()).hexdigest()
            if found != file.sha256:
                raise RecordError(f"{file.path}: corrupt, its sha256 is not the one recorded")
        return records.read(file.path)
    except FileNotFoundError:
        raise RecordError(f"{file.path}: missing, though its trial is on record") from None
    except OSError as error:
        raise RecordError(f"{file.path}: cannot be read ({error.strerror or error})") from error


def read_all(files: Sequence[File]) -> Iterator[TrialRecord]:
    """All of them, in their order. Raises RecordError."""
    num = min(len(os.sched_getaffinity(0)), len(files) // _LEAST, _MOST_READERS)
    readers = _started(num) if num > 1 else []
    if not readers:
        yield from map(read, files)
        return
    try:
        for place, file in enumerate(files[: num * _AHEAD]):
            readers[place % num].ask(file)
        for place in range(len(files)):
            reader = readers[place % num]
            yield reader.answer()
            if place + num * _AHEAD < len(files):
                reader.ask(files[place + num * _AHEAD])
    finally:
        for reader in readers:
            reader.close()


def _started(num: int) -> list["_Reader"]:
    """So many; none where no more processes may be started."""
    readers: list[_Reader] = []
    try:
        for _ in range(num):
            readers.append(_Reader())
    except OSError:
        for reader in readers:
            reader.close()
        return []
    return readers


class _Reader:
    """A process that answers in the order it was asked."""

    def __init__(self) -> None:
        one_thread = dict.fromkeys(THREAD_VARIABLES, "1")
        self._process, self._channel = start(__name__, environment=one_thread)
        self._asked = deque[File]()

    def ask(self, file: File) -> None:
        self._asked.append(file)
        # Where the reader has ended, the answer that lacks says at which file.
        with contextlib.suppress(OSError):
            self._channel.send_bytes(json.dumps([str(file.path), file.sha256]).encode())

    def answer(self) -> TrialRecord:
        file = self._asked.popleft()
        try:
            said = self._channel.recv_bytes()
        except (EOFError, OSError):
            code = self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise RecordError(f"{file.path}: the process that read it ended ({how})") from None
        kind, content = said[:1], said[1:]
        if kind == _WRONG:
            raise RecordError(content.decode())
        table = pa.ipc.open_stream(content).read_all()
        header = records.header_from_json(table.schema.metadata[records.HEADER_KEY].decode())
        return TrialRecord(header, table.replace_schema_metadata(None))

    def close(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()


def work(descriptor: int) -> None:
    """What a reader runs, until whoever asks hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the other side ends us.
    with Connection(descriptor) as channel:
        while True:
            try:
                path, sha256 = json.loads(channel.recv_bytes())
                channel.send_bytes(_answer(File(Path(path), sha256)))
            except (EOFError, OSError):
                return


def _answer(file: File) -> bytes:
    try:
        record = read(file)
    except RecordError as error:
        return _WRONG + str(error).encode(errors="replace")
    header = json.dumps(asdict(record.header)).encode()
    table = record.table.replace_schema_metadata({records.HEADER_KEY: header})
    sink = pa.BufferOutputStream()
    sink.write(_TABLE)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
