"""The user's home folder, and the folder in it for files that can be made again."""

import os
import tempfile
from pathlib import Path

from dhkd.data.errors import ConfigError


def user_cache_folder() -> Path:
    """Return this user's folder for reproducible files: `$XDG_CACHE_HOME/dhkd`, or else `~/.cache/dhkd`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache") / "dhkd"


def home_folder() -> Path:
    """Return the user's home, or a folder of the user's own for temporary files if the system knows no home.

    In a container, a user often has a number only.
    """
    if os.environ.get("HOME"):
        return Path(os.environ["HOME"])
    import pwd

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        pass
    folder = Path(tempfile.gettempdir()) / f"dhkd-home-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid == os.getuid() and not folder.is_symlink():
        return folder
    return Path(tempfile.mkdtemp(prefix="dhkd-home-"))  # another user made a folder of that name


def expanded(text: str) -> str:
    """Return a path with the home folder in place of a leading `~` or `~user`; a URL stays as it is.

    Raises `ConfigError` if there is no such user.
    """
    if not text.startswith("~"):
        return text
    path = os.path.expanduser(text)
    if path.startswith("~") and not os.path.lexists(text):
        raise ConfigError(
            f"{text}: expected a home folder for {text.partition('/')[0]}, found none; give the whole path"
        )
    return path
