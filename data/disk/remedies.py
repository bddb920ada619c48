"""What to do if the operating system refuses a call: one sentence for each kind of refusal."""

import errno
import os

_OTHER_PLACE = "check the permissions, or choose another place"
_FILE_IN_THE_WAY = "a file is where a folder is expected, or the other way round; choose another place"

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another place, then run the same command again",
    errno.EDQUOT: "free some of your quota or choose another place, then run the same command again",
    errno.EFBIG: "allow larger files (ulimit -f) or choose another file system, then run the same command again",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: _OTHER_PLACE,
    errno.EPERM: _OTHER_PLACE,
    errno.ENOENT: "check the path",
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EISDIR: _FILE_IN_THE_WAY,
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links lead round in a circle; correct them",
    errno.EXDEV: "choose a place on one file system",
    errno.EBUSY: "something else uses it, such as a mount; choose another place",
    errno.EIO: "the disk or its connection fails; check it, then run the same command again",
    errno.ESTALE: "the network file system lost it; mount it again, then run the same command again",
    errno.EMFILE: "allow more open files (ulimit -n), or use fewer --workers",
    errno.ENFILE: "the machine has too many open files; close some programs",
    errno.EAGAIN: "allow more processes (ulimit -u), or use fewer --workers",
    errno.ENOMEM: "use fewer --workers or smaller batches, or free some memory",
    errno.ENOSYS: "the file system lacks this call; choose another one",
    errno.ENOTSUP: "the file system lacks this call; choose another one",
    errno.ENOLCK: "the file system has no locks; choose another one",
}


def remedy(error: OSError) -> str | None:
    """Return what to do about an error of the operating system, or None if nothing general can be said."""
    return _REMEDIES.get(error.errno or 0)


def os_error_line(error: OSError) -> str:
    """Return one line for an error of the operating system: the path, what it answered, and what to do."""
    name = error.filename
    shown = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else "operating system"
    advice = remedy(error)
    reason = error.strerror or str(error) or type(error).__name__
    return f"{shown}: {reason}; {advice}" if advice else f"{shown}: {reason}"
