"""The root package: a program can import every public name, and a type checker knows its type."""

import ast
from importlib import import_module
from pathlib import Path

import dhkd
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipeline" / "package" / "__init__.py"


@pytest.mark.parametrize("name", dhkd.__all__)
def test_every_public_name_leads_somewhere(name: str) -> None:
    assert getattr(dhkd, name) is not None
    assert name in dir(dhkd)


def test_a_public_name_is_the_object_of_its_module() -> None:
    from dhkd.pipeline.api import DistillationSet
    from dhkd.stages.train.objectives import losses

    assert dhkd.DistillationSet is DistillationSet
    assert dhkd.losses is losses


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dhkd' has no attribute 'nothing'"):
        dhkd.nothing  # noqa: B018


def test_a_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from dhkd import *", names)
    assert set(dhkd.__all__) - {"__version__"} <= names.keys()


@pytest.mark.parametrize("name", ["pipeline", "stages", "data", "configs"])
def test_subpackages_are_still_there(name: str) -> None:
    assert import_module(f"dhkd.{name}") is getattr(dhkd, name)


def test_type_checkers_see_the_same_names() -> None:
    """What type checkers read, under TYPE_CHECKING, are the names and modules that `__getattr__` uses."""
    (guard,) = [node for node in ast.parse(PACKAGE.read_text()).body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: node.module
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"dhkd.{module}" for name, module in dhkd._MODULES.items()}


def test_public_functions_and_classes_say_what_they_do() -> None:
    lacking = [name for name in dhkd.__all__ if name != "__version__" and not getattr(dhkd, name).__doc__]
    assert lacking == []
