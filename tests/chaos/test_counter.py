"""The counter notices whatever it counts, in a store of three trials made by hand."""

import contextlib
import hashlib
import json
import sqlite3

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos import counter

EPOCHS = 2


def table_of(trial, attempt=1, offset=0.0, epochs=EPOCHS):
    header = {"trial": trial, "value": trial + epochs / 10 + offset, "attempt": attempt}
    rows = range(epochs + 1)
    return pa.table(
        {
            "sweep": ["s"] * len(rows),
            "epoch": list(rows),
            "quantity": ["val_loss"] * len(rows),
            "values": [[trial + epoch / 10 + offset] for epoch in rows],
            "seconds": [0.1] * len(rows),
            "time_ms": list(rows),
        }
    ).replace_schema_metadata({b"lyapsweep.trial": json.dumps(header).encode()})


REFERENCE = {trial: table_of(trial) for trial in range(3)}


class Made:
    """Both databases and the artifacts of a sweep `s`."""

    def __init__(self, folder):
        self.places = counter.Places(
            "s", str(folder / "mlflow.db"), folder / "artifacts", str(folder / "optuna.db")
        )
        self.sql(
            self.places.tracking,
            "CREATE TABLE runs (run_uuid, status, lifecycle_stage)",
            "CREATE TABLE tags (run_uuid, key, value)",
            "CREATE TABLE metrics (run_uuid, key, step, value, timestamp)",
        )
        self.sql(
            self.places.study,
            "CREATE TABLE studies (study_id, study_name)",
            "CREATE TABLE trials (trial_id, study_id, number, state)",
            "CREATE TABLE trial_values (trial_id, value)",
            "INSERT INTO studies VALUES (1, 's-0123'), (2, 'other-0123')",
            "INSERT INTO trials VALUES (90, 2, 0, 'COMPLETE')",
        )
        for trial in range(3):
            self.run(f"run{trial}", trial, table_of(trial))
            self.sql(
                self.places.study,
                f"INSERT INTO trials VALUES ({trial}, 1, {trial}, 'COMPLETE')",
                f"INSERT INTO trial_values VALUES ({trial}, {trial + 0.2})",
            )

    def sql(self, database, *statements):
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def path(self, run, trial):
        return self.places.artifacts / "1" / run / "artifacts" / f"trial-{trial:05d}.parquet"

    def run(self, run, trial, table):
        path = self.path(run, trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        tags = {
            "kind": "trial", "sweep": "s", "trial_number": trial, "state": "complete",
            "sha256": sha256,
        }  # fmt: skip
        self.sql(
            self.places.tracking,
            f"DELETE FROM runs WHERE run_uuid = '{run}'",
            f"DELETE FROM tags WHERE run_uuid = '{run}'",
            f"DELETE FROM metrics WHERE run_uuid = '{run}'",
            f"INSERT INTO runs VALUES ('{run}', 'FINISHED', 'active')",
            *(
                f"INSERT INTO tags VALUES ('{run}', 'lyapsweep.{k}', '{v}')"
                for k, v in tags.items()
            ),
            *(
                f"INSERT INTO metrics VALUES ('{run}', 'val_loss', {row['epoch']}, "
                f"{row['values'][0]!r}, 0)"
                for row in table.to_pylist()
            ),
        )

    def count(self):
        return counter.count(self.places, 3, REFERENCE)

    def kinds(self):
        return {complaint.partition(":")[0] for complaint in self.count().complaints}


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


def test_nothing_is_said_of_a_whole_sweep(made):
    found = made.count()
    assert (found.complaints, found.identical, found.close) == ([], 3, 0)


@pytest.mark.parametrize(
    ("database", "statement", "kind"),
    [
        ("tracking", "UPDATE runs SET status = 'RUNNING' WHERE run_uuid = 'run1'", "lost"),
        ("tracking", "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = 'run1'", "lost"),
        ("tracking", "DELETE FROM metrics WHERE run_uuid = 'run1' AND step = 1", "lost"),
        ("tracking", "INSERT INTO metrics VALUES ('run1', 'val_loss', 1, 1.1, 5)", "duplicated"),
        ("tracking", "UPDATE tags SET value = 'x' WHERE key = 'lyapsweep.sha256'", "corrupt"),
        ("study", "UPDATE trials SET state = 'RUNNING' WHERE trial_id = 1", "lost"),
        ("study", "DELETE FROM trials WHERE trial_id = 1", "lost"),
        ("study", "INSERT INTO trials VALUES (7, 1, 1, 'COMPLETE')", "duplicated"),
        ("study", "INSERT INTO trials VALUES (7, 1, 3, 'COMPLETE')", "duplicated"),
        ("study", "UPDATE trial_values SET value = 7 WHERE trial_id = 1", "corrupt"),
    ],
)
def test_a_changed_database_is_noticed(made, database, statement, kind):
    made.sql(getattr(made.places, database), statement)
    assert kind in made.kinds()


def test_a_second_run_is_noticed(made):
    made.run("again", 1, table_of(1))
    assert made.kinds() == {"duplicated"}


def test_a_file_that_is_gone_is_noticed(made):
    made.path("run1", 1).unlink()
    assert made.kinds() == {"lost"}


def test_a_damaged_file_is_noticed(made):
    path = made.path("run1", 1)
    path.write_bytes(path.read_bytes()[:-20])
    assert made.kinds() == {"corrupt"}


def test_a_file_half_written_is_noticed(made):
    made.path("run1", 1).with_suffix(".parquet.tmp").write_bytes(b"")
    assert made.kinds() == {"corrupt"}


@pytest.mark.parametrize(
    ("table", "kinds"),
    [
        (table_of(1, offset=1e-3), {"corrupt"}),
        (table_of(1, offset=1e-13), {"corrupt"}),
        (table_of(1, offset=1e-13, attempt=3), set()),
        (table_of(1, offset=1e-3, attempt=3), {"corrupt"}),
        (table_of(1, epochs=1), {"lost"}),
        (pa.concat_tables([table_of(1), table_of(1).slice(2)]), {"duplicated"}),
    ],
)
def test_other_content_than_the_undisturbed_is_noticed(made, table, kinds):
    made.run("run1", 1, table)
    value = json.loads(table.schema.metadata[b"lyapsweep.trial"])["value"]
    made.sql(made.places.study, f"UPDATE trial_values SET value = {value!r} WHERE trial_id = 1")
    assert made.kinds() == kinds
    assert made.count().identical == 2
