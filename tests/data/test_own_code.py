"""Names of own code: what is loaded, what is found, what is recorded, and what is refused in one line."""

import hashlib
import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from dhkd.data import own_code
from dhkd.data.errors import ConfigError, OwnCodeError
from dhkd.data.own_code import Origin, find, imported, offer, origin_of

TABLE = {"resnet8": int, "resnet20": int}


@pytest.fixture(autouse=True)
def folder(no_own_code: Path) -> Path:
    return no_own_code


def write(place: str, text: str) -> Path:
    file = Path(place)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def line_of(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Files


def test_a_name_alone_runs_nothing(folder: Path) -> None:
    write("my_nets.py", "open('ran', 'w')\ndef Net(num_classes): return num_classes\n")
    for name in ("my_nets.py:Net", "./my_nets.py:Net", f"{folder}/my_nets.py:Net", "my_nets:Net"):
        with pytest.raises(ConfigError) as error:
            find("network", name, TABLE)
        place = name.rpartition(":")[0]
        assert line_of(error) == (
            f"network {name} names code in {place}, which is run only if you say so: add --import {place}"
        )
        with pytest.raises(ConfigError, match="add --import"):
            origin_of(name)
    assert not Path("ran").exists()
    assert "my_nets" not in sys.modules


def test_an_imported_file_is_found_by_every_path_to_it(folder: Path) -> None:
    file = write("nets/my-nets.2.py", "def Net(num_classes): return num_classes\n")
    imported(["nets/my-nets.2.py"])
    Path("link").symlink_to("nets")
    for place in ("nets/my-nets.2.py", f"{file.resolve()}", "./nets/../nets/my-nets.2.py", "link/my-nets.2.py"):
        assert find("network", f"{place}:Net", TABLE)(7) == 7
        assert origin_of(f"{place}:Net") == Origin(f"{place}:Net", place, sha256(file))


def test_a_run_from_elsewhere_finds_the_file_of_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("nets/mine.py", "A = lambda num_classes: 1\n")
    imported(["nets/mine.py"])
    monkeypatch.chdir("/")
    assert find("network", "nets/mine.py:A", TABLE)(0) == 1
    assert find("network", "/home/nobody-else/mine.py:A", TABLE)(0) == 1  # from another machine
    with pytest.raises(ConfigError, match=r"add --import others/mine\.py"):
        find("network", "others/mine.py:A", TABLE)


def test_a_file_that_lies_where_a_name_says_is_never_another(folder: Path) -> None:
    write("a/mine.py", "A = lambda: 'a'\n")
    write("mine.py", "A = lambda: 'here'\n")
    imported(["a/mine.py"])
    with pytest.raises(ConfigError, match=r"add --import mine\.py"):
        find("network", "mine.py:A", TABLE)


def test_files_of_one_name_and_their_neighbours_do_not_clash(folder: Path) -> None:
    for letter in "ab":
        write(f"{letter}/mine.py", "from blocks import WIDTH\ndef width(): return WIDTH\n")
        write(f"{letter}/blocks.py", f"WIDTH = '{letter}'\n")
    imported(["a/mine.py", "b/mine.py"])
    assert find("network", "a/mine.py:width", TABLE)() == "a"
    assert find("network", "b/mine.py:width", TABLE)() == "b"
    Path("mine").mkdir()
    with pytest.raises(ConfigError, match=r"expected one imported file .*a/mine.py and .*b/mine.py"):
        find("network", "mine.py:width", TABLE)


def test_a_function_may_import_a_neighbour_when_it_is_called(folder: Path) -> None:
    write("a/mine.py", "def width():\n    from blocks import WIDTH\n    return WIDTH\n")
    write("a/blocks.py", "WIDTH = 'a'\n")
    imported(["a/mine.py"])
    assert find("network", "a/mine.py:width", TABLE)() == "a"


def test_what_a_file_imports_from_its_folder_is_recorded(folder: Path) -> None:
    file = write("mine.py", "import blocks\nfrom layers.wide import Wide\ndef net(): import later; return Wide\n")
    others = [
        write("blocks.py", "import inner\n"),
        write("inner.py", ""),
        write("later.py", ""),
        write("layers/__init__.py", ""),
        write("layers/wide.py", "from . import deep\nfrom .deep import X\nclass Wide: pass\n"),
        write("layers/deep.py", "X = 1\n"),
    ]
    write("unused.py", "")
    imported(["mine.py"])
    origin = origin_of("mine.py:net")
    assert origin is not None
    assert origin.sha256 == sha256(file)
    assert origin.beside == {str(other): sha256(other) for other in others}


def test_a_file_with_the_name_of_a_standard_module_hides_nothing(folder: Path) -> None:
    write("random.py", "import random\nclass Net: pass\nassert hasattr(random, 'shuffle')\n")
    write("mine.py", "import random\ndef net(): return random.Random\n")
    import random

    imported(["random.py", "mine.py"])
    assert find("network", "random.py:Net", TABLE).__name__ == "Net"
    assert find("network", "mine.py:net", TABLE)() is random.Random
    assert sys.modules["random"] is random


def test_an_installed_package_is_not_hidden_for_others(folder: Path) -> None:
    import yaml

    write("yaml.py", "MINE = True\n")
    write("mine.py", "import yaml\ndef net(): return yaml.MINE\n")
    imported(["mine.py"])
    assert find("network", "mine.py:net", TABLE)()
    assert sys.modules["yaml"] is yaml


def test_what_ran_is_what_is_hashed(folder: Path) -> None:
    file = write("mine.py", "def net(): return 1\n")
    before = sha256(file)
    imported(["mine.py"])
    file.write_text("def net(): return 2\n")
    imported(["mine.py"])
    origin = origin_of("mine.py:net")
    assert origin is not None
    assert origin.sha256 == before
    assert find("network", "mine.py:net", TABLE)() == 1


def test_dataclasses_and_pickles_find_their_module(folder: Path) -> None:
    import pickle

    write(
        "mine.py",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Net:\n    width: int = 3\n",
    )
    imported(["mine.py"])
    made = find("network", "mine.py:Net", TABLE)(4)
    assert pickle.loads(pickle.dumps(made)) == made


# Modules, packages and objects


def test_a_module_of_the_current_folder_and_its_package(folder: Path) -> None:
    write("my_pack/__init__.py", "")
    file = write("my_pack/nets.py", "from my_pack.deep import Deep\nfrom os import system\ndef net(): return 5\n")
    write("my_pack/deep.py", "class Deep: pass\n")
    write("my_pack/other.py", "open('ran', 'w')\n")
    before = list(sys.path)
    imported(["my_pack.nets"])
    assert sys.path == before
    assert find("network", "my_pack.nets:net", TABLE)() == 5
    assert find("network", "my_pack.nets:Deep", TABLE).__name__ == "Deep"
    assert origin_of("my_pack.nets:net") == Origin("my_pack.nets:net", "my_pack.nets", sha256(file))
    with pytest.raises(ConfigError, match=r"add --import my_pack\.other"):
        find("network", "my_pack.other:Net", TABLE)
    assert not Path("ran").exists()
    with pytest.raises(ConfigError, match=r"expected a name that my_pack\.nets defines, got one that it imports"):
        find("network", "my_pack.nets:system", TABLE)


def test_what_a_loaded_package_loaded_needs_no_further_word(folder: Path) -> None:
    write("my_pack2/__init__.py", "from my_pack2 import nets\n")
    write("my_pack2/nets.py", "def net(): return 5\n")
    imported(["my_pack2"])
    assert find("network", "my_pack2.nets:net", TABLE)() == 5


def test_names_of_installed_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("my_pack3.py", "def net(): return 6\nbroken = 1\n")
    monkeypatch.syspath_prepend(folder)
    entries = [("mine", "my_pack3:net"), ("gone", "my_pack3:gone"), ("resnet8", "my_pack3:net")]
    known = {name: EntryPoint(name, value, "dhkd") for name, value in entries}
    monkeypatch.setattr(own_code, "_entries", lambda: known)
    assert find("network", "resnet8", TABLE) is int
    assert "my_pack3" not in sys.modules  # what nobody names is not loaded
    assert find("network", "mine", TABLE)() == 6
    assert origin_of("mine") == Origin("mine", "my_pack3", sha256(Path("my_pack3.py")))
    with pytest.raises(OwnCodeError) as error:
        find("network", "gone", TABLE)
    assert "network gone (my_pack3:gone, offered by a package): AttributeError" in line_of(error)
    with pytest.raises(ConfigError, match="did you mean 'mine'"):
        find("network", "mime", TABLE)


def test_objects_of_a_program_have_names() -> None:
    assert offer("mine", len) == "mine"
    assert find("network", "mine", TABLE) is len
    assert offer("mine", write) == "mine"  # a notebook's cell may run twice
    assert origin_of("mine") == Origin("mine", __name__, sha256(Path(__file__)))
    offer("resnet8", len)
    with pytest.raises(ConfigError, match="expected another name than that of a built-in network"):
        find("network", "resnet8", TABLE)
    for name in ("", "a + b", "a*b"):
        with pytest.raises(ConfigError, match="expected some characters"):
            offer(name, len)


def test_instances_of_what_is_asked_for_count() -> None:
    offer("five", 5)
    assert find("objective", "five", {}, (int,)) == 5
    with pytest.raises(ConfigError, match="objective five: expected a function or a class, got a int"):
        find("objective", "five", {})


def test_names_that_are_no_own_code_have_no_origin() -> None:
    for name in ("resnet8", "kd", "my_nets.py", "a b:c", "image-folder", "simkd:a+b"):
        assert origin_of(name) is None


# What the environment says, and what processes inherit


@pytest.mark.parametrize("separator", [os.pathsep, ",", "\n", ", "])
def test_the_variable_names_code_and_hands_it_on(folder: Path, separator: str) -> None:
    write("a.py", "def net(): return 'a'\n")
    write("b, c.py", "def net(): return 'b'\n")
    write("my_pack4.py", "def net(): return 'c'\n")
    variables = {"DHKD_IMPORT": separator.join(["a.py", "my_pack4"])}
    imported(["b, c.py"], variables)
    assert [find("network", f"{name}:net", {})() for name in ("a.py", "b, c.py", "my_pack4")] == ["a", "b", "c"]
    assert variables["DHKD_IMPORT"] == f"{folder}/a.py\nmy_pack4\n{folder}/b, c.py\n"
    own_code._known.files.clear()
    imported([], variables)
    assert find("network", "b, c.py:net", {})() == "b"


def test_nothing_to_import_leaves_the_environment_alone() -> None:
    variables: dict[str, str] = {}
    imported([], variables)
    assert variables == {}


# What goes wrong


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(:\n", r"--import bad\.py: SyntaxError: invalid syntax \(bad\.py, line 1\)"),
        ("x = 1\nraise ValueError('two\\nlines')\n", r"ValueError: two lines \(bad\.py, line 2\); --debug shows"),
        ("import nowhere_installed\n", r"ModuleNotFoundError: No module named 'nowhere_installed' \(bad\.py, line 1\)"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: it ends the process; put what a script does under if __name__"),
        ("x = 1 / 0", r"ZeroDivisionError: division by zero \(bad\.py, line 1\)"),
        ("\0", r"SyntaxError: source code"),
        ("#" * (2**24 + 1), r"SyntaxError: expected at most 16,777,216 bytes"),
    ],
)
def test_a_file_that_fails_is_one_line(text: str, expected: str) -> None:
    write("bad.py", text)
    with pytest.raises(OwnCodeError, match=expected) as error:
        imported(["bad.py"])
    line_of(error)
    assert "DHKD_IMPORT" not in os.environ


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gone.py", "expected a Python file .*, found nothing"),
        ("folder/", "expected a Python file .*, found a folder"),
        ("./note.txt", "expected a Python file .*, found another kind of file"),
        ("note.txt", "no module 'note' is installed"),
        ("nowhere_installed", "no module 'nowhere_installed' is installed or lies in"),
        ("os.nowhere", "no module 'os.nowhere' is installed"),
        ("my nets", "expected a file that ends in .py, or a module"),
        ("~nobody-of-this-name/x.py", "expected a path"),
        ("a\0.py", "expected a path|found nothing"),
    ],
)
def test_what_does_not_exist_is_one_line(name: str, expected: str) -> None:
    write("note.txt", "")
    Path("folder").mkdir()
    with pytest.raises(ConfigError, match=expected) as error:
        imported([name])
    line_of(error)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine.py:Nett", "network mine.py:Nett: unknown name in mine.py 'Nett': did you mean 'Net'"),
        ("mine.py:WIDTH", "expected a function or a class, got a int"),
        ("mine.py:system", "expected a name that mine.py defines, got one that it imports; define it there, or list"),
        ("mine.py:os", "expected a name that mine.py defines"),
        ("mine.py:_hidden", "expected a public name"),
        ("mine.py:__builtins__", "expected a public name"),
        ("mine.py", "expected FILE.py:NAME"),
        ("mine.py:Net.forward", "unknown network"),
        ("resnet9", "unknown network 'resnet9': did you mean 'resnet8'"),
    ],
)
def test_a_name_that_is_no_code_is_one_line(name: str, expected: str) -> None:
    write(
        "mine.py",
        "import os\nfrom os import system, path\nfrom shutil import rmtree\n__all__ = ['rmtree']\n"
        "WIDTH = 3\nclass Net: pass\ndef _hidden(): pass\n",
    )
    imported(["mine.py"])
    with pytest.raises(ConfigError, match=expected) as error:
        find("network", name, TABLE)
    line_of(error)
    assert callable(find("network", "mine.py:rmtree", TABLE))  # its author wants it to be offered


def test_an_exception_while_own_code_runs_names_it() -> None:
    write("mine.py", "def net(num_classes):\n    return 1 / 0\n")
    imported(["mine.py"])
    net = find("network", "mine.py:net", TABLE)
    expected = r"network mine.py:net: ZeroDivisionError: division by zero \(mine\.py, line 2\); --debug"
    with pytest.raises(OwnCodeError, match=expected), own_code.running("network mine.py:net"):
        net(3)
    with pytest.raises(MemoryError), own_code.running("network mine.py:net"):
        raise MemoryError
    with pytest.raises(ConfigError, match="as it is"), own_code.running("network mine.py:net"):
        raise ConfigError("as it is")
