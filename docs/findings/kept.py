"""Sweeps as they are kept here: a few files a sweep, from which the store's records come back.

NAME/sweep.json      the sweep as the store knows it: config, its hash, versions, commit
NAME/trials.parquet  a line a trial: its outcome and sampled settings to look at, its whole header
NAME/rows.parquet    every number that was recorded, of all trials
NAME/content.json    sha256 of what the records say, by which unpacking is checked
NAME/plan.yaml       what was to be tested; NAME/preregistration.json: when it was fixed, its hash

`keep` writes them from a store, `unpack` makes a plain-folder store of them: record by record the
same as those that the sweep wrote, so that `lyapsweep report` finds what it would have found then.

    python docs/findings/kept.py keep recall --store sqlite:///mlflow.db
    python docs/findings/kept.py unpack --store folder:findings-store
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.preregistration import FILE, FOLDER
from pipeline import records
from pipeline.folder_store import FolderStore
from pipeline.records import TrialRecord
from pipeline.store import Store, SweepInfo, open_store

HERE = Path(__file__).parent
SWEEPS = ("recall", "recall-fresh", "recall-pruned", "charlm", "planar")
# What parts of a header a reader of the table wants to see.
_SHOWN = ("trial", "state", "value", "diverged_at", "pruned_at", "epochs", "seed")


def keep(store: Store, name: str, folder: Path) -> None:
    """Writes a complete sweep's files into `folder`. Raises ValueError where it is not complete."""
    info, found = store.sweep(name), list(store.records(name))
    if info.state != "complete" or len(found) != info.num_trials:
        raise ValueError(
            f"sweep {name!r}: must be complete to be kept, but it is {info.state} with "
            f"{len(found)} of {info.num_trials} trials"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "sweep.json", asdict(info))
    _save(_trials(found), folder / "trials.parquet")
    rows = pa.concat_tables([r.table.replace_schema_metadata(None) for r in found])
    # The same in every line, and given back by `records_of`.
    _save(rows.drop_columns(["sweep"]), folder / "rows.parquet")
    _write(folder / "content.json", {"trials": len(found), "sha256": _content(found)})


def records_of(folder: Path) -> Iterator[TrialRecord]:
    """The trials that are kept in `folder`, in order of their numbers."""
    rows = pq.read_table(folder / "rows.parquet")
    for text in pq.read_table(folder / "trials.parquet")["header"].to_pylist():
        header = records.header_from_json(text)
        own = rows.filter(pc.equal(rows["trial"], header.trial))
        sweep = pa.array([header.sweep] * own.num_rows, pa.string())
        yield TrialRecord(header, own.add_column(0, "sweep", sweep).cast(records.SCHEMA))


def info_of(folder: Path) -> SweepInfo:
    """The sweep that is kept in `folder`."""
    return SweepInfo(**json.loads((folder / "sweep.json").read_text("utf-8")))


def unpack(folder: Path, store: FolderStore) -> str:
    """Makes a sweep of a folder's files; returns its name.

    Raises ValueError where its records are not those that were kept, NameInUseError.
    """
    info, found = info_of(folder), list(records_of(folder))
    expected = json.loads((folder / "content.json").read_text("utf-8"))
    if (len(found), _content(found)) != (expected["trials"], expected["sha256"]):
        raise ValueError(
            f"{folder}: its {len(found)} trials are not the {expected['trials']} that were kept: "
            "rows.parquet or trials.parquet was changed or is damaged"
        )
    store.prepare()
    store.create_sweep(info)
    for record in found:
        records.write(
            record, store.root / info.name / "trials" / f"{record.header.trial:05d}.parquet"
        )
    if (folder / FILE).exists():
        store.attach(info.name, folder / FILE, FOLDER)
    return info.name


def _trials(found: Iterable[TrialRecord]) -> pa.Table:
    lines = []
    for record in found:
        header = asdict(record.header)
        sampled = {name: header["params"][name] for name in header["sampled"]}
        text = json.dumps(header, sort_keys=True)
        lines.append({**{name: header[name] for name in _SHOWN}, **sampled, "header": text})
    return pa.Table.from_pylist(lines)


def _content(found: Iterable[TrialRecord]) -> str:
    """Of every trial's header and every number but times."""
    digest = hashlib.sha256()
    for record in found:
        digest.update(json.dumps(asdict(record.header), sort_keys=True).encode())
        digest.update(records.content_hash(record.table).encode())
    return digest.hexdigest()


def _save(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", compression_level=19)


def _write(path: Path, content: dict[str, object]) -> None:
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    """`keep NAME…` or `unpack`, with the store's URI."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["keep", "unpack"])
    parser.add_argument("names", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--store", required=True, help="folder:PATH or an MLflow tracking URI")
    asked = parser.parse_args(arguments)
    store = open_store(asked.store)
    for name in asked.names or SWEEPS:
        if asked.what == "keep":
            keep(store, name, HERE / name)
            if isinstance(store, FolderStore) and (store.root / name / FOLDER / FILE).exists():
                shutil.copy2(store.root / name / FOLDER / FILE, HERE / name / FILE)
        elif not isinstance(store, FolderStore):
            parser.error(f"unpack: --store must be folder:PATH, got {asked.store}")
        elif not (store.root / name / "sweep.json").exists():
            unpack(HERE / name, store)
        print(f"{name}: {asked.what}ed" if asked.what == "unpack" else f"{name}: kept")


if __name__ == "__main__":
    main(sys.argv[1:])
