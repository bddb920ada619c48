"""The project's own files agree: requirements, versions, the changelog's sections, and what pages and workflows run."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {
    f"{group}: {text}": Requirement(text)
    for group, texts in {"plain": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items()
    for text in texts
    if not text.startswith("dhkd[")
}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def constraints() -> dict[str, Version]:
    """The version of each package that the tests run with."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("requirement", REQUIRED)
def test_a_requirement_has_a_lowest_version_and_the_tests_run_with_one(
    requirement: str, constraints: dict[str, Version]
) -> None:
    required = REQUIRED[requirement]
    assert [specifier.operator for specifier in required.specifier] == [">="], "none is known to break"
    assert constraints[canonicalize_name(required.name)] in required.specifier


def test_everything_optional_is_tried_by_the_tests() -> None:
    """The extra `dev` has all others, by itself or through `test`."""
    brought = {"dev"}
    for group in ("dev", "test"):
        (others,) = (text for text in PROJECT["optional-dependencies"][group] if text.startswith("dhkd["))
        brought |= Requirement(others).extras
    assert brought == PROJECT["optional-dependencies"].keys()


def test_versions_agree() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert cited == PROJECT["version"]


@pytest.mark.parametrize("file", [ROOT / "CONTRIBUTING.md", *WORKFLOWS], ids=lambda file: file.name)
def test_targets_of_make_exist(file: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (?:--silent )?([a-z]+(?:-[a-z]+)*)\b", without_prose(file)))
    assert named
    assert named <= targets


def without_prose(file: Path) -> str:
    """Return the code of a page, in blocks and between backticks, or a whole workflow."""
    text = file.read_text()
    return text if file.suffix == ".yml" else "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


def test_workflows_test_the_oldest_python_and_a_newer_one() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())["jobs"]
    oldest, newest = jobs["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={oldest}"
    assert Version(newest) > Version(oldest)
    named = {line.rpartition(" :: ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert {oldest, newest} <= named


def test_notes_of_a_release_are_its_section_of_the_changelog(tmp_path: Path) -> None:
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\nnew\n\n## 0.2.0 (2027-01-01)\n\nold\n")
    for version, says in {"Unreleased": "new", "0.2.0": "old", "0.2": ""}.items():
        command = ["make", "--silent", "-f", str(ROOT / "Makefile"), "notes", f"VERSION={version}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == says


def test_links_of_contributing_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)#?([^)]*)\)", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(links) > 5
    for link, anchor in links:
        if not link.startswith("http"):
            headings = re.findall(r"^#+ (.+)$", (ROOT / link).read_text(), re.MULTILINE)
            assert not anchor or anchor in [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings]
