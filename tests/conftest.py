"""Fixtures that several test folders share: `Processes`, a tiny data set, and the places of real data."""

# ruff: noqa: E402 - modules of the program are imported after `check_shapes`

import gc
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

gc.disable()  # until everything is imported and collected, of which nothing becomes garbage
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for interpreters that tests start: tests run side by side already
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as joint commands set it before torch is imported, for those in forks
import torch

del os.environ["TORCH_CPP_LOG_LEVEL"]
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.shapes import check_shapes

check_shapes()

from dhkd.data import own_code, own_files
from dhkd.data.images.in_memory import ImageSet
from dhkd.stages.processes import Processes

from tests.samples import make_images

_frozen = {"modules": 0}

# Shells start background jobs with Ctrl-C ignored, and tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests, so that at the end no process works on one alone."""
    files = [list(of_file) for _, of_file in itertools.groupby(items, key=lambda item: item.path)]
    files.sort(key=lambda of_file: -sum(item.get_closest_marker("slow") is not None for item in of_file))
    items[:] = itertools.chain.from_iterable(files)


def pytest_collection_finish() -> None:
    """Leave what is imported and collected out of garbage collection, which each training run asks for twice."""
    gc.freeze()
    gc.enable()
    _frozen["modules"] = len(sys.modules)


def pytest_runtest_logfinish() -> None:
    """Leave out large packages as well that a test has imported."""
    if len(sys.modules) > _frozen["modules"] + 100:
        gc.collect()
        gc.freeze()
        _frozen["modules"] = len(sys.modules)


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture
def processes() -> Iterator[Processes]:
    """`Processes` with this process only, on the CPU in float32."""
    alone = Processes("float32", cpu=True)
    yield alone
    alone.end()


@pytest.fixture
def no_workers_of_the_last_test() -> Iterator[None]:
    """End the worker processes that a test's traceback keeps alive; garbage collection would wait 5 s for each one."""
    yield
    if multiprocessing.active_children():
        for rendered in [thing for thing in gc.get_objects() if type(thing) is _MultiProcessingDataLoaderIter]:
            rendered._shutdown_workers()


@pytest.fixture(scope="module", autouse=True)
def _own_modules_end_with_their_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no file of tests find modules that another one wrote and imported."""
    yield
    written = f"{tmp_path_factory.getbasetemp().resolve()}{os.sep}"
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__dict__", {}).get("__file__", "")).startswith(written):
            del sys.modules[name]


@pytest.fixture
def no_own_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Let nothing be imported or offered yet, in an empty current folder, which is returned."""
    modules, finders = dict(sys.modules), list(sys.meta_path)
    monkeypatch.setattr(own_code, "_known", own_code._Known())
    monkeypatch.setattr(own_files, "_later", own_files._Folders())
    monkeypatch.delenv(own_code.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in sys.modules.keys() - modules.keys():
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
    sys.meta_path[:] = finders
    os.environ.pop(own_code.VARIABLE, None)


@pytest.fixture
def images() -> ImageSet:
    return make_images()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with real CIFAR-100 in torchvision's layout."""
    folder = os.environ.get("DHKD_TEST_DATA")
    if not folder or not (Path(folder) / "cifar-100-python").is_dir():
        pytest.skip("needs real CIFAR-100: set DHKD_TEST_DATA to a folder that holds cifar-100-python/")
    return Path(folder)


@pytest.fixture(scope="session")
def real_teacher() -> Path:
    """A real resnet56 checkpoint for CIFAR-100 in the published layout."""
    folder = os.environ.get("DHKD_TEST_TEACHERS")
    if not folder or not (Path(folder) / "resnet56_cifar100.pth").is_file():
        pytest.skip("needs a real teacher: set DHKD_TEST_TEACHERS to a folder that holds resnet56_cifar100.pth")
    return Path(folder) / "resnet56_cifar100.pth"


@pytest.fixture(scope="session")
def photographs() -> Path:
    """A folder of real photographs, one folder for each class."""
    folder = os.environ.get("DHKD_TEST_PHOTOS")
    if not folder or not any(Path(folder).glob("*/*.JPEG")):
        pytest.skip("needs real photographs: set DHKD_TEST_PHOTOS to a folder that holds CLASS/NAME.JPEG")
    return Path(folder)
