"""What must never be on record or on a screen: passwords, keys and tokens of the servers used."""

from pathlib import Path

import pytest

from pipeline.store import hide_password

SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "planted-user-1x",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-2x",
    "MLFLOW_TRACKING_TOKEN": "planted-token-3x",
    "AWS_ACCESS_KEY_ID": "planted-key-4x",
    "AWS_SECRET_ACCESS_KEY": "planted-s3-5x",
    "RAY_AUTH_TOKEN": "planted-ray-6x",
}
WORD = "planted-inURI/7x"
QUOTED = "planted-inURI%2F7x"


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    # MLflow asks a database that is away for minutes; what it says at the end is the same.
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)


def clean(*texts: str) -> None:
    for text in texts:
        for secret in (*SECRETS.values(), WORD, QUOTED, "planted-"):
            assert secret not in text, text[:2000]


def test_no_secret_of_the_environment_is_on_record(run, folder: Path):
    done = run("sweep", "tiny.yaml", "trials=2", "--name", "quiet", "execution.keep_weights=true")
    assert done.code == 0, done.err
    shown = [run("status", "quiet"), run("doctor", "quiet"), run("export", "quiet", "out")]
    assert [one.code for one in shown] == [0, 0, 0]
    clean(done.out, done.err, *(text for one in shown for text in (one.out, one.err)))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {".parquet", ".db", ".safetensors", ".json"} <= {path.suffix for path in files}
    for path in files:
        assert b"planted-" not in path.read_bytes(), path


@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{QUOTED}@127.0.0.1:9",
        f"postgresql+psycopg://me:{QUOTED}@127.0.0.1:9/mlflow",
        f"postgresql+psycopg://127.0.0.1:9/mlflow?user=me&password={QUOTED}",
        f"nosuch://me:{QUOTED}@127.0.0.1:9/mlflow",
    ],
)
@pytest.mark.parametrize("words", [("status",), ("report", "x")])
def test_a_store_that_does_not_answer_is_named_without_its_password(run, uri, words):
    done = run(*words, "--store", uri)
    assert done.code in (1, 2)
    assert done.err.strip()
    assert "Traceback" not in done.err
    clean(done.out, done.err)


def test_ui_names_a_served_store_without_its_password(run):
    done = run("ui", "--store", f"http://me:{QUOTED}@tracking.example:5000")
    assert done.code == 0
    assert "http://me:***@tracking.example:5000" in done.out
    clean(done.out, done.err)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://me:{QUOTED}@127.0.0.1:9/optuna",
        f"postgresql+psycopg://127.0.0.1:9/optuna?user=me&password={QUOTED}",
    ],
)
def test_optunas_database_is_named_without_its_password(run, folder: Path, monkeypatch, url):
    monkeypatch.setenv("LYAPSWEEP_OPTUNA", url)
    done = run("sweep", "tiny.yaml", "execution.patience=0", "--name", "away")
    assert done.code == 1
    assert "Traceback" not in done.err
    clean(done.out, done.err)
    for path in folder.rglob("*"):
        assert not path.is_file() or b"planted-" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:a%2Fb@host", "http://me:***@host"),
        ("postgresql://host/x?password=a%2Fb&user=me", "postgresql://host/x?password=***&user=me"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        ("http://me:[x@host", "http://me:***@host"),
    ],
)
def test_passwords_are_hidden_however_they_are_written(uri, shown):
    assert hide_password(uri) == shown
    plain = uri.replace("%2F", "/")
    assert "a/b" not in hide_password(uri, f"cannot reach {plain}")
