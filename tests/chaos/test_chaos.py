"""Whatever dies, stops, fills up or is cut: every trial is on record once, and as it was measured.

`make chaos` is the whole of it; two short storms run with every other test. The numbers come from
LYAPSWEEP_CHAOS_FAULTS and LYAPSWEEP_CHAOS_SEED.
"""

import math
import os
import signal
import tempfile
from pathlib import Path

import pytest

from tests import servers
from tests.chaos import counter, storm
from tests.chaos.stage import Servers, Stage, conf

LONG, SHORT = conf(trials=24, epochs=60), conf(trials=8, epochs=20)
FAULTS_A_STORM = 30

SHARES = {"files": 0.3, "servers": 0.5, "ray": 0.2}
"""Of all faults, by where the sweep is kept and trained."""

needs_postgres = pytest.mark.skipif(
    servers.postgres_programs() is None,
    reason="no PostgreSQL here (Debian: apt-get install postgresql)",
)


@pytest.fixture(scope="module", autouse=True)
def _tidy_when_told_to_end():
    """SIGTERM, of `timeout` or of a CI, ends everything that was started, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def short_folder():
    """PostgreSQL's sockets need short paths."""
    with tempfile.TemporaryDirectory(prefix="lyc", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def running_servers(short_folder):
    folder = short_folder / "servers"
    folder.mkdir()
    with Servers(folder).running() as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Settings → what a sweep of them measures that nothing disturbs; each is run once."""
    known = {}

    def run(settings):
        key = repr(settings)
        if key not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            stage = Stage(folder, "calm", settings)
            stage.set_up()
            try:
                code, said = stage.ask(
                    "sweep", "c.yaml", "--name", "calm", "--store", f"folder:{folder / 'kept'}"
                )
                assert code == 0, said
            finally:
                stage.tear_down()
            known[key] = counter.tables(folder / "kept")
            assert sorted(known[key]) == list(range(settings["trials"]))
        return known[key]

    return run


@pytest.fixture
def weather(tmp_path, accounts, undisturbed):
    """Runs one storm and fails with all there is to know where something was lost."""

    def run(settings, seed, num_faults, *, on_servers=None, ray=False, **options):
        folder = tmp_path / f"storm-{seed}"
        folder.mkdir()
        stage = Stage(folder, f"storm-{seed}-{os.getpid()}", settings, on_servers, ray)
        account = storm.Storm(stage, seed, num_faults, undisturbed(settings), **options).run()
        accounts.append(account)
        if account.complaints:
            pytest.fail(storm.describe(account, stage), pytrace=False)
        return account

    return run


@pytest.mark.timeout(300)
def test_a_short_storm_over_files(weather):
    account = weather(SHORT, seed=11, num_faults=6, pause=1.0, gaps=(0.2, 1.2), patience=240)
    assert account.count.identical + account.count.close == SHORT["trials"]


@needs_postgres
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_storm_over_servers(weather, running_servers):
    weather(
        SHORT, seed=12, num_faults=8, on_servers=running_servers,
        pause=1.0, gaps=(0.2, 1.2), patience=240,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("kind", SHARES)
def test_storms(kind, weather, chaos_faults, chaos_seed, request):
    """As many storms as it takes to inject this kind's share of the faults."""
    wanted = math.ceil(chaos_faults * SHARES[kind])
    options = {"ray": kind == "ray"}
    if kind == "servers":
        if servers.postgres_programs() is None:
            pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
        options["on_servers"] = request.getfixturevalue("running_servers")
    injected, seed = 0, chaos_seed * 1000 + list(SHARES).index(kind) * 100
    while injected < wanted:
        account = weather(LONG, seed, min(FAULTS_A_STORM, wanted - injected + 2), **options)
        injected += account.num_faults
        seed += 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_local_ray_that_was_killed_ends_its_driver_and_costs_nothing(weather, chaos_seed):
    """The driver says so by itself and ends, rather than wait for workers that never come."""
    kind = "kill -9 raylet"
    account = weather(LONG, chaos_seed * 1000 + 900, num_faults=3, ray=True, only=[kind])
    assert account.faults == {(kind, storm.ENDED): 3}
