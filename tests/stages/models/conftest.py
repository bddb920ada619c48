"""A small network, and sound files of its weights."""

import pytest
from dhkd.stages.models import Network

from tests.stages.models.weight_files import LAYOUTS, copy_of, trained


@pytest.fixture(scope="module")
def network() -> Network:
    return trained()


@pytest.fixture(scope="module")
def whole_files(network: Network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of undamaged files by name."""
    folder = tmp_path_factory.mktemp("whole")
    for layout, name in (("bare", "zip.pth"), ("legacy", "legacy.pth"), ("safetensors", "w.safetensors")):
        LAYOUTS[layout](copy_of(network), folder / name)
    return {file.name: file.read_bytes() for file in folder.iterdir()}
