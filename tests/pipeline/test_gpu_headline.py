"""The script of the experiments on a GPU, at a scale that a CPU takes in seconds."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
EXACT = ("train_loss", "val_loss", "test_loss", "spectra", "updates", "epoch", "rates")


def script(name):
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def results(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_an_experiment_in_four_runs_equals_the_unbroken_one(tmp_path):
    headline = script("gpu_headline")
    whole, parts, saved = tmp_path / "whole", tmp_path / "parts", tmp_path / "saved"
    assert headline.main(["--scale", "tiny", "--out", str(whole)]) == 0
    for name in ("lstm", "mlp"):
        split = ["--scale", "tiny", "--only", name, "--out", str(parts)]
        split += ["--checkpoint", str(saved), "--limit", "1e-9"]
        # Epochs 0 to 3, one a run.
        assert [headline.main(split) for _ in range(4)] == [headline.NOT_ALL] * 3 + [0]
        found, expected = (results(folder, f"{name}-fp32") for folder in (parts, whole))
        assert {key: found[key] for key in EXACT} == {key: expected[key] for key in EXACT}
        assert (found["runs"], expected["runs"]) == (4, 1)
        assert len(expected["val_loss"]) == 4
        assert expected["val_loss"][3] != expected["val_loss"][0]
    spectra = results(whole, "lstm-fp32")["spectra"]
    assert set(spectra) == {"hidden", "full"}
    assert torch.tensor(spectra["full"]).shape == (4, 3, 4)
    # A finished experiment is told again and not trained further.
    assert headline.main(split) == 0
    assert results(parts, "mlp-fp32")["updates"] == expected["updates"]


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path, monkeypatch):
    headline = script("gpu_headline")
    saved = ["--scale", "tiny", "--only", "mlp", "--out", str(tmp_path), "--checkpoint"]
    saved += [str(tmp_path), "--limit", "1e-9"]
    assert headline.main(saved) == headline.NOT_ALL
    monkeypatch.setattr(headline, "SWEEP_SEED", 5)
    with pytest.raises(SystemExit, match="of another experiment"):
        headline.main(saved)


def test_both_modes_are_compared_where_both_are_known(tmp_path):
    headline = script("gpu_headline")
    for extra in ([], ["--tf32"]):
        out = tmp_path / ("tf32" if extra else "fp32")
        arguments = ["--scale", "tiny", "--only", "mlp", "--out", str(out), *extra]
        assert headline.main([*arguments, "--earlier", str(tmp_path / "fp32")]) == 0
    told = (tmp_path / "tf32" / "headline.md").read_text(encoding="utf-8")
    assert "What TF32 does to the validation loss" in told
    assert "| 3 | 0 | 0 |" in told  # A CPU rounds nothing.


def test_work_is_counted_as_published():
    """1.7e16 FLOP for 60 LSTMs and 15 epochs of 256 updates."""
    headline = script("gpu_headline")

    class Text:
        input_size = output_size = 82

    each = headline.flop_per_update("lstm", headline.SCALES["paper"], Text)
    assert 60 * 15 * 256 * each == pytest.approx(1.74e16, rel=0.005)


WITHOUT_THE_REST = """
import importlib.machinery, runpy, sys

MISSING = {"pydantic", "pandas", "pyarrow", "omegaconf", "optuna", "ray", "mlflow", "sqlalchemy",
    "sklearn", "seaborn", "matplotlib", "typer", "click", "rich", "pooch", "safetensors",
    "requests", "yaml", "pytest"}


class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in MISSING:
            return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("name", "more", "file"),
    [
        ("gpu_headline", [], "headline.md"),
        ("gpu_checks", ["--only", "factorisations", "engine", "many"], "checks.md"),
    ],
)
def test_torch_numpy_and_scipy_are_enough(name, more, file, tmp_path):
    arguments = [str(BENCH / f"{name}.py"), "--scale", "tiny", "--out", str(tmp_path), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_REST, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| " in (tmp_path / file).read_text(encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["gpu_headline", "gpu_checks"])
def test_without_a_gpu_one_line_says_so(name, tmp_path, capsys):
    assert script(name).main(["--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out.count("\n") == 1
    assert not (tmp_path / "out").exists()
