"""What a command finds around it, made such that libraries can work with it: home, warnings, limits, current folder."""

import contextlib
import getpass
import os
import resource
import sys
import warnings

from dhkd.data.disk.user_cache import home_folder
from dhkd.data.errors import DhkdError

OPEN_FILES = 65_536  # as many open files as any command needs


def prepare() -> None:
    """Prepare this process for libraries that expect a home folder, a user's name and enough open files.

    Raises `DhkdError` if the current folder has been deleted.
    """
    _require_current_folder()
    # Libraries ask for these and end with a traceback if the system doesn't know the user, as in many containers.
    if not os.environ.get("HOME"):
        os.environ["HOME"] = str(home_folder())
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
    # Warnings of libraries are for their authors. As errors, they would end a command in the middle.
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _require_current_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise DhkdError("current folder: expected a folder, but it has been deleted; change to another one") from None
