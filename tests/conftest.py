"""What all tests share."""

import pathlib

import pytest


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of data sets, which are not part of the repository; tests that need it are skipped without it."""
    folder = (pathlib.Path(__file__).parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"the data sets are not here ({folder})")
    return folder
