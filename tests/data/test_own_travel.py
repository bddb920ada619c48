"""Own code travels: a process elsewhere finds it by the same names, with the same hashes."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dhkd.data import own_code as here
from dhkd.data.errors import ConfigError, DhkdError, OwnCodeError
from dhkd.data.own_code import find, imported, origin_of
from dhkd.data.own_travel import own_code

TABLE: dict[str, object] = {}

# What a process elsewhere does, which shares no folder with the command: it starts in another folder, and prints.
ELSEWHERE = """
import pickle, sys
from dhkd.data.errors import DhkdError
from dhkd.data.own_code import find, origin_of
sent = pickle.load(open(sys.argv[1], "rb"))
try:
    with sent.loaded():
        for name in sys.argv[2:]:
            print(find("network", name, {})(), pickle.dumps(origin_of(name).plain()).hex())
except DhkdError as error:
    print("error:", error)
"""


@pytest.fixture
def folder(no_own_code: Path) -> Path:
    """An empty current folder for the command, below a folder with nothing else."""
    command = no_own_code / "command"
    command.mkdir()
    os.chdir(command)
    return command


def write(name: str, text: str) -> Path:
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def elsewhere(folder: Path, *names: str, keep: bool = False, path: Path | None = None) -> list[str]:
    """Send this process's own code to a process that doesn't see the command's folder, and return what that prints."""
    sent = folder.parent / "sent"
    sent.write_bytes(pickle.dumps(own_code()))
    away = folder.with_name("moved")
    if not keep:
        folder.rename(away)
    try:
        paths = [*([str(path)] if path else []), os.environ.get("PYTHONPATH", "")]
        variables = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-P", "-c", ELSEWHERE, str(sent), *names]
        done = subprocess.run(command, cwd="/", env=variables, capture_output=True, text=True, check=False)
    finally:
        if not keep:
            away.rename(folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def as_here(*names: str) -> list[str]:
    """Return what `elsewhere` should print."""
    lines = []
    for name in names:
        origin = origin_of(name)
        assert origin is not None
        lines.append(f"{find('network', name, TABLE)()} {pickle.dumps(origin.plain()).hex()}")  # type: ignore[operator]
    return lines


def test_files_and_what_lies_beside_them_are_found_by_the_same_names(folder: Path) -> None:
    for letter in "ab":
        write(
            f"{letter}/mine.py",
            f"from blocks import WIDTH\ndef net(): import for_{letter} as later; return WIDTH + later.MORE\n",
        )
        write(f"{letter}/blocks.py", f"WIDTH = '{letter}'\n")
        write(f"{letter}/for_{letter}.py", "MORE = '!'\n")
    write("package/nets.py", "from . import sizes\nfrom package.sizes import BIG\ndef net(): return BIG + sizes.BIG\n")
    write("package/__init__.py", "")
    write("package/sizes.py", "BIG = 'big'\n")
    imported(["a/mine.py", "b/mine.py", "package.nets"])
    names = ["a/mine.py:net", f"{folder}/b/mine.py:net", "./a/../b/mine.py:net", "package.nets:net"]
    assert elsewhere(folder, *names) == as_here(*names)
    assert [line.split()[0] for line in as_here(*names)] == ["a!", "b!", "b!", "bigbig"]


def test_code_finds_the_data_beside_it_where_the_file_system_is_shared(folder: Path) -> None:
    write("mine.py", "from pathlib import Path\ndef net(): return Path(__file__).with_name('names.txt').read_text()\n")
    write("names.txt", "cat")
    imported(["mine.py"])
    assert elsewhere(folder, "mine.py:net", keep=True) == as_here("mine.py:net")


def test_another_file_at_the_old_place_is_not_loaded(folder: Path) -> None:
    write("mine.py", "def net(): return 'sent'\n")
    imported(["mine.py"])
    sent = pickle.dumps(own_code())
    write("mine.py", "def net(): return 'changed'\n")
    here._known = here._Known()
    with pickle.loads(sent).loaded():
        assert find("network", "mine.py:net", TABLE)() == "sent"  # type: ignore[operator]


def test_code_that_changed_since_it_was_loaded_is_not_sent(folder: Path) -> None:
    write("mine.py", "import blocks\n")
    write("blocks.py", "")
    imported(["mine.py"])
    write("blocks.py", "WIDTH = 2\n")
    with pytest.raises(ConfigError, match=r"mine\.py: expected the code that was loaded, got changes in blocks\.py"):
        own_code()


def test_code_that_raises_elsewhere_is_one_line(folder: Path) -> None:
    write("mine.py", "import os\nif os.getcwd() == '/': raise KeyError('no such thing')\ndef net(): pass\n")
    imported(["mine.py"])
    [line] = elsewhere(folder, "mine.py:net")
    assert line.startswith(f"error: --import {folder}/mine.py: KeyError: 'no such thing' (mine.py, line 2)")


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `pkg_that_travels`, installed for the command; it is not in a folder of the user's."""
    place = folder.parent / "site-packages"
    package = place / "pkg_that_travels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "sizes.py").write_text("BIG = 'big'\n")
    (package / "nets.py").write_text("from pkg_that_travels.sizes import BIG\ndef net(): return BIG\n")
    monkeypatch.syspath_prepend(str(place))
    imported(["pkg_that_travels.nets"])
    return place


def test_an_installed_module_is_imported_where_it_is_the_same(folder: Path, installed: Path) -> None:
    name = "pkg_that_travels.nets:net"
    assert elsewhere(folder, name, path=installed) == as_here(name)


def test_an_installed_module_has_to_be_installed_elsewhere_with_the_same_code(folder: Path, installed: Path) -> None:
    name = "pkg_that_travels.nets:net"
    [missing] = elsewhere(folder, name)
    assert missing == "error: --import pkg_that_travels.nets: no module 'pkg_that_travels' is installed or lies in /"
    other = shutil.copytree(installed, folder.parent / "other")
    (other / "pkg_that_travels" / "sizes.py").write_text("BIG = 'small'\n")
    [changed] = elsewhere(folder, name, path=other)
    assert "expected the command's code, with sha256" in changed
    assert "… for pkg_that_travels.sizes, got " in changed
    assert changed.endswith("sizes.py); install the same code here")


def test_a_process_that_has_loaded_the_code_does_not_load_it_again(folder: Path) -> None:
    write("mine.py", "def net(): pass\n")
    imported(["mine.py"])
    net = find("network", "mine.py:net", TABLE)
    with own_code().loaded():
        assert find("network", "mine.py:net", TABLE) is net


def test_without_own_code_nothing_travels(folder: Path) -> None:
    sent = own_code()
    assert (sent.files, sent.modules) == ([], [])
    with sent.loaded():
        assert here.VARIABLE not in os.environ
    with pytest.raises(ConfigError, match="unknown network"):
        find("network", "net", TABLE)
    assert issubclass(OwnCodeError, DhkdError)
