"""The order of classes, which gives each class its number: by name, by number, or as a file lists them."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from dhkd.data.errors import ConfigError, DataError

BY_NAME, BY_NUMBER = "name", "number"


def in_order(names: Sequence[str], order: str | None, root: Path, kind: str = "class folder") -> list[str]:
    """Return the sorted `names` of all classes in the order of their numbers; `kind` is the word for one in messages.

    `order` is "name", "number" or a file below `root` that lists the names, one to a line; None stands for "name".
    Raises `ConfigError` if "number" is asked for names that are no numbers, and `DataError` if the file lists others.
    """
    if order is None or order == BY_NAME:
        return list(names)
    if order == BY_NUMBER:
        odd = [name for name in names if not (name.isascii() and name.isdigit())]
        if odd:
            raise ConfigError(
                f"data.classes: expected {kind}s whose names are numbers, got {odd[0]!r}; set data.classes=name,"
                f" or name a file that lists the classes"
            )
        by_number = sorted(names, key=int)
        twice = [(one, two) for one, two in pairwise(by_number) if int(one) == int(two)]
        if twice:
            raise ConfigError(
                f"data.classes: the {kind}s {twice[0][0]} and {twice[0][1]} are the same number; rename one"
            )
        return by_number
    listed = classes_listed(order, root)
    lacking, unknown = sorted(set(names) - set(listed)), sorted(set(listed) - set(names))
    if lacking or unknown:
        problem = f"{kind} {lacking[0]!r}, which it lacks" if lacking else f"no {kind} {unknown[0]!r}"
        raise DataError(
            f"data.classes: {order}: expected a list of exactly the {len(names)} {kind}s, found {problem};"
            f" correct the list"
        )
    return listed


def classes_listed(file: str, root: Path) -> list[str]:
    """Return the classes that a file below `root` lists, one to a line, in order.

    Raises `ConfigError` if the file can't be read, and `DataError` if it lists nothing or a class twice.
    """
    path = root / file
    try:
        if not path.is_file():
            raise FileNotFoundError(2, "no such file" if not path.exists() else "not a file")
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"data.classes: {path}: expected name, number, or a file that lists one class in each line, got: {reason}"
        ) from error
    listed = [line for line in lines if line]
    twice = next((line for number, line in enumerate(listed) if line in listed[:number]), None)
    if not listed or twice is not None:
        problem = f"{twice!r} twice" if listed else "none"
        raise DataError(f"data.classes: {path}: expected each class once, got {problem}; correct the list")
    return listed


def is_file(order: str | None) -> bool:
    """Return whether an order is the name of a file that lists the classes."""
    return order not in (None, BY_NAME, BY_NUMBER)


def note_on_numbers(names: Sequence[str], order: str | None, kind: str = "class folder") -> str | None:
    """Return a warning if names that are numbers are ordered as text because `order` is None, or else None."""
    if order is not None or not all(name.isascii() and name.isdigit() for name in names):
        return None
    if sorted(names, key=int) == list(names):
        return None
    return (
        f"the {kind}s are numbers, and are numbered in the order of text ({', '.join(names[:4])}, …); if a"
        f" teacher was trained in the order of numbers, set data.classes=number (data.classes=name says that the order"
        f" is right)"
    )
