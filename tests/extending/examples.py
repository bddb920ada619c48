"""The worked examples of docs/extending.md, and the conformance suites that the examples have to pass."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def example(section: str) -> dict[str, Any]:
    """Run the Python code in a section of the page and return what the code defines, by name."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, f"{PAGE.name}: {section}", "exec"), names)
    return names


def suite_of(fixture: str, suite: ModuleType) -> dict[str, Callable[..., None]]:
    """Return the tests in module `suite` that use this fixture, by name."""
    return {
        name: test
        for name, test in vars(suite).items()
        if name.startswith("test_") and fixture in inspect.signature(test).parameters
    }
