"""The folder for files that can be made again."""

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """Return this user's folder for reproducible files: `$XDG_CACHE_HOME/dhkd`, or else `~/.cache/dhkd`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dhkd"
