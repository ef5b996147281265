"""Where the optional real data lies: $LYAPSWEEP_DATA, else shared/data beside the checkout."""

import os
from pathlib import Path

import pytest

from tasks import datasets


@pytest.fixture
def real_data(monkeypatch):
    """Makes the real data the data folder; call with a set's name to skip where it is missing."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    if datasets.FOLDER_VARIABLE not in os.environ and beside.is_dir():
        monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(beside))

    def require(name):
        try:
            datasets.locate(name)
        except datasets.MissingDataError as error:
            pytest.skip(str(error))

    return require
