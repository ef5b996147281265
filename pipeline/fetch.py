"""Downloads the named data sets of `tasks.datasets`, checks them, and says which are here.

A file appears under its own name only once its sha256 is right: it grows in `.incoming` as
`<name>.part`, which an interrupted transfer leaves behind and the next one continues (HTTP
Range); then it is synced, checked by pooch and renamed. pooch retrieves and verifies; resuming,
giving up on a stalled server and refusing what cannot be right are `_Download`'s, because pooch
starts every transfer anew and waits for a trickling server for ever.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import pooch
import requests
import urllib3

from tasks import datasets
from tasks.base import MissingDataError
from tasks.datasets import CorruptDataError, DataFile

Progress = Callable[[str, int, int], None]
"""Called with the file's path below the data folder, the bytes here so far, and its size."""

_CHUNK = 1 << 16
_WORTH_ANOTHER_TRY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)

# It reports every retrieval on stderr; what is worth saying goes through `progress`.
pooch.get_logger().setLevel("WARNING")


class FetchError(RuntimeError):
    """A data set could not be downloaded; the message says what each mirror did."""


class Check(NamedTuple):
    """One line of `lyapsweep data verify`."""

    file: str
    ok: bool
    message: str


@dataclass(frozen=True)
class Overview:
    """One line of `lyapsweep data list`. `state`: built in, present, incomplete or missing."""

    name: str
    state: str
    size: int
    summary: str
    terms: str
    citation: str
    origin: tuple[str, ...]


def fetch(
    name: str,
    *,
    urls: Sequence[str] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
    pause: float = 1.0,
) -> tuple[Path, ...]:
    """Brings a data set onto this machine and returns its files; () for sets without files.

    Files that are here and right are left alone; damaged ones are replaced. Fetches into one
    folder wait for each other.

    Args:
        urls: addresses of folders that hold the files under their own names, in place of the
            registry's mirrors.
        folder: where to put them; None for `datasets.data_folder()`.
        timeout: seconds without `_CHUNK` bytes' progress after which a server has stalled.
        attempts: transfers that bring nothing new before the next mirror is tried.
        pause: seconds before the second attempt; doubled for each further one.

    Raises MissingDataError for an unknown name, FetchError for everything else.
    """
    data_set = datasets.data_set(name)
    if not data_set.files:
        return ()
    where = (folder or datasets.data_folder()).expanduser().absolute()
    here = [_standing(file, where) for file in data_set.files]
    if None not in here:
        # Before the lock, which a read-only folder that has everything would refuse.
        return tuple(path for path in here if path is not None)
    try:
        where.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(where / ".fetch.lock"):
            return tuple(
                _fetch_file(file, where, _addresses(file, urls), progress, timeout, attempts, pause)
                for file in data_set.files
            )
    except OSError as error:
        # Network errors never come this far, so what is left is the folder.
        raise FetchError(
            f"cannot write data set {name} into {where}: {error.strerror or error}; "
            f"set {datasets.FOLDER_VARIABLE} to a folder with room that you may write to"
        ) from error


def verify(name: str, folder: Path | None = None) -> list[Check]:
    """Compares every file of a set with its sha256, reading all of it."""
    data_set = datasets.data_set(name)
    if not data_set.files:
        try:
            return [Check(name, True, data_set.inspect())]
        except MissingDataError as error:
            return [Check(name, False, str(error))]
    where = folder or datasets.data_folder()
    checks = []
    for file in data_set.files:
        path = file.find(where)
        if path is None:
            checks.append(Check(file.path, False, f"missing in {where}; {data_set.remedy}"))
            continue
        try:
            file.read(path)
        except (CorruptDataError, OSError) as error:
            checks.append(Check(file.path, False, f"{error}; {data_set.remedy}"))
        else:
            checks.append(Check(file.path, True, f"{path}, sha256 {file.sha256}"))
    return checks


def overview(folder: Path | None = None) -> list[Overview]:
    """What sets there are and which are on this machine; looks at names, not contents."""
    where = folder or datasets.data_folder()
    rows = []
    for data_set in datasets.DATA_SETS.values():
        here = [file.find(where) is not None for file in data_set.files]
        state = "missing"
        if not here:
            state = "built in"
        elif any(here):
            state = "present" if all(here) else "incomplete"
        rows.append(
            Overview(
                data_set.name,
                state,
                sum(file.size for file in data_set.files),
                data_set.summary,
                data_set.terms,
                data_set.citation,
                data_set.origin,
            )
        )
    return rows


def _addresses(file: DataFile, folders: Sequence[str] | None) -> tuple[str, ...]:
    if folders is None:
        return file.urls
    name = file.path.rsplit("/", 1)[-1]
    return tuple(f"{folder.rstrip('/')}/{name}" for folder in folders)


def _standing(file: DataFile, folder: Path) -> Path | None:
    """The file if it is here and right. A damaged `.gz` may stay: `find` prefers the plain file."""
    here = file.find(folder)
    try:
        if here is not None:
            file.read(here)
    except CorruptDataError:
        return None
    return here


def _fetch_file(
    file: DataFile,
    folder: Path,
    addresses: Sequence[str],
    progress: Progress | None,
    timeout: float,
    attempts: int,
    pause: float,
) -> Path:
    if here := _standing(file, folder):
        return here
    if not addresses:
        raise FetchError(
            f"no mirror serves {file.path}; put it into {folder} by hand (sha256 {file.sha256})"
        )
    final = folder / file.path
    final.parent.mkdir(parents=True, exist_ok=True)
    incoming = folder / ".incoming"
    incoming.mkdir(exist_ok=True)
    for stray in incoming.glob("tmp*"):
        # A killed pooch leaves its temporary files behind; nobody else is here, we hold the lock.
        stray.unlink()
    arrival = incoming / file.path.replace("/", "-")
    download = _Download(file, arrival.with_name(arrival.name + ".part"), progress, timeout)
    reports = []
    for address in addresses:
        failure = _try_mirror(download, address, arrival, attempts, pause)
        if failure is None:
            os.replace(arrival, final)
            _sync_folder(final.parent)
            with suppress(OSError):  # it holds the parts of other files
                incoming.rmdir()
            return final
        reports.append(f"{address}: {failure}")
    raise FetchError(f"could not download {file.path}; {'; '.join(reports)}")


def _try_mirror(
    download: "_Download", address: str, arrival: Path, attempts: int, pause: float
) -> str | None:
    """None once `arrival` stands and is right, else why this mirror was given up."""
    failure = mismatch = ""
    furthest = download.here
    idle = 0
    is_pardoned = False
    while idle < attempts:
        if idle:
            time.sleep(pause * 2 ** (idle - 1))
        try:
            pooch.retrieve(
                address,
                known_hash=f"sha256:{download.file.sha256}",
                fname=arrival.name,
                path=arrival.parent,
                downloader=download,
            )
            return None
        except _HopelessError as error:
            return str(error)
        except _TransferError as error:
            failure = str(error)
        except ValueError:
            # pooch's checksum error, which runs over several lines.
            mismatch = f"sends other bytes than sha256 {download.file.sha256}"
            if download.is_resumed and not is_pardoned:
                # The fault may lie in the bytes that an earlier mirror left behind.
                is_pardoned, furthest = True, 0
                continue
        # Only real progress buys another attempt, so that their number stays bounded: a
        # hundredth of the file at the least.
        if download.here - furthest >= max(1, download.file.size // 100):
            furthest, idle = download.here, 0
        else:
            idle += 1
    return mismatch or failure


class _TransferError(Exception):
    """The transfer broke off; another attempt may go on from there."""


class _HopelessError(Exception):
    """The server answers, but not with this file; asking again is of no use."""


class _Download:
    """A pooch downloader that goes on where the `.part` file ends.

    Attributes:
        is_resumed: whether the last transfer began with bytes that were here already.
    """

    def __init__(
        self, file: DataFile, part: Path, progress: Progress | None, timeout: float
    ) -> None:
        self.file = file
        self.part = part
        self.is_resumed = False
        self._progress = progress
        self._timeout = timeout

    @property
    def here(self) -> int:
        """Bytes in the `.part` file."""
        return self.part.stat().st_size if self.part.exists() else 0

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        """Leaves all bytes of the file, synced, in `output_file`; their sha256 is pooch's part."""
        if self.here > self.file.size:
            self.part.unlink()
        self.is_resumed = self.here > 0
        if self.here < self.file.size:
            try:
                self._transfer(url)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                if isinstance(error, ValueError):
                    # requests' errors about the address itself are ValueErrors as well.
                    raise _HopelessError(f"is no usable address ({error})") from error
                raise _TransferError(self._explain(error)) from error
        if self.here < self.file.size:
            raise _TransferError(f"broke off at {self.here} of {self.file.size} bytes")
        os.replace(self.part, output_file)

    def _transfer(self, url: str) -> None:
        # identity: a packed answer could neither be resumed nor compared byte by byte.
        headers = {"Accept-Encoding": "identity", "User-Agent": "lyapsweep"}
        start = self.here
        if start:
            headers["Range"] = f"bytes={start}-"
        with requests.get(url, headers=headers, stream=True, timeout=self._timeout) as response:
            self._refuse_what_cannot_be_right(response, start)
            with self.part.open("r+b" if start else "wb") as part:
                if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                    self.is_resumed = False
                    start = 0
                    part.truncate()
                part.seek(start)
                try:
                    self._copy(response.raw, part, start)
                finally:
                    os.fsync(part.fileno())

    def _refuse_what_cannot_be_right(self, response: requests.Response, start: int) -> None:
        status, size = response.status_code, self.file.size
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self.part.unlink(missing_ok=True)
            raise _TransferError(f"does not go on from byte {start} (HTTP 416)")
        if status == HTTPStatus.PARTIAL_CONTENT:
            stated = response.headers.get("Content-Range", "")
            if not start or not re.fullmatch(rf"bytes {start}-\d+/({size}|\*)", stated):
                self.part.unlink(missing_ok=True)
                raise _TransferError(
                    f"was asked for bytes {start}-{size - 1}/{size}, sends {stated or 'others'}"
                )
            return
        if status in _WORTH_ANOTHER_TRY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _TransferError(f"answers HTTP {status} {response.reason}")
        if status != HTTPStatus.OK:
            raise _HopelessError(f"answers HTTP {status} {response.reason}")
        length = response.headers.get("Content-Length", str(size))
        if length != str(size):
            raise _HopelessError(f"serves {length} bytes, {self.file.path} has {size}")

    def _copy(self, source: urllib3.BaseHTTPResponse, part: Any, start: int) -> None:
        size, done = self.file.size, start
        # A socket's timeout is renewed by every byte, so a trickle would never trip it: the
        # clock here is renewed by `_CHUNK` bytes only.
        deadline, goal = time.monotonic() + self._timeout, start + _CHUNK
        while done < size:
            # read1 returns what one receive brings, and so never waits for a full chunk.
            data = source.read1(min(_CHUNK, size - done), decode_content=False)
            if not data:
                break
            part.write(data)
            part.flush()  # what a kill leaves behind is what the next run need not fetch
            done += len(data)
            if self._progress:
                self._progress(self.file.path, done, size)
            if done >= goal:
                deadline, goal = time.monotonic() + self._timeout, done + _CHUNK
            elif done < size and time.monotonic() > deadline:
                raise _TransferError(
                    f"stalled at {done} of {size} bytes (under {_CHUNK} in {self._timeout:g} s)"
                )

    def _explain(self, error: Exception) -> str:
        """One line for what went wrong, from the innermost of nested exceptions."""
        place = f"at {self.here} of {self.file.size} bytes"
        innermost: object = error
        while isinstance(innermost, Exception):
            error = innermost
            innermost = getattr(error, "reason", None) or (error.args or (None,))[0]
        if "timed out" in str(error).lower():
            return f"stalled {place} (nothing for {self._timeout:g} s)"
        what = f"broke off {place}" if self.here else "sent nothing"
        return f"{what} ({' '.join(str(error).split())})"


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut, where the system can say so."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
