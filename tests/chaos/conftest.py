"""How many faults, from which seed; and the table at the end."""

import os

import pytest

from tests.chaos import storm

ACCOUNTS = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[ACCOUNTS] = []


@pytest.fixture
def accounts(request):
    """Of every storm so far."""
    return request.config.stash[ACCOUNTS]


@pytest.fixture(scope="session")
def chaos_faults():
    """How many faults the slow tests inject in all."""
    return int(os.environ.get("LYAPSWEEP_CHAOS_FAULTS", "200"))


@pytest.fixture(scope="session")
def chaos_seed():
    """Of the first storm; those that follow count on."""
    return int(os.environ.get("LYAPSWEEP_CHAOS_SEED", "1"))


def pytest_terminal_summary(terminalreporter, config):
    accounts = config.stash[ACCOUNTS]
    if accounts:
        terminalreporter.section("faults")
        if config.get_verbosity() > 0:
            for account in accounts:
                terminalreporter.write_line(f"storm of seed {account.seed}")
                for line in account.timeline:
                    terminalreporter.write_line(line)
        for line in storm.table(accounts):
            terminalreporter.write_line(line)
