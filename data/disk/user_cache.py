"""The folder for files that can be made again."""

import os
import tempfile
from pathlib import Path


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
