"""Text that can't disturb what shows it: names come from folders, files and settings that anybody may have written."""


def printable(text: str, limit: int | None = None) -> str:
    r"""Return `text` on one line, with an escape such as \n or \x1b for each character that can't be printed.

    That is every control character, line break, mark that reverses the order of text, and byte of a file name that is
    no UTF-8. A text of more than `limit` characters is cut, and an ellipsis says so.
    """
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
    return shown if limit is None or len(shown) <= limit else f"{shown[: limit - 1]}…"


def some_of(names: list[str], most: int) -> str:
    """List the first `most` names, each printable and not long, with an ellipsis if there are more."""
    shown = [printable(name, 60) for name in names[:most]]
    return ", ".join([*shown, "…"] if len(names) > most else shown)
