"""One small teacher and one small cache, made once for all files."""

from pathlib import Path

import pytest

from tests.e2e.command_line import SMALL, done


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small teacher."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    done("train-teacher", "digits", *SMALL, "--out", out)
    return out


@pytest.fixture(scope="session")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of the same architecture with other weights."""
    out = tmp_path_factory.mktemp("other-teacher") / "run"
    done("train-teacher", "digits", *SMALL, "--set", "seed=1", "--out", out)
    return out


@pytest.fixture(scope="session")
def cache(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete small cache: never to be changed."""
    out = tmp_path_factory.mktemp("cache") / "digits.zarr"
    done("cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", out)
    return out
