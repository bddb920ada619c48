"""The documentation's own words: every message in troubleshooting.md is one that the program can give."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [file for folder in ("data", "stages", "pipeline", "configs") for file in (ROOT / folder).rglob("*.py")]
HEADINGS = re.findall(r"^### (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


def messages() -> list[str]:
    """Every string of the program, what is filled in as an ellipsis."""
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.fixture(scope="module")
def said() -> list[str]:
    return messages()


def test_there_are_some() -> None:
    assert len(HEADINGS) > 20


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_program_says_so(heading: str, said: list[str]) -> None:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in heading.split("…")), re.DOTALL)
    assert any(pattern.search(message) for message in said), heading
