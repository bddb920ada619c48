"""The list of faults fits the code: each text that a fault replaces exists, and so do the tests that should see it.

Whether those tests do see it takes minutes: `python tests/faults/run.py`.
"""

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.faults import FAULTS, Fault
from tests.faults.places import file_of_tests, place_of, texts_of, unknown_words

ROOT = Path(__file__).parents[1]


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1] == []


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    return texts_of(ROOT)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_the_code(fault: Fault, texts: dict[Path, str]) -> None:
    assert fault.changes
    for old, new in fault.changes.items():
        assert new != old
        file = place_of(old, ROOT, texts)
        compile(texts[file].replace(old, new), str(file), "exec")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_tests_that_should_see_a_fault_exist(fault: Fault) -> None:
    assert fault.seen_by
    for name, expression in fault.seen_by.items():
        assert unknown_words(expression, file_of_tests(name, ROOT)) == []


# the checks can fail


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        file = root / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_a_text_has_to_occur_exactly_once(tmp_path: Path) -> None:
    write(tmp_path, data__a="one, two, two", stages__b__c="one")
    write(tmp_path, data__d="three", tests__test_d="three")
    assert place_of("three", tmp_path) == tmp_path / "data" / "d.py"
    with pytest.raises(LookupError, match=r"'four': expected once in one file, found in no file"):
        place_of("four", tmp_path)
    with pytest.raises(LookupError, match=r"found in data/a\.py, data/a\.py$"):
        place_of("two", tmp_path)
    with pytest.raises(LookupError, match=r"found in stages/b/c\.py, data/a\.py$"):
        place_of("one", tmp_path)


def test_a_name_has_to_be_that_of_one_test_file(tmp_path: Path) -> None:
    write(tmp_path, tests__data__test_a="", tests__e2e__test_a="", tests__e2e__test_b="")
    assert file_of_tests("test_b.py", tmp_path) == tmp_path / "tests" / "e2e" / "test_b.py"
    assert file_of_tests("e2e/test_a.py", tmp_path) == tmp_path / "tests" / "e2e" / "test_a.py"
    with pytest.raises(LookupError, match=r"test_a\.py: expected one test file, found tests/data/.*, tests/e2e/"):
        file_of_tests("test_a.py", tmp_path)
    with pytest.raises(LookupError, match=r"test_c\.py: expected one test file, found no file"):
        file_of_tests("test_c.py", tmp_path)


def test_a_word_that_no_test_has_is_detected(tmp_path: Path) -> None:
    write(tmp_path, tests__test_a="def test_alpha_ends() -> None: ...\n")
    file = tmp_path / "tests" / "test_a.py"
    assert unknown_words("alpha and not (beta or ends) or kd-two", file) == ["beta"]
    assert unknown_words("", file) == []
