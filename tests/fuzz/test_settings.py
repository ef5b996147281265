"""Settings that a stranger wrote: conf files, overrides, mappings of tables, plans of tests.

Whatever the file holds, it is read or refused with a ConfigError that names it. A tag that asks
Python to do something, an anchor that multiplies, a number that no machine holds do nothing.
"""

import json

import pytest
from hypothesis import strategies as st

from analysis import contenders
from analysis.hypotheses import plan_of, read_plan
from pipeline import conf_file, config, space
from pipeline.external import mapping as mappings
from pipeline.faults import ConfigError
from tests.fuzz.guard import Guard
from tests.fuzz.mutate import RAW, STEPS, bytes_of, tree_of, yaml_of, yaml_with

CONF = {
    "seed": 3,
    "trials": 8,
    "sampler": {"name": "tpe", "batch": 4},
    "pruner": {"name": "median", "at": [1, 2]},
    "task": {"name": "planar", "points": 200, "batch_size": 40},
    "network": {
        "name": "mlp",
        "width": {"choice": [3, 4]},
        "depth": {"int": [1, 4]},
        "dropout": {"uniform": [0, 0.3], "num": 3},
    },
    "trainer": {"epochs": 4, "learning_rate": {"log_uniform": [1e-3, 1e-1]}, "optimiser": "adam"},
    "measure": {"gradient_norm": {"examples": 10, "at": [0, 2]}, "ftle": {}},
    "execution": {"cohort_size": 2, "executor": "inline", "workers": 2, "checkpoint": "auto"},
}
MAPPING = {
    "source": "somebody",
    "trial": "trial",
    "exponents": {
        "epoch": "epoch", "index": "index", "value": "exponent", "unit": "nats/step",
        "state": "full", "spread": "sd", "sequences": 4,
    },
    "losses": {"epoch": "epoch", "value": "loss", "unit": "nats", "details": {"a": 1}},
    "settings": {"width": "network.units", "rate": "trainer.learning_rate"},
    "constants": {"task.name": "char_text"},
    "sampler": "random",
}  # fmt: skip
PLAN = {
    "hypothesis": "The spectrum tells more.",
    "primary": [{"epoch": 2, "test": "increment", "group": "spectrum", "at_least": 0.02}],
    "secondary": [{"epoch": 1, "test": "partial", "feature": "lyapunov.max"}],
    "rungs": [0, 1, 2],
    "features": ["lyapunov.max"],
    "trials": 50,
}
KINDS = ("tree", "text", "bytes", "raw")


def cases(valid):
    """Files: valid ones changed as trees, as YAML, as bytes; and bytes from nowhere."""
    text = json.dumps(valid, indent=1)
    pretty = "\n".join(f"{key}: {json.dumps(value)}" for key, value in valid.items())

    def made(kind, steps, raw):
        if kind == "tree":
            return yaml_of(tree_of(valid, steps)).encode(errors="surrogatepass")
        if kind == "text":
            return yaml_with(pretty, steps, "{outside}").encode()
        return bytes_of(text.encode(), steps, pretty.encode()) if kind == "bytes" else raw

    return st.builds(made, st.sampled_from(KINDS), STEPS, RAW)


def right(checked):
    """What got through is whole: it survives storage, and any of its trials can be made."""
    again = config.check(json.loads(json.dumps(checked.tree)))
    assert again.hash == checked.hash
    for which in (0, -1):
        values = {path: r.ends()[which] for path, r in checked.space.items()}
        checked.params(checked.spec(0, values))
    if checked.is_settled:
        assert checked.limits.size >= 1
    for one in checked.space.values():
        assert str(one)


@pytest.mark.parametrize("count", [150, pytest.param(9_000, marks=pytest.mark.slow)])
def test_conf_files(sandbox, try_many, count):
    path = sandbox / "conf.yaml"
    guard = Guard(sandbox, "conf files", ConfigError)

    def check(data):
        path.write_bytes(data.replace(b"{outside}", str(guard.outside).encode()))
        found = guard(lambda: conf_file.load(path), says=str(path))
        if found is not None:
            right(found)

    path.write_text(json.dumps(CONF))
    right(conf_file.load(path))
    try_many(cases(CONF), count, check)


GOOD = (
    "trials=4", "network.width=8", "seed=7", "network.width={choice: [2, 5]}",
    "sampler.name=random",
    "execution.workers=3", "execution.attempts=2", "trainer.epochs=9", "task.points=1e3",
    "measure.ftle=null", "execution.workers=-1", "execution={}", "network={name: mlp}",
)  # fmt: skip
OVERRIDES = st.builds(
    lambda key, tail, value, cut: (
        f"{key}{tail}{'' if cut == 9 else '='}{yaml_with('v', value, '/nowhere')[1:]}"
    ),
    st.sampled_from(["trainer.learning_rate", "network.width", "trials", "task.name", "seed",
                     "execution.cohort_size", "measure", "network", "..", "a.b.c", "", "pruner"]),
    st.sampled_from(["", "", "", ".x", ".", ".choice", ".uniform", " ", "\0", "[0]", "." * 50,
                     ".a" * 3000]),
    STEPS,
    st.integers(0, 9),
)  # fmt: skip


@pytest.mark.parametrize("count", [80, pytest.param(3_000, marks=pytest.mark.slow)])
def test_overrides(sandbox, try_many, count):
    path = sandbox / "conf.yaml"
    path.write_text(json.dumps(CONF))
    stored = conf_file.load(path)
    guard = Guard(sandbox, "overrides", ConfigError)

    def check(words):
        found = guard(lambda: conf_file.load(path, words))
        if found is not None:
            right(found)
        guard(lambda: conf_file.with_execution(stored, words))

    free = st.text(max_size=40)
    try_many(
        st.lists(OVERRIDES | st.sampled_from(GOOD) | free, min_size=1, max_size=2), count, check
    )


@pytest.mark.parametrize("count", [60, pytest.param(4_000, marks=pytest.mark.slow)])
def test_mappings(sandbox, try_many, count):
    path = sandbox / "mapping.yaml"
    guard = Guard(sandbox, "mappings of tables", ConfigError)

    def check(data):
        path.write_bytes(data.replace(b"{outside}", str(guard.outside).encode()))
        found = guard(lambda: mappings.load(path), says=str(path))
        if found is not None:
            assert json.dumps(found.plain)

    path.write_text(json.dumps(MAPPING))
    mappings.load(path)
    try_many(cases(MAPPING), count, check)


@pytest.mark.parametrize("count", [60, pytest.param(4_000, marks=pytest.mark.slow)])
def test_plans(sandbox, try_many, count):
    path = sandbox / "plan.yaml"
    guard = Guard(sandbox, "plans", ConfigError)

    def check(data):
        path.write_bytes(data.replace(b"{outside}", str(guard.outside).encode()))
        found = guard(lambda: read_plan(path), says=str(path))
        if found is not None:
            from dataclasses import asdict

            assert plan_of(json.loads(json.dumps(asdict(found))), "again").sha256 == found.sha256
            assert all(h.words for h in found.primary)

    path.write_text(json.dumps(PLAN))
    read_plan(path)
    try_many(cases(PLAN), count, check)


@pytest.mark.parametrize("count", [60, pytest.param(3_000, marks=pytest.mark.slow)])
def test_pruners_of_a_replay(sandbox, try_many, count):
    """Named in short, in YAML, or in a file."""
    path = sandbox / "pruner.yaml"
    guard = Guard(sandbox, "pruners of a replay", ConfigError)
    short = ("median:warmup=1", "percentile:percentile=25,at=[1,2]", "{name: spectrum, at: [1]}")

    def check(case):
        kind, steps, data = case
        if kind < 3:
            text = yaml_with(short[kind], steps, "/nowhere")
        else:
            path.write_bytes(data.replace(b"{outside}", str(guard.outside).encode()))
            text = str(path)
        guard(lambda: contenders.choice_of(contenders.parse(text), 9, text[:80]))

    for text in short:
        contenders.choice_of(contenders.parse(text), 9)
    files = cases({"pruner": {"name": "median", "n_warmup_steps": 2, "at": [1, 2]}})
    try_many(st.tuples(st.integers(0, 5), STEPS, files), count, check)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
    for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)
HOSTILE = {
    "a bomb of anchors": BOMB,
    "a bomb of merges": "a: &a {x: 1}\n" + "".join(
        f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}\n"
        for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
    ),
    "a command": "trials: !!python/object/apply:os.system ['touch {outside}/made']",
    "a process": "!!python/object/apply:subprocess.Popen [['touch', '{outside}/made']]: 1",
    "an import": "trials: !!python/module:antigravity",
    "holds itself": "task: &a {name: planar, x: *a}",
    "deep": "a: " + "[" * 30_000,
    "deep mappings": "{a: " * 5_000,
    "long": "a: 1\n" * 2_000_000,
    "a long number": f"trials: 0x{'f' * 200_000}",
    "an endless grid": json.dumps(
        {**CONF, "sampler": "grid", "network": {"name": "mlp", "width": {"int": [1, 10**15]}}}
    ).replace('"grid"', '{"name": "grid"}'),
    "a dense grid": json.dumps(
        {**CONF, "sampler": {"name": "grid"},
         "network": {"name": "mlp", "dropout": {"uniform": [0, 0.5], "num": 10**12}}}
    ),
    "many choices": json.dumps(
        {**CONF, "network": {"name": "mlp", "width": {"choice": list(range(1, 5000))},
                             "dropout": {"choice": [n / 5000 for n in range(5000)]}},
         "sampler": {"name": "no such"}}
    ),
    "a huge end": f"{{task: {{name: planar, points: {{int: [1, 1{'0' * 400}]}}}}}}",
    "a path for a name": "task: {name: ../../outside/secret}\nnetwork: {name: os}\ntrials: 1",
    "an interpolation": "task: {name: '${oc.env:HOME}'}\nnetwork: {name: '${.name}'}\ntrials: 2",
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_does_nothing(sandbox, what):
    path = sandbox / "conf.yaml"
    guard = Guard(sandbox, "planted in settings", ConfigError)
    path.write_text(HOSTILE[what].replace("{outside}", str(guard.outside)))
    conf_file.find(str(path))
    for read in (conf_file.load, mappings.load, read_plan):
        found = guard(lambda read=read: read(path), says=str(path))
        assert found is None, read


@pytest.mark.parametrize("kind", ["link to a folder", "pipe", "missing", "folder"])
def test_what_is_no_plain_file_is_refused(sandbox, kind):
    path = sandbox / "conf.yaml"
    if kind == "pipe":
        import os

        os.mkfifo(path)
    elif kind == "link to a folder":
        path.symlink_to(sandbox)
    elif kind == "folder":
        path.mkdir()
    guard = Guard(sandbox, "planted in settings", ConfigError)
    for read in (conf_file.load, mappings.load, read_plan):
        assert guard(lambda read=read: read(path), says=str(path)) is None


def test_ranges_of_every_shape(sandbox, try_many):
    """The smallest reader, alone: a range is one, is none, or is refused."""
    guard = Guard(sandbox, "ranges", space.RangeError)
    valid = [{"choice": [1, "a"]}, {"uniform": [0, 1], "num": 4}, {"log_int": [1, 64]}]

    def check(steps):
        for node in tree_of(valid, steps) or ():
            found = guard(lambda node=node: space.parse_range(node))
            if found is not None:
                assert found.ends()
                assert str(found)
                guard(found.grid)

    try_many(STEPS, 150, check)
