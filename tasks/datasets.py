"""The data sets we know by name: what they are, where they come from, and where they lie.

One registry, `DATA_SETS`. Sets that need a download are looked for in `data_folder()`:
`$LYAPSWEEP_DATA` if set, else the user's cache. Nothing here downloads (`pipeline.fetch` does);
whatever is read is compared with its published sha256 first, so that a damaged or different
file is an error rather than a different experiment.
"""

import gzip
import hashlib
import importlib
import io
import os
import stat
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tasks.base import MissingDataError

FOLDER_VARIABLE = "LYAPSWEEP_DATA"


class CorruptDataError(MissingDataError):
    """A file is there but is not the data set; the message names the file and the remedy."""


def open_plain(path: Path) -> BinaryIO:
    """A file to read from. Raises CorruptDataError for a pipe, which may never end, or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptDataError(f"{path} must be a plain file")
    return open(descriptor, "rb")


def gunzipped(data: bytes, most: int, name: str) -> bytes:
    """What was compressed, at most so many bytes. Raises CorruptDataError: damaged, or too much."""
    try:
        found = gzip.GzipFile(fileobj=io.BytesIO(data)).read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptDataError(f"{name} is a damaged gzip file: {error}") from error
    if len(found) > most:
        raise CorruptDataError(f"{name} must hold at most {most:,} bytes when unpacked")
    return found


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Attributes:
        path: below the data folder, with forward slashes.
        size, sha256: of the file as the mirrors serve it.
        urls: mirrors, tried in this order.
        may_be_gzipped: `path` + `.gz` is accepted in its place, judged by the bytes inside.
    """

    path: str
    size: int
    sha256: str
    urls: tuple[str, ...]
    may_be_gzipped: bool = False

    def find(self, folder: Path) -> Path | None:
        """The file in `folder`, or None; says nothing about its contents."""
        names = (self.path, self.path + ".gz") if self.may_be_gzipped else (self.path,)
        return next((folder / name for name in names if (folder / name).is_file()), None)

    def read(self, path: Path) -> bytes:
        """The verified bytes of this file, lying at `path` (unpacked where gzipped by us).

        Raises CorruptDataError where they are not what the mirrors serve.
        """
        try:
            # One byte more than there should be tells that there is too much.
            with open_plain(path) as source:
                if path.name == Path(self.path).name + ".gz":
                    data = gzip.GzipFile(fileobj=source).read(self.size + 1)
                else:
                    data = source.read(self.size + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise CorruptDataError(f"{path} is damaged: {error}") from error
        if len(data) != self.size:
            held = len(data) if len(data) < self.size else f"more than {self.size}"
            raise CorruptDataError(f"{path} must hold {self.size} bytes, holds {held}")
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.sha256:
            raise CorruptDataError(f"{path} must have sha256 {self.sha256}, has {digest}")
        return data


@dataclass(frozen=True)
class DataSet:
    """A data set by name. Sets without `files` come with an installed package.

    inspect: for those, loads the set and says what it found; raises MissingDataError.
    """

    name: str
    summary: str
    origin: tuple[str, ...]
    terms: str
    citation: str
    files: tuple[DataFile, ...] = ()
    inspect: Callable[[], str] = lambda: ""

    @property
    def needs_download(self) -> bool:
        """Whether it must be fetched before use."""
        return bool(self.files)

    @property
    def remedy(self) -> str:
        """What to do about a missing or damaged file."""
        if all(file.urls for file in self.files):
            return f"run `lyapsweep data fetch {self.name}`"
        return "no mirror serves it, put it there by hand"


def pydoc_text() -> str:
    """The reference text of the running CPython: its help topics, by name, two lines apart."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise MissingDataError(
            f"data set pydoc is not on this machine: {sys.executable} has no pydoc_data.topics; "
            "install the full standard library, or run `lyapsweep data fetch war_and_peace`"
        ) from error
    return "\n\n".join(topics[key] for key in sorted(topics))


_DIGITS8X8_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def digits8x8() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images (1797, 8, 8) with values 0..16 and labels (1797,), both uint8."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDataError(
            "data set digits8x8 comes with scikit-learn, which is not installed; "
            "run `pip install scikit-learn`"
        ) from error
    images, labels = load_digits(return_X_y=True)
    images, labels = images.astype(np.uint8).reshape(-1, 8, 8), labels.astype(np.uint8)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if digest != _DIGITS8X8_SHA256:
        raise CorruptDataError(
            f"scikit-learn's digits must have sha256 {_DIGITS8X8_SHA256}, have {digest}; "
            "reinstall scikit-learn"
        )
    return images, labels


def _inspect_pydoc() -> str:
    text = pydoc_text()
    python = ".".join(map(str, sys.version_info[:3]))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"Python {python}: {len(text)} characters, sha256 {digest} (differs by version)"


def _inspect_digits8x8() -> str:
    images, _ = digits8x8()
    return f"{len(images)} images, sha256 {_DIGITS8X8_SHA256}"


_SHLIZEE = (
    "https://raw.githubusercontent.com/shlizee/lyapunov-hyperopt/"
    "5908e4526f06d46972b8e9266fcd3d739b176bbe/CharRNN/WP/input.txt"
)
_SHLIZEE_TWIN = (
    "https://raw.githubusercontent.com/shlizee/LyapunovAutoEncode/"
    "4690469e12d445d00a850113dea617c02d812fe0/CharRNN/data/input.txt"
)
_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def _mnist_file(name: str, size: int, sha256: str) -> DataFile:
    return DataFile(f"mnist/{name}", size, sha256, tuple(m + name for m in _MNIST_MIRRORS))


_ALL = (
    DataSet(
        name="pydoc",
        summary="English reference text on Python, shipped with every CPython (varies by version)",
        origin=("https://docs.python.org/3/reference/",),
        terms="Python Software Foundation License 2",
        citation="Python Software Foundation, The Python Language Reference "
        "(pydoc_data.topics of the running interpreter)",
        inspect=_inspect_pydoc,
    ),
    DataSet(
        name="war_and_peace",
        summary="Tolstoy, War and Peace, in English: 3.2 million characters, 82 distinct",
        origin=(
            "https://www.gutenberg.org/ebooks/2600",
            "https://github.com/shlizee/lyapunov-hyperopt",
        ),
        terms="public domain",
        citation="L. Tolstoy, War and Peace, translated by L. and A. Maude "
        "(Project Gutenberg e-book 2600), in the copy that Vogt, Puelma Touzel, Shlizerman, "
        "Lajoie (2022), doi 10.3389/fams.2022.818799, trained on",
        files=(
            DataFile(
                "war_and_peace.txt",
                3_202_320,
                "eaecfcb30408e2bc35ffe69b297127e3a6ca75548c033df4d2e703b5ff711f8d",
                (_SHLIZEE, _SHLIZEE_TWIN),
                may_be_gzipped=True,
            ),
        ),
    ),
    DataSet(
        name="mnist",
        summary="MNIST handwritten digits: 60,000 + 10,000 images of 28x28",
        origin=("http://yann.lecun.com/exdb/mnist/", *_MNIST_MIRRORS),
        terms="Creative Commons Attribution-ShareAlike 3.0 (as commonly stated)",
        citation="Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits",
        files=(
            _mnist_file(
                "train-images-idx3-ubyte.gz",
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            _mnist_file(
                "train-labels-idx1-ubyte.gz",
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            _mnist_file(
                "t10k-images-idx3-ubyte.gz",
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            _mnist_file(
                "t10k-labels-idx1-ubyte.gz",
                4_542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
    ),
    DataSet(
        name="digits8x8",
        summary="handwritten digits of 8x8 pixels, 1,797 images, shipped with scikit-learn",
        origin=("https://archive.ics.uci.edu/dataset/80",),
        terms="Creative Commons Attribution 4.0 (UCI); scikit-learn's copy: BSD 3-Clause",
        citation="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (1998), "
        "test part",
        inspect=_inspect_digits8x8,
    ),
    DataSet(
        name="cmu_mocap",
        summary="CMU motion capture as exponential maps: 96 sequences, 67,870 frames of 117",
        origin=(
            "http://mocap.cs.cmu.edu",
            "https://github.com/chaneyddtt/"
            "Convolutional-Sequence-to-Sequence-Model-for-Human-Dynamics",
        ),
        terms="free for all uses; credit mocap.cs.cmu.edu, NSF EIA-0196217",
        citation="CMU Graphics Lab Motion Capture Database, as preprocessed by C. Li, Z. Zhang, "
        "W. S. Lee, G. H. Lee, CVPR 2018",
        files=(
            DataFile(
                "cmu_mocap.parquet",
                14_617_812,
                "7c5b93aeaf5ddd11bfe2aacc5b65acb133a43cbf2c76ebcea6b4bbdcc44dbd4d",
                # A conversion of 96 text files into one table; no public mirror serves it.
                (),
            ),
        ),
    ),
)
DATA_SETS: dict[str, DataSet] = {data_set.name: data_set for data_set in _ALL}


def data_set(name: str) -> DataSet:
    """The registry's entry; MissingDataError lists the names there are."""
    if name not in DATA_SETS:
        raise MissingDataError(f"no data set {name!r}; there are {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def data_folder() -> Path:
    """Where fetched data lies: $LYAPSWEEP_DATA if set, else `lyapsweep` in the user's cache."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return cache_folder()


def cache_folder() -> Path:
    """`lyapsweep` in the user's cache: what is there can be had again."""
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        # The XDG rules: an unset, empty or relative value means the default.
        given = os.environ.get("XDG_CACHE_HOME", "")
        cache = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return cache / "lyapsweep"


def locate(name: str, folder: Path | None = None) -> tuple[Path, ...]:
    """Where the files of a set lie, in the registry's order; () for sets without files.

    Raises MissingDataError, naming the folder searched and the command that fetches them.
    """
    where = folder or data_folder()
    found = []
    for file in data_set(name).files:
        path = file.find(where)
        if path is None:
            raise MissingDataError(
                f"data set {name} is not on this machine: no {file.path} in {where} "
                f"({_why(folder)}); {data_set(name).remedy}"
            )
        found.append(path)
    return tuple(found)


def _why(folder: Path | None) -> str:
    if folder is not None:
        return "as asked"
    if os.environ.get(FOLDER_VARIABLE):
        return f"from {FOLDER_VARIABLE}"
    return f"the user's cache; set {FOLDER_VARIABLE} to look elsewhere"


def read(name: str, folder: Path | None = None) -> tuple[bytes, ...]:
    """The verified bytes of each file of a set, in the registry's order.

    Raises MissingDataError, and CorruptDataError where a file is not what it should be.
    """
    contents = []
    for file, path in zip(data_set(name).files, locate(name, folder), strict=True):
        try:
            contents.append(file.read(path))
        except CorruptDataError as error:
            raise CorruptDataError(f"{error}; {data_set(name).remedy}") from error
    return tuple(contents)
