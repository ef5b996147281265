"""The examples in CONTRIBUTING.md are taken from the page and run."""

import dataclasses
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import catalog
from pipeline.diagnostics.base import Moment
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.populations import build
from pipeline.train import train
from tasks.base import seed_for

ROOT = Path(__file__).parents[1]
EXAMPLES = dict(
    re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)
)
CONFS = dict(
    re.findall(r"```yaml\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)
)
KINDS = {
    "tasks/majority.py": "tasks",
    "tasks/networks/elman.py": "networks",
    "pipeline/diagnostics/output_scale.py": "diagnostics",
    "pipeline/regularisers/small_biases.py": "regularisers",
    "analysis/predictors/middle.py": "predictors",
    "analysis/figures/final_losses.py": "figures",
    "analysis/studies/width_helps.py": "studies",
}


@pytest.fixture
def catalogued(tmp_path, monkeypatch):
    """The examples as if their files lay in the packages' folders; `load(kind, name)`."""
    for path, text in EXAMPLES.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        package = importlib.import_module(path.rpartition("/")[0].replace("/", "."))
        # The very list that the package's spec holds, and with it the catalogue.
        assert package.__path__ is package.__spec__.submodule_search_locations
        package.__path__.append(str(file.parent))
    catalog.entries.cache_clear()
    yield catalog.load
    for path in EXAMPLES:
        name = path.removesuffix(".py").replace("/", ".")
        package = sys.modules[name.rpartition(".")[0]]
        package.__path__.remove(str((tmp_path / path).parent))
        if sys.modules.pop(name, None) is not None:
            delattr(package, name.rpartition(".")[2])
    catalog.entries.cache_clear()


def test_there_is_one_example_of_each_kind():
    assert set(EXAMPLES) == set(KINDS)
    assert set(KINDS.values()) == set(catalog.kinds())


def test_the_examples_are_in_house_style(tmp_path):
    for path, text in EXAMPLES.items():
        for command in (["check"], ["format", "--diff"]):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *command, "--stdin-filename", path, "-"],
                input=text,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_catalogue_finds_them_with_what_they_say_they_are(catalogued):
    for path, kind in KINDS.items():
        entry = catalog.entries(kind)[Path(path).stem]
        assert entry.summary == EXAMPLES[path].split('"""')[1].split("\n\n")[0].replace("\n", " ")


def test_the_network_learns_and_its_spectrum_and_outputs_are_measured(catalogued):
    cohort = _cohort(
        catalogued,
        ("char_text", {"text": "pydoc", "characters": 6000, "batch_size": 8, "seq_len": 20}),
        ("elman", [{"units": 8, "init_scale": scale} for scale in (0.5, 2.0)]),
        lyapunov_spectrum={"k": 3, "sequences": 2, "steps": 40, "warmup": 10},
        output_scale={"examples": 2, "steps": 20},
    )
    rungs = list(train(cohort))
    losses = [rung.val_loss[0] for rung in rungs]
    assert losses[-1] < losses[0]
    start = {row.quantity: row.values for row in rungs[0].rows[0]}
    wilder = {row.quantity: row.values for row in rungs[0].rows[1]}
    assert wilder["lyapunov.max"] > start["lyapunov.max"]
    assert start["output_scale"] > 0


def test_the_networks_maps_are_those_of_its_forward_pass(catalogued):
    network_type = catalogued("networks", "elman")
    network = network_type(
        [network_type.Config(units=5)],
        input_size=3,
        output_size=2,
        generators=[torch.Generator().manual_seed(1)],
        dtype=torch.float64,
    )
    inputs = torch.randn(1, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    product = torch.eye(5, dtype=torch.float64)
    for step in network.orbit(inputs).maps():
        assert torch.equal(step(torch.eye(5, dtype=torch.float64)[None, None]), step.dense())
        product = step.dense()[0, 0] @ product

    def last_state(start):
        h = start[None, None]
        for x in inputs.unbind(1):
            h = torch.tanh(h @ network.W.mT + x @ network.U.mT + network.b[:, None])
        return h[0, 0]

    expected = torch.autograd.functional.jacobian(last_state, torch.zeros(5).double())
    torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-14)
    _, state = network(inputs)
    torch.testing.assert_close(state[0, 0], last_state(torch.zeros(5).double()))


def test_the_task_is_learned_and_the_diagnostic_flags_what_is_not_finite(catalogued):
    cohort = _cohort(
        catalogued,
        ("majority", {"coins": 5, "rows": 400}),
        ("mlp", [{"width": 16}, {"width": 16}]),
        output_scale={},
    )
    rungs = list(train(cohort))
    last = {row.quantity: row.values for row in rungs[-1].rows[0]}
    assert last["val_accuracy"] > 0.8
    assert last["val_loss"] < 0.5

    population = build(cohort)
    with torch.no_grad():
        for parameter in population.network.parameters():
            parameter[1] = torch.nan
    (choice,) = cohort.measure
    diagnostic = catalogued("diagnostics", choice.name)(choice.config)
    moment = Moment(epoch=0, update=0, probe_seed=1, tangent_seeds=(1, 2))
    (reading,) = diagnostic.measure(population.network, population.task, moment)
    assert reading.flags == [(), ("not_finite",)]
    assert torch.isfinite(reading.values_N).tolist() == [True, False]


def test_the_regulariser_keeps_biases_small(catalogued):
    kind = catalogued("regularisers", "small_biases")
    ended = []
    for weight in (0.0, 10.0):
        one = Choice("small_biases", kind.Config(weight=weight))
        cohort = _cohort(
            catalogued,
            ("majority", {"coins": 5, "rows": 400}),
            ("mlp", [{"width": 8, "bias_scale": 1.0}]),
            regularise=(one,),
        )
        *_, last = train(dataclasses.replace(cohort, keep_weights=True))
        ended.append(last.weights[0])
    free, held = ({name: abs(array).max() for name, array in w.items()} for w in ended)
    assert held["bias_0"] < 0.75 * free["bias_0"]
    assert held["weight_0"] > 0.75 * free["weight_0"]


def test_the_predictor_and_the_figure_take_a_sweep(catalogued):
    from analysis.frame import SweepFrame

    synthetic = _synthetic()
    frame = SweepFrame.from_records(synthetic.info(), synthetic.sweep("planted", 30))
    kind = catalogued("predictors", "middle")
    view, target = frame.early_view(1), frame.target
    known, asked = target.iloc[:20], target.index[20:]
    for config in kind.variants.values():
        prediction = kind(config).fit(view, known).predict(view, asked)
        assert (prediction.mean == known.mean()).all()
        assert list(prediction.sd.index) == list(asked)

    figure = catalogued("figures", "final_losses")()
    table = figure.data(frame)
    assert dict(zip(table["trial"], table["loss"], strict=True)) == target.to_dict()
    assert figure.png(table).startswith(b"\x89PNG")


def test_the_study_is_carried_out(catalogued, tmp_path, monkeypatch):
    from analysis.studies import outcome, settings
    from pipeline import conf_file
    from pipeline.folder_store import FolderStore

    (text,) = CONFS.values()
    conf = tmp_path / "width_helps.yaml"
    conf.write_text(text)
    monkeypatch.setattr(conf_file, "find", lambda name: conf)
    monkeypatch.setenv("LYAPSWEEP_HOME", str(tmp_path / "home"))
    assert settings.load("width_helps", "paper").sweeps["widths"].epochs == 50
    small = settings.load("width_helps")
    done = outcome.carry_out(small, FolderStore(tmp_path / "store"))
    assert done.tables["losses"]["width"].tolist() == [2, 16] * 5
    assert done.outcome.findings[0].verdict == "reproduced"
    turned = {"losses": done.tables["losses"].assign(width=[16, 2] * 5)}
    assert done.study.judge(turned)[0].verdict == "reversed"


def _cohort(load, task, networks, *, regularise=(), **measure):
    task_name, settings = task
    network_name, members = networks
    chosen = Choice(task_name, load("tasks", task_name).Config(**settings))
    config_type = load("networks", network_name).Config
    trials = tuple(
        TrialSpec(
            number=number,
            seed=seed_for(1, number),
            task=chosen,
            network=Choice(network_name, config_type(**member)),
            trainer=Trainer(epochs=8, learning_rate=1e-2, dtype="float64", regularise=regularise),
        )
        for number, member in enumerate(members)
    )
    diagnostics = {name: load("diagnostics", name).Config for name in measure}
    return Cohort(
        sweep_seed=1,
        trials=trials,
        measure=tuple(
            Choice(name, dataclasses.replace(diagnostics[name](**given), at=(0,)))
            for name, given in measure.items()
        ),
    )


def _synthetic():
    path = Path(__file__).parent / "analysis" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic_sweeps", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
