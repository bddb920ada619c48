"""A trained network of a user's own, and a cache of it, made once."""

from pathlib import Path

import dhkd
import pytest
from torch import nn

from tests.own import SHIFTS, digits, trained


@pytest.fixture(scope="session")
def teacher() -> nn.Module:
    """A trained network: never to be changed."""
    return trained()


@pytest.fixture(scope="session")
def own_cache(teacher: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of a network and arrays of one's own, with logits and embeddings: never to be changed."""
    out = tmp_path_factory.mktemp("own") / "digits.zarr"
    dhkd.cache_teacher(teacher, digits, SHIFTS, out, views=3, block_mb=0.002, signals=["logits", "embedding"], cpu=True)
    return out
