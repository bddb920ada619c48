"""The code's structure: short functions and modules, contracts instead of classes, and no untyped trees inside."""

import ast
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "stages", "data", "configs", "benchmarks")
MODULES = sorted(str(file.relative_to(ROOT)) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

MAX_FUNCTION, MAX_MODULE = 60, 350  # lines; a function's docstring isn't counted
LONG_MODULE = re.compile(r"\blong because\b")  # the docstring of a longer module must say this and give a reason

# Other modules use the classes of these folders only through the attributes and methods of a contract.
BEHIND_CONTRACTS = ("data/recipes", "data/images", "data/cache/codecs", "data/cache/layouts", "data/storage")

# Modules at the program's edges, where values are of any type by nature. In any other module, a comment or docstring
# next to the type gives the reason and names the edge.
EDGES = {
    "configs/load.py": "presets are YAML, which the schema has not checked yet",
    "configs/schema.py": "records and options of objectives are free in form",
    "data/cache/manifest.py": "a manifest is JSON, of which differences are listed whatever the fields",
    "data/runs/flat.py": "settings are YAML, nested as the run's version nested them",
    "data/runs/result.py": "results are JSON, checked here",
    "pipeline/results.py": "results become JSON here, and are read back from it",
    "stages/report/charts.py": "charts are plotly's JSON",
    "stages/trackers.py": "trackers take a run's settings as YAML has them",
}
REASON = re.compile(r"\bany:|\bjson\b|\byaml\b|\bplain values\b", re.IGNORECASE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def source(module: str) -> str:
    return (ROOT / module).read_text()


@lru_cache(maxsize=1)  # all rules are asked of one module, then of the next
def tree_of(text: str) -> ast.Module:
    return ast.parse(text)


def length_of(function: Function) -> int:
    """Return the length of a function in lines, from `def` on, without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def long_functions(text: str) -> list[str]:
    functions = [node for node in ast.walk(tree_of(text)) if isinstance(node, Function)]
    return [f"{function.name}: {length_of(function)}" for function in functions if length_of(function) > MAX_FUNCTION]


def is_long_without_a_reason(text: str) -> bool:
    docstring = ast.get_docstring(tree_of(text)) or ""
    return len(text.splitlines()) > MAX_MODULE and not LONG_MODULE.search(docstring)


@cache
def classes_behind_contracts() -> set[str]:
    modules = [module for module in MODULES if module.startswith(BEHIND_CONTRACTS)]
    nodes = [node for module in modules for node in ast.walk(ast.parse((ROOT / module).read_text()))]
    return {node.name for node in nodes if isinstance(node, ast.ClassDef)}


def names_in(node: ast.AST) -> set[str]:
    """Return the names that an expression uses; `module.Name` counts as Name."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names | {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def class_checks(text: str, classes: set[str]) -> list[str]:
    """Return the lines that check whether a value is an instance of one of these classes."""
    asked: list[tuple[int, ast.AST]] = []
    for node in ast.walk(tree_of(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass"):
                asked.append((node.lineno, node.args[1]))
        elif isinstance(node, ast.Compare) and "type" in names_in(node.left):
            asked += [(node.lineno, compared) for compared in node.comparators]
        elif isinstance(node, ast.MatchClass):
            asked.append((node.lineno, node.cls))
    return [f"line {line}" for line, expression in asked if names_in(expression) & classes]


def is_untyped_tree(node: ast.Subscript) -> bool:
    """Whether it is `dict[str, Any]` or `Mapping[str, Any]`."""
    named = isinstance(node.value, ast.Name) and node.value.id in ("dict", "Mapping")
    return named and ast.unparse(node.slice) == "(str, Any)"


def untyped_trees(text: str) -> Iterator[tuple[int, list[ast.AST]]]:
    """Yield each line with `dict[str, Any]` or `Mapping[str, Any]`, and the functions and classes around it."""

    def walk(node: ast.AST, around: list[ast.AST]) -> Iterator[tuple[int, list[ast.AST]]]:
        if isinstance(node, ast.Subscript) and is_untyped_tree(node):
            yield node.lineno, around
        inside = [*around, node] if isinstance(node, Function | ast.ClassDef) else around
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return walk(tree_of(text), [])


def comments_at(lines: list[str], number: int) -> str:
    """Return the comment on a line, joined with the comment lines directly above it."""
    comments = [lines[number - 1].partition("#")[2]]
    while number > 1 and lines[number - 2].lstrip().startswith("#"):
        number -= 1
        comments.append(lines[number - 1])
    return " ".join(reversed(comments))


def trees_without_a_reason(text: str) -> list[str]:
    lines = text.splitlines()
    unexplained = []
    for number, around in untyped_trees(text):
        reasons = [comments_at(lines, number)]
        for holder in around:
            assert isinstance(holder, Function | ast.ClassDef)
            reasons += [comments_at(lines, holder.lineno), ast.get_docstring(holder) or ""]
        if not REASON.search(" ".join(reasons)):
            unexplained.append(f"line {number}: {lines[number - 1].strip()}")
    return unexplained


def problems_of(module: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each rule with what a module does against it."""
    text = source(module)
    yield "function", long_functions(text)
    yield "module", ["long"] if is_long_without_a_reason(text) else []
    yield "class", class_checks(text, classes_behind_contracts())
    if module not in EDGES and not module.startswith("benchmarks"):
        yield "tree", trees_without_a_reason(text)


@cache
def problems() -> dict[str, dict[str, list[str]]]:
    """What modules do against each rule, by rule and module."""
    by_rule: dict[str, dict[str, list[str]]] = {"function": {}, "module": {}, "class": {}, "tree": {}}
    for module in MODULES:
        for rule, against in problems_of(module):
            if against:
                by_rule[rule][module] = against
    return by_rule


def test_functions_are_short() -> None:
    assert problems()["function"] == {}


def test_a_module_is_short_or_says_why_not() -> None:
    assert problems()["module"] == {}


def test_no_module_asks_for_a_class_behind_a_contract() -> None:
    assert problems()["class"] == {}


def test_untyped_trees_have_a_reason() -> None:
    assert problems()["tree"] == {}


@pytest.mark.parametrize("module", EDGES)
def test_an_edge_still_holds_untyped_trees(module: str) -> None:
    assert trees_without_a_reason(source(module)) != [], "take it from the list"


# the checks can fail


@pytest.mark.parametrize(
    ("docstring", "statements", "lengths"),
    [(0, 59, []), (0, 60, ["f: 61"]), (40, 59, []), (40, 60, ["f: 61"])],
)
def test_a_long_function_is_detected(docstring: int, statements: int, lengths: list[str]) -> None:
    text = '    """' + "\n" * (docstring - 1) + '    """\n' if docstring else ""
    body = text + "    x = 1\n" * statements
    assert long_functions(f"def f():\n{body}") == lengths
    inner = "".join(f"    {line}\n" for line in f"async def f():\n{body}".splitlines())
    assert long_functions(f"class C:\n{inner}") == lengths


@pytest.mark.parametrize(
    ("docstring", "lines", "refused"),
    [
        ("A table.", 350, False),
        ("A table.", 351, True),
        ("A table. It is long because each row explains itself.", 351, False),
        ("A table that lasts as long as the cache.", 351, True),
    ],
)
def test_a_long_module_is_detected(docstring: str, lines: int, refused: bool) -> None:
    assert is_long_without_a_reason(f'"""{docstring}"""\n' + "x = 1\n" * (lines - 1)) == refused


@pytest.mark.parametrize(
    "line",
    [
        "isinstance(recipe, CropFlip)",
        "isinstance(recipe, RandomResizedCrop | crop_flip.CropFlip)",
        "isinstance(images, (ImageSet, PhotoSet))",
        "issubclass(type(codec), Int8)",
        "type(layout) is ZarrLayout",
        "any(isinstance(part, TopK) for part in parts)",
        "match storage:\n    case Bucket():\n        pass",
        "isinstance(renderer, PhotoRenderer)",
    ],
)
def test_asking_for_a_class_is_detected(line: str) -> None:
    assert len(class_checks(line, classes_behind_contracts())) == 1


def test_asking_for_any_other_class_is_allowed() -> None:
    assert class_checks("isinstance(value, Tensor) or type(value) is int", classes_behind_contracts()) == []


@pytest.mark.parametrize(
    ("text", "num"),
    [
        ("x: dict[str, Any] = {}", 1),
        ("def f(x: Sequence[Mapping[str, Any]]) -> dict[str, Any]:\n    pass", 2),
        ("class C:\n    x: Mapping[str, Any]", 1),
        ('def f(x: dict[str, Any]):\n    """Any tree will do."""', 1),
        ("# Any: of elsewhere.\n\nx: dict[str, Any] = {}", 1),
        ("x: dict[str, Any] = {}  # JSON, as the file holds it", 0),
        ("# Any: numpy's types allow\n# nothing else.\ndef f(x: dict[str, Any]):\n    y: dict[str, Any] = x", 0),
        ('def f(x: dict[str, Any]):\n    """From plain values, as in config.yaml."""', 0),
        ('class C:\n    """JSON."""\n\n    x: Mapping[str, Any]', 0),
        ("x: dict[str, int] = {}", 0),
    ],
)
def test_an_untyped_tree_without_a_reason_is_detected(text: str, num: int) -> None:
    assert len(trees_without_a_reason(text)) == num
