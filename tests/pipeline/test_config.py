import json
import random

import pytest

from pipeline import conf_file, config, space
from pipeline.faults import ConfigError

TREE = {
    "trials": 8,
    "task": {"name": "planar", "points": 200},
    "network": {"name": "mlp", "width": {"log_int": [4, 16]}},
    "trainer": {"epochs": 3, "learning_rate": {"log_uniform": [1e-4, 1e-1]}},
    "measure": {"gradient_norm": {"at": [0, 3]}},
}
TEXT = """
trials: 8
task: {name: planar, points: 200}
network: {name: mlp, width: {log_int: [4, 16]}}
trainer:
  epochs: 3
  learning_rate: {log_uniform: [1e-4, 1e-1]}
measure: {gradient_norm: {at: [0, 3]}}
"""


def changed(**sections):
    return {**TREE, **sections}


def fault(tree, **options):
    with pytest.raises(ConfigError) as caught:
        config.check(tree, **options)
    return str(caught.value)


@pytest.fixture
def conf(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(TEXT)
    return path


def test_a_file_is_its_tree(conf):
    loaded = conf_file.load(conf)
    assert loaded.hash == config.check(TREE).hash
    assert list(loaded.space) == ["network.width", "trainer.learning_rate"]
    assert loaded.space["trainer.learning_rate"].low == 1e-4
    assert loaded.trials == 8
    assert loaded.measure[0].config.at == (0, 3)


def test_exponents_without_a_point_are_numbers(conf):
    conf.write_text(TEXT.replace("{log_uniform: [1e-4, 1e-1]}", "1e-4"))
    assert conf_file.load(conf).tree["trainer"]["learning_rate"] == 1e-4
    assert (
        conf_file.load(conf, ["trainer.learning_rate=2e-4"])
        .spec(0, {"network.width": 4})
        .trainer.learning_rate
        == 2e-4
    )


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (changed(netwrok={}), "conf netwrok: unknown key; did you mean 'network'?"),
        (
            changed(network={"name": "mlp", "widht": 3}),
            "conf network.widht: unknown key; did you mean 'width'?",
        ),
        (changed(network={"name": "mlp", 5: 3}), "conf network.5: unknown key; known are width"),
        (changed(network={"name": "mlpp"}), "conf network.name: no network 'mlpp'; there are"),
        (changed(network={}), "conf network.name: missing; name one of"),
        (changed(network="mlp"), "conf network: must be a mapping with a `name`, got 'mlp'"),
        (changed(network=None), "conf network: must be a mapping with a `name`, got None"),
        (
            changed(network={"name": "mlp", "width": 0}),
            "conf network.width: must be at least 1, got 0",
        ),
        (changed(network={"name": "mlp", "width": 4.0}), "network.width: must be a whole number"),
        (changed(network={"name": "mlp", "width": "4"}), 'must be a whole number, got "4"'),
        (changed(network={"name": "mlp", "width": True}), "must be a whole number, got true"),
        (
            changed(network={"name": {"choice": ["mlp", "lstm"]}}),
            "conf network.name: this must be one value; run one sweep for each",
        ),
        (
            changed(network={"name": "mlp", "width": {"int": [9, 2]}}),
            "conf network.width: the low end",
        ),
        (
            changed(network={"name": "mlp", "width": {"choice": []}}),
            "conf network.width: choice needs",
        ),
        (changed(network={"name": "mlp", "width": float("nan")}), "not a plain finite one"),
        (changed(trainer=0), "conf trainer: must be a mapping, got 0"),
        (changed(sampler=[]), "conf sampler: must be a mapping, got []"),
        (changed(sampler={"name": "sobol"}), "conf sampler.name: must be 'qmc', 'random'"),
        (changed(trials=0), "conf trials: must be from 1 to 10000000, got 0"),
        (changed(trials=True), "conf trials: must be a whole number, got True"),
        (changed(trials=None), "conf trials: missing; how many trials to run"),
        (changed(trials={"int": [1, 2]}), "conf trials: a range may stand in task, network"),
        (changed(execution={"workers": {"int": [1, 2]}}), "conf execution.workers: a range may"),
        (changed(seed=-1), "conf seed: must be from 0"),
        (changed(measure={"ftl": {}}), "conf measure.ftl: no diagnostic 'ftl'; there are"),
        (
            changed(measure={"gradient_norm": 5}),
            "conf measure.gradient_norm: must be a mapping, got 5",
        ),
        (
            changed(measure={"gradient_norm": {"name": "ftle"}}),
            "conf measure.gradient_norm.name: unknown key",
        ),
        (changed(measure={1: {}}), "conf measure.1: no diagnostic '1'"),
        (changed(measure=["ftle"]), "conf measure: must map names"),
        (
            changed(pruner={"name": "halving"}),
            "conf pruner.name: must be one of none, median, percentile, successive_halving",
        ),
        (changed(pruner={"name": ["median"]}), "conf pruner.name: must be one of none, median"),
        (changed(pruner="median"), "conf pruner: must be a mapping with a `name`, got 'median'"),
        (changed(pruner={"name": {"choice": ["none"]}}), "conf pruner.name: a range may stand in"),
        (changed(pruner={"at": [1]}), "conf pruner.at: unknown key"),
        (
            changed(pruner={"name": "median", "percentile": 5}),
            "conf pruner.percentile: unknown key",
        ),
        (
            changed(pruner={"name": "hyperband", "reduction_factor": 1}),
            "conf pruner.reduction_factor: must be at least 2, got 1",
        ),
        (
            changed(pruner={"name": "median", "at": [1, 3]}),
            "conf pruner.at: epoch 3 is not before the last epoch, 3",
        ),
        (
            changed(execution={"cohort_size": 0}),
            "conf execution.cohort_size: must be at least 1, got 0",
        ),
        (changed(execution={"cohort_size": "big"}), "conf execution.cohort_size: must be"),
        (
            changed(measure={"gradient_norm": {"at": [4]}}),
            "conf measure.gradient_norm.at: epoch 4 is after the last epoch, 3",
        ),
    ],
)
def test_each_fault_is_one_line_with_its_path(tree, line):
    message = fault(tree)
    assert line in message
    assert "\n" not in message


def test_all_faults_are_told_at_once():
    message = fault(changed(network={"name": "mlp", "width": 0, "depht": 1}, trainer={"epochs": 0}))
    assert sorted(line.split(":")[0] for line in message.splitlines()) == [
        "conf network.depht",
        "conf network.width",
        "conf trainer.epochs",
    ]


@pytest.mark.parametrize(
    ("trainer", "line"),
    [
        ({"learning_rate": {"uniform": [0, 0.1]}}, "trainer.learning_rate: must be above 0, got 0"),
        ({"learning_rate": {"uniform": [0.1, 2e3]}}, "must be at most 1000, got 2000"),
        ({"momentum": {"uniform": [0, 1]}, "optimiser": "sgd"}, "must be below 1, got 1"),
        ({"clip_norm": {"choice": [1.0, None, -1.0]}}, "must be above 0, got -1.0"),
        # Every optimiser and every momentum is fine by itself; together they are not.
        (
            {"optimiser": {"choice": ["sgd", "adam"]}, "momentum": {"uniform": [0, 0.9]}},
            "conf trainer: momentum is of sgd; adam has its own (beta1)",
        ),
    ],
)
def test_every_end_and_pair_of_ends_is_checked(trainer, line):
    message = fault(changed(trainer={"epochs": 3, **trainer}))
    assert line in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_real_ranges_are_refused_where_only_whole_numbers_may_stand(kind):
    assert "must be a whole number, got 4.0" in fault(
        changed(network={"name": "mlp", "width": {kind: [4, 8]}})
    )


def test_whole_ranges_serve_real_settings():
    checked = config.check(changed(trainer={"epochs": 3, "learning_rate": {"int": [1, 2]}}))
    values = {"network.width": 4, "trainer.learning_rate": 2}
    assert checked.spec(0, values).trainer.learning_rate == 2.0


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("network.width=128", "network.width", 128),
        ("network.width={int: [2, 5]}", "network.width", {"int": [2, 5]}),
        ("trainer.learning_rate=1e-3", "trainer.learning_rate", 1e-3),
        ("trainer.dtype=float64", "trainer.dtype", "float64"),
        ("trainer.clip_norm=null", "trainer.clip_norm", None),
        ("trainer.learning_rate.num=3", "trainer.learning_rate.num", 3),
        ("measure.gradient_norm.at=[0,1]", "measure.gradient_norm.at", [0, 1]),
        ("trials=3", "trials", 3),
    ],
)
def test_overrides_replace_values_and_ranges(conf, override, path, value):
    node = conf_file.load(conf, [override]).tree
    for part in path.split("."):
        node = node[part]
    assert node == value
    is_range = space.parse_range(value) is not None
    names = set(conf_file.load(conf, [override]).space)
    if path in ("network.width", "trainer.learning_rate"):
        assert (path in names) == is_range


def test_the_last_override_wins(conf):
    loaded = conf_file.load(conf, ["network.width=16", "network.width=17"])
    assert loaded.tree["network"]["width"] == 17


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("network.width=0", "command line 'network.width=0': network.width: must be at least 1"),
        ("network.widht=3", "command line 'network.widht=3': network.widht: unknown key; did you"),
        ("network.width={int: [5, 2]}", "network.width: the low end must not exceed"),
        ("network=5", "command line 'network=5': network: must be a mapping"),
        ("network.width=", "must be a whole number, got null"),
        ("network.width", "an override is key=value"),
        ("=3", "an override is key=value"),
        ("network..width=3", "an override is key=value"),
        ("network.width=[1", "the value is not valid YAML"),
    ],
)
def test_faulty_overrides_name_the_command_line(conf, override, line):
    with pytest.raises(ConfigError) as caught:
        conf_file.load(conf, [override])
    assert line in str(caught.value)
    assert str(caught.value).startswith("command line")
    assert "\n" not in str(caught.value)


def test_faults_of_the_file_name_the_file(conf):
    conf.write_text(TEXT.replace("epochs: 3", "epochs: 0"))
    with pytest.raises(
        ConfigError, match=r"sweep\.yaml trainer\.epochs: must be at least 1, got 0"
    ):
        conf_file.load(conf, ["network.width=3"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (TEXT + "trials: 9\n", "line 9: not valid YAML (found duplicate key trials)"),
        (TEXT.replace("points: 200", "points: 200, points: 3"), "duplicate key points"),
        ("a: [1,\n", "not valid YAML"),
        ("- 1\n", "must be a mapping with the sections"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("a: &x {b: *x}\n", "not valid YAML"),
        ("trials: 8\n", "task: missing; name one of"),
    ],
)
def test_unreadable_files_are_refused_in_a_line(conf, text, line):
    conf.write_text(text)
    with pytest.raises(ConfigError) as caught:
        conf_file.load(conf)
    assert str(caught.value).startswith(str(conf))
    assert line in str(caught.value)


def test_files_that_cannot_be_read_are_refused(conf, tmp_path):
    conf.write_bytes(b"trials: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        conf_file.load(conf)
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        conf_file.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        conf_file.find(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="is a folder"):
        conf_file.find(str(tmp_path))


def shuffled(node, rng):
    if not isinstance(node, dict):
        return node
    keys = list(node)
    rng.shuffle(keys)
    return {key: shuffled(node[key], rng) for key in keys}


def test_the_order_of_keys_changes_neither_hash_nor_design():
    original = config.check(TREE)
    for seed in range(20):
        other = config.check(shuffled(TREE, random.Random(seed)))
        assert other.hash == original.hash
        assert list(other.space) == list(original.space)


def test_execution_changes_no_hash_and_everything_else_does():
    reference = config.check(TREE).hash
    execution = {"executor": "inline", "threads": 2, "workers": 2}
    assert config.check(changed(execution=execution)).hash == reference
    # How many are asked for at a time follows from the cohorts, and steers adaptive samplers.
    larger = config.check(changed(execution={"cohort_size": 3}))
    assert larger.sampler.batch == 24
    assert larger.hash != reference
    others = [
        changed(seed=1),
        changed(trials=9),
        changed(sampler={"name": "random"}),
        changed(task={"name": "planar", "points": 201}),
        changed(network={"name": "mlp", "width": 4}),
        changed(trainer={"epochs": 4, "learning_rate": {"log_uniform": [1e-4, 1e-1]}}),
        changed(measure={}),
        changed(pruner={"name": "median"}),
    ]
    hashes = {config.check(tree).hash for tree in others}
    assert len(hashes - {reference}) == len(others)


@pytest.mark.parametrize(
    "tree",
    [
        TREE,
        changed(sampler={"name": "grid"}, trials=None, trainer={"epochs": 3}),
        changed(network={"name": "mlp", "width": 3}, trainer=None, sampler=None, measure=None),
        changed(
            seed=2**63 - 1, sampler={"name": "tpe", "batch": 4}, execution={"keep_weights": True}
        ),
        changed(pruner={"name": "percentile", "at": [1, 2]}, execution={"cohort_size": 5}),
    ],
)
def test_a_resolved_tree_is_its_own_resolution(tree):
    once = config.check(tree)
    through_json = json.loads(json.dumps(once.tree, sort_keys=True))
    twice = config.check(through_json)
    assert (twice.tree, twice.hash, list(twice.space)) == (once.tree, once.hash, list(once.space))


def test_a_grid_counts_its_own_trials():
    grid = changed(
        sampler={"name": "grid"},
        trials=None,
        network={"name": "mlp", "width": {"choice": [4, 8, 16]}},
        trainer={"epochs": 3, "learning_rate": {"log_uniform": [1e-4, 1e-1], "num": 5}},
    )
    assert config.check(grid).trials == 15
    assert config.check({**grid, "trials": 7}).trials == 7
    assert config.check({**grid, "trials": 30}).trials == 30
    assert "the grid has 15 points, so more must be a multiple" in fault({**grid, "trials": 16})
    ungridded = fault(changed(sampler={"name": "grid"}))
    assert "conf trainer.learning_rate: a grid needs `num`" in ungridded


def test_params_hold_every_setting_defaults_included():
    checked = config.check(TREE)
    spec = checked.spec(3, {"network.width": 7, "trainer.learning_rate": 0.01})
    params = checked.params(spec)
    assert params["network.width"] == 7
    assert params["network.depth"] == 2
    assert params["trainer.learning_rate"] == 0.01
    assert params["task.name"] == "planar"
    assert set(checked.space) <= set(params)


def test_trial_seeds_depend_on_sweep_seed_and_number_alone():
    values = {"network.width": 7, "trainer.learning_rate": 0.01}
    checked = config.check(TREE)
    seeds = [checked.spec(n, values).seed for n in range(50)]
    assert len(set(seeds)) == 50
    other = {"network.width": 9, "trainer.learning_rate": 0.02}
    assert [checked.spec(n, other).seed for n in range(50)] == seeds
    assert config.check(changed(seed=1)).spec(0, values).seed not in seeds


def test_a_tree_without_a_cohort_size_is_settled_by_one_with_all_that_follows():
    open_ = config.check(changed(sampler={"name": "tpe"}, trials=400))
    assert (open_.is_settled, open_.sampler.batch) == (False, None)
    done = open_.with_cohort_size(12)
    assert (done.is_settled, done.limits.size) == (True, 12)
    assert done.batch_size == min(12 * done.execution.num_workers, 50)
    assert done.hash == config.check({**open_.tree, "execution": done.tree["execution"]}).hash


@pytest.mark.parametrize(
    ("trials", "size", "batch"),
    [(400, 4, 8), (400, 25, 50), (400, 64, 50), (64, 32, 10), (20, 16, 10), (20, 2, 4)],
)
def test_an_adaptive_sampler_is_asked_for_no_more_than_it_can_learn_from(trials, size, batch):
    execution = {"cohort_size": size, "workers": 2}
    tree = changed(trials=trials, sampler={"name": "gp"}, execution=execution)
    assert config.check(tree).batch_size == batch


@pytest.mark.parametrize(
    ("execution", "threads", "workers"),
    [
        ({}, 1, 6),
        ({"workers": 2}, 3, 2),
        ({"workers": 4}, 1, 4),
        ({"workers": 9}, 1, 9),
        ({"threads": 2}, 2, 3),
        ({"threads": 5, "workers": 2}, 5, 2),
        ({"executor": "inline"}, 1, 1),
    ],
)
def test_workers_share_the_cores_out(monkeypatch, execution, threads, workers):
    monkeypatch.setattr(config, "cores", lambda: 6)
    found = config.check(changed(execution=execution)).execution
    assert (found.num_threads, found.num_workers) == (threads, workers)
    assert config.check(changed(execution=execution)).limits_of(3).threads == threads


def test_who_decides_where_is_part_of_the_plan():
    tree = changed(pruner={"name": "median", "n_warmup_steps": 2})
    tree = {**tree, "trainer": {"epochs": 5}, "execution": {"cohort_size": 2, "workers": 3}}
    checked = config.check(tree)
    assert checked.limits.pauses == {2, 3, 4}
    assert checked.tree["pruner"]["lag"] == 3
    assert checked.tree["pruner"]["name"] == "median"
    assert config.check(TREE).limits_of(2).pauses == frozenset()
    # Once settled, more workers do not change who is judged by whom.
    more = conf_file.with_execution(checked, ["execution.workers=7"])
    assert (more.tree["pruner"], more.hash) == (checked.tree["pruner"], checked.hash)


def test_a_sweep_that_was_begun_keeps_its_cohorts_where_they_count():
    plain = config.check(changed(execution={"cohort_size": 4}))
    assert conf_file.with_execution(plain, ["execution.cohort_size=2"]).limits.size == 2
    with pytest.raises(ConfigError, match="auto was settled when the sweep was created"):
        conf_file.with_execution(plain, ["execution.cohort_size=auto"])
    judged = config.check(changed(pruner={"name": "median"}, execution={"cohort_size": 4}))
    with pytest.raises(ConfigError, match="a sweep with a pruner keeps its cohorts"):
        conf_file.with_execution(judged, ["execution.cohort_size=2"])


def test_trees_stored_before_there_were_pruners_are_read():
    old = config.check(changed(execution={"cohort_size": 8})).tree
    old = {key: value for key, value in old.items() if key != "pruner"}
    old["sampler"] = {"name": "qmc", "batch": 64}
    again = config.check(old)
    assert again.pruner.name == "none"
    assert again.batch_size == 64


def regularised(**named):
    return changed(trainer={**TREE["trainer"], "regularise": named})


def test_a_tree_without_regularisers_is_what_it_was_before_there_were_any():
    plain = config.check(TREE)
    assert "regularise" not in plain.tree["trainer"]
    assert not [
        path for path in plain.params(plain.spec(0, drawn_at(plain))) if "regularise" in path
    ]
    for nothing in ({}, None):
        empty = config.check(changed(trainer={**TREE["trainer"], "regularise": nothing}))
        assert empty.hash == plain.hash
        assert empty.tree == plain.tree


def drawn_at(checked):
    return {path: one.ends()[0] for path, one in checked.space.items()}


def test_regularisers_stand_in_the_tree_with_defaults_and_ranges_and_come_back():
    tree = changed(
        network={"name": "rnn", "units": 8},
        trainer={
            "epochs": 3,
            "regularise": {
                "smoothness": None,
                "flossing": {"weight": {"log_uniform": [1e-2, 10.0]}, "exponents": 3},
            },
        },
    )
    checked = config.check(tree)
    path = "trainer.regularise.flossing.weight"
    assert list(checked.space) == [path]
    held = checked.tree["trainer"]["regularise"]
    assert held["flossing"]["weight"] == {"log_uniform": [1e-2, 10.0]}
    assert (held["flossing"]["exponents"], held["flossing"]["steps"]) == (3, 20)
    assert held["smoothness"] == {"weight": 1.0, "until": None}
    again = config.check(json.loads(json.dumps(checked.tree, sort_keys=True)))
    assert (again.hash, again.tree) == (checked.hash, checked.tree)
    spec = checked.spec(2, {path: 0.5})
    assert [one.name for one in spec.trainer.regularise] == ["flossing", "smoothness"]
    assert spec.trainer.regularise[0].config.weight == 0.5
    params = checked.params(spec)
    assert (params[path], params["trainer.regularise.flossing.until"]) == (0.5, None)
    assert params["trainer.regularise.smoothness.weight"] == 1.0
    assert "trainer.regularise" not in params


@pytest.mark.parametrize(
    ("named", "line"),
    [
        ({"flosing": {}}, "conf trainer.regularise.flosing: no regulariser 'flosing'; there are"),
        (
            {"smoothness": {"weigth": 1}},
            "conf trainer.regularise.smoothness.weigth: unknown key; did you mean 'weight'?",
        ),
        (
            {"smoothness": {"weight": -1}},
            "conf trainer.regularise.smoothness.weight: must be at least 0, got -1",
        ),
        (
            {"flossing": {"weight": {"uniform": [-1.0, 2.0]}}},
            "conf trainer.regularise.flossing.weight: must be at least 0, got -1",
        ),
        ({"smoothness": [1]}, "conf trainer.regularise.smoothness: must be a mapping, got [1]"),
    ],
)
def test_faults_in_regularisers_say_where_they_are(named, line):
    assert line in fault(regularised(**named))


@pytest.mark.parametrize("path", ["trainer.regularise", "trainer.regularise.smoothness"])
def test_a_range_may_not_stand_for_regularisers_themselves(path):
    named = {"choice": [None]}
    if path.endswith("smoothness"):
        named = {"smoothness": named}
    tree = changed(trainer={**TREE["trainer"], "regularise": named})
    assert fault(tree).startswith(f"conf {path}: must be a mapping; ranges may stand for")


def test_regularisers_that_are_no_mapping_are_refused():
    found = fault(changed(trainer={"epochs": 3, "regularise": ["flossing"]}))
    assert found.startswith("conf trainer.regularise: must map names of regularisers to settings")
