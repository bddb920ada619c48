"""A preset, a teacher's weights and a cache of it, as small as they can be."""

from pathlib import Path

import pytest
import torch
from dhkd.configs.load import load_experiment
from dhkd.configs.schema import Experiment
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.pipeline.caching import cache_teacher
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.models import build_network
from dhkd.stages.models.weights import save_weights

# 20 digits, 2 views in one block each.
SETTINGS = (
    *("data.limit=20", "data.test_limit=20", "cache.views=2", "teacher=resnet8", "teacher.epochs=1"),
    *("cache.precision=float32", "student.precision=float32", "student.epochs=1", "student.batch_size=10"),
)


def experiment_of(*overrides: str) -> Experiment:
    """The small preset with further settings."""
    return load_experiment("digits", [*SETTINGS, *overrides])


def untrained_weights(file: Path, seed: int) -> Path:
    """A file of weights of resnet8 that nobody trained."""
    torch.manual_seed(seed)
    save_weights(file, build_network("resnet8", 10), {"architecture": "resnet8", "num_classes": "10"})
    return file


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher."""
    return untrained_weights(tmp_path_factory.mktemp("weights") / "teacher.safetensors", seed=0)


@pytest.fixture(scope="session")
def reader(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitReader:
    """A cache of the teacher, without a name, and of another one called b: never to be changed."""
    out = str(tmp_path_factory.mktemp("caches") / "c.zarr")
    other = untrained_weights(weights.with_name("other.safetensors"), seed=1)
    cache_teacher(experiment_of("cache.signals=[logits,embedding]"), weights, out, data=DataOptions(), cpu=True)
    cache_teacher(experiment_of(), other, out, data=DataOptions(), name="b", cpu=True)
    return open_cache(out)


@pytest.fixture(scope="session")
def top_k(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitReader:
    """A cache that keeps three logits of a row, and the mass of the others at temperature 4: never to be changed."""
    out = str(tmp_path_factory.mktemp("caches") / "k.zarr")
    codec = "cache.codec={kind: top-k, k: 3, temperature: 4}"
    cache_teacher(experiment_of(codec), weights, out, data=DataOptions(), cpu=True)
    return open_cache(out)
