import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from analysis.cli import report
from analysis.frame import AnalysisError, SweepFrame
from analysis.verdict import verdict
from pipeline.folder_store import FolderStore
from pipeline.store import NoSuchSweepError, StoreError
from tests.analysis import synthetic


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(report)
    return made


@pytest.mark.usefixtures("quick_pictures")
def test_report_command(app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = synthetic.stored(tmp_path, synthetic.sweep("null", 5))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["made-up", "--store", store.uri])
    assert result.exit_code == 0, result.output
    lines = result.output.strip().splitlines()
    assert lines[-1] == str(tmp_path / "reports" / "made-up" / "index.html")
    assert lines[-2] == verdict(SweepFrame.from_store(store, "made-up")).headline
    assert Path(lines[-1]).is_file()
    assert (store.root / "made-up" / "report" / "index.html").is_file()


@pytest.mark.usefixtures("quick_pictures")
def test_a_report_that_cannot_be_attached_is_still_written(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = synthetic.stored(tmp_path, synthetic.sweep("null", 3))

    def refuses(*_: object) -> None:
        raise StoreError("artifact store is read-only")

    monkeypatch.setattr(FolderStore, "attach", refuses)
    result = CliRunner().invoke(
        app, ["made-up", "--store", store.uri, "--out", str(tmp_path / "here")]
    )
    assert result.exit_code == 0
    assert "warning: the report was not attached" in result.stderr
    assert (tmp_path / "here" / "index.html").is_file()


def test_errors_name_the_fault(tmp_path: Path) -> None:
    store = synthetic.stored(tmp_path, [])
    with pytest.raises(NoSuchSweepError, match="no sweep 'mdae-up'"):
        report(["mdae-up"], store=store.uri)
    with pytest.raises(AnalysisError, match="no trial has been published"):
        report(["made-up"], store=store.uri)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, analysis.cli; "
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'mlflow', 'ray', 'sklearn'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
