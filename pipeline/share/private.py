"""What must not leave this machine: paths, the names of its user and of itself, and secrets.

Paths are shortened to their last part, wherever they stand in a text. What remains is searched, and refused if it holds
a secret or a name: nothing else can be left out of a text without changing what it says.
"""

import getpass
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dhkd.data.errors import ConfigError
from dhkd.data.shown import redacted

Json = Any  # JSON or YAML, as a cache's manifest and a run's files hold it

_FOLDERS = r"(?:file://)?(?:~[\w.-]*)?/"
_QUOTED = re.compile(rf"""(['"]){_FOLDERS}(?:[^'"\n]*/)?([^'"/\n]*)/?\1""")
_PATH = re.compile(rf"""(?<![\w.:/~…-]){_FOLDERS}(?:[^\s'"`/,]+/)*([^\s'"`/,;:)]+)/?""")
_BUCKET = re.compile(r"""\b(?:s3|gs|az)://(?:[^\s'"`/,]+/)*([^\s'"`/,;:)]+)/?""")

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(?:API|ACCESS|ACCOUNT|PRIVATE)_?KEY")
_SHORTEST_SECRET = 8  # characters; a shorter value may be an ordinary word
_SECRETS = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,}|xox[abp]-[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY"
)
# Names of users and machines that many have, and that say nothing about anybody.
_COMMON = frozenset(
    {"root", "user", "users", "admin", "ubuntu", "debian", "centos", "runner", "jovyan", "nobody", "docker", "app"}
    | {"home", "work", "data", "localhost"}
)


def public_text(text: str) -> str:
    """Return a text with the last part of each path of this machine and each bucket's URL in place of the whole."""
    if text.startswith(("/", "~/", "file:///")) and "\n" not in text and "://" not in text.removeprefix("file://"):
        return PurePosixPath(text).name or text
    text = _QUOTED.sub(lambda match: f"{match[1]}{match[2]}{match[1]}", redacted(text))
    return _BUCKET.sub(lambda match: match[1], _PATH.sub(lambda match: match[1], text))


def public(tree: Json) -> Json:
    """Return plain values in which every text, keys too, is as `public_text` returns it."""
    if isinstance(tree, str):
        return public_text(tree)
    if isinstance(tree, Mapping):
        return {public(key): public(value) for key, value in tree.items()}
    return [public(value) for value in tree] if isinstance(tree, list | tuple) else tree


def shortened_in(tree: Json) -> Iterator[tuple[str, str]]:
    """Yield each text in plain values that `public_text` shortens, keys too, and what it makes of it."""
    if isinstance(tree, str) and public_text(tree) != tree:
        yield tree, public_text(tree)
    parts = [*tree, *tree.values()] if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else []
    for part in parts:
        yield from shortened_in(part)


def changed(before: Json, after: Json, at: str = "") -> list[str]:
    """List where two trees of equal form differ, as dotted keys; a mapping whose keys differ is listed itself."""
    if isinstance(before, Mapping) and isinstance(after, Mapping) and before.keys() == after.keys():
        return [line for key in before for line in changed(before[key], after[key], f"{at}.{key}" if at else str(key))]
    if isinstance(before, list | tuple):
        return [at] if list(before) != list(after) else []
    return [at] if before != after else []


def require_public(where: str, text: str, *, allow_names: bool) -> None:
    """Raise `ConfigError` if a text that is to be shared in the file `where` names something private.

    `allow_names` permits the names of this user and of this machine, which may be words that mean something else.
    """
    for what, hint in _found(text, names=not allow_names):
        raise ConfigError(f"{where}: expected nothing private to be shared, got {what}; {hint}")


def _found(text: str, *, names: bool) -> Iterator[tuple[str, str]]:
    """Yield what a text has of this machine, without repeating it, and what to do about it."""
    gone = "remove it where it was recorded, then share again"
    for variable, value in os.environ.items():
        if _SECRET_NAME.search(variable.upper()) and len(value) >= _SHORTEST_SECRET and value in text:
            yield f"the value of the environment variable {variable}", gone
    if _SECRETS.search(text):
        yield "what looks like a key or a token", gone
    home = str(Path.home())
    if len(PurePosixPath(home).parts) > 1 and re.search(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", text):
        yield "the path of your home folder", gone
    if not names:
        return
    for what, name in _names():
        if re.search(rf"[/\\@]{re.escape(name)}(?![\w-])|(?<![\w-]){re.escape(name)}[/\\@]", text):
            yield f"{what}, {name}", f"{gone}, or say --allow-names if this means something else"


def _names() -> list[tuple[str, str]]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without an entry in the system's list
        user = ""
    names = [("your user name", user), ("this machine's name", socket.gethostname())]
    return [(what, name) for what, name in names if len(name) > 2 and name.lower() not in _COMMON]
