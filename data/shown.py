"""How text that others wrote is shown: without secrets, and without characters that act on a terminal.

A cache, a run, a preset, a class name or a server may hold any characters, and a URL may hold a password or a
signature. All messages, log lines and results pass through `shown` before they are printed or stored.
"""

import re

# Characters that a terminal obeys, or that hide or reorder text: C0 and C1 except tab and line feed, soft hyphen, marks
# and overrides of direction, zero-width and separating characters, lone surrogates, tags. U+200C and U+200D stay, since
# some scripts are written with them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_AFTER_SCHEME = re.compile(r"://(\S+)")
_USER_AND_PASSWORD = re.compile(r"[^/@?#]*:(?!\d*(?:[/?#]|$))")  # what follows a host's colon is a port
_TRAILING = re.compile(r"[:;,.)\]}>'\"]*$")  # the sentence around a URL


def printable(text: str) -> str:
    """Return the text with every control character and every invisible character spelled out, such as \\x1b.

    Tabs and line feeds stay.
    """
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def printable_line(text: str, limit: int | None = None) -> str:
    """Return the text as one printable line, with tabs and line feeds spelled out, too.

    A text of more than `limit` characters is cut, and ends in an ellipsis.
    """
    line = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"


def line_of(error: BaseException) -> str:
    """Return an error's text in one line, or its kind if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def some_of(names: list[str], most: int) -> str:
    """List the first `most` names, each printable and not long, with an ellipsis if there are more."""
    listed = [printable_line(name, 60) for name in names[:most]]
    return ", ".join([*listed, "…"] if len(names) > most else listed)


def redacted(text: str) -> str:
    """Return the text with an ellipsis for the secrets of every URL in it: user, password, query and fragment."""
    return _AFTER_SCHEME.sub(lambda match: f"://{_without_secrets(match[1])}", text)


def shown(text: str) -> str:
    """Return the text as it may be printed, logged or stored."""
    return printable(redacted(text))


def _without_secrets(rest: str) -> str:
    """Shorten what follows a URL's scheme."""
    if _USER_AND_PASSWORD.match(rest) and "@" in rest:  # a password may hold any character
        rest = f"…@{rest.rpartition('@')[2]}"
    place, mark, _ = re.split(r"([?#])", rest, maxsplit=1) if re.search(r"[?#]", rest) else (rest, "", "")
    authority, slash, path = place.partition("/")
    if "@" in authority:
        authority = f"…@{authority.rpartition('@')[2]}"
    if not mark:
        return authority + slash + path
    sentence = _TRAILING.search(rest)
    return f"{authority}{slash}{path}{mark}…{sentence[0] if sentence else ''}"
