"""Reading config.yaml: the settings of one run, fast, since reports read those of hundreds of runs."""

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from dhkd.data.errors import RunMismatch
from dhkd.data.runs.names import CHECKPOINT, CONFIG, METRICS, RESULT, WEIGHTS
from dhkd.data.strict_json import canonical

# libyaml reads a file ten times as fast as Python does. PyYAML has it unless it was built without.
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# It has no limit to its recursion, so mappings and lists within one another could end the process. Hence it gets only
# files that can't be deep: with few brackets, and without a long run of what begins nested blocks.
MOST_BRACKETS = 100
LONG_RUN = re.compile(rb"[-?: \t]{100}")
# Runs of one sweep differ in only a few lines, so files are parsed in parts, and equal parts only once. A heading is a
# key in the first column; each of its parts begins with a key that is indented by two spaces.
HEADING, HEADING_START, PART_START = (
    re.compile(rb"\w+:\n"),
    re.compile(rb"^(?=\S)", re.M),
    re.compile(rb"^(?=  \w)", re.M),
)
LONGEST_IN_PARTS = 2**15  # bytes; a longer file was not written by dhkd, and is parsed whole
MOST_PARTS = 4096  # parsed parts that are kept


def read_config(path: Path) -> dict[str, Any] | None:  # Any: YAML
    """Read the nested settings of the run at `path`; return None if there is no run.

    Raises `RunMismatch` if the settings are damaged.
    """
    file = path / CONFIG
    try:
        content = file.read_bytes()
        config = _in_parts(content)
        if config is None:
            config = yaml.load(content, Loader=yaml.SafeLoader if _may_be_deep(content) else FAST)
        if not isinstance(config, dict):
            raise ValueError(f"got a {type(config).__name__}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (yaml.YAMLError, ValueError, RecursionError, IsADirectoryError) as error:
        raise RunMismatch(
            f"{file}: expected a run's configuration in YAML, found something else; choose another --out"
        ) from error
    return config


def settings_sha256(config: Mapping[str, Any]) -> str:  # Any: YAML
    """Compute the hexadecimal SHA-256 of a run's settings; their order doesn't matter."""
    return hashlib.sha256(canonical(config)).hexdigest()


def begun_views(path: Path) -> int | None:
    """Return the number of cached views with which the run at `path` began, or None without a run or a cache."""
    run = (read_config(path) or {}).get("run")
    views = run.get("views") if isinstance(run, dict) else None
    return views if type(views) is int and views > 0 else None


def require_no_remains(path: Path) -> None:
    """Raise `RunMismatch` if the folder, which has no settings, holds other files of a run."""
    remains = [name for name in (METRICS, CHECKPOINT, RESULT, WEIGHTS) if (path / name).exists()]
    if remains:
        raise RunMismatch(
            f"run at {path}: expected its settings in {CONFIG} beside {', '.join(remains)}, found none; put the file"
            f" back or choose another --out"
        )


def _in_parts(content: bytes) -> dict[str, Any] | None:  # Any: YAML
    """Read settings part by part; return None for YAML that can't be split in this way, or that is damaged.

    A part has the same meaning alone as in its file: quotes, brackets and aliases that reach beyond it are errors when
    it is parsed alone, and files with merged mappings (<<), whose order matters, are not split. Runs share the values
    of equal parts.
    """
    if len(content) > LONGEST_IN_PARTS or b"<<" in content or _may_be_deep(content):
        return None
    config: dict[str, Any] = {}
    before, *sections = HEADING_START.split(content)
    if before or not sections:
        return None
    for section in sections:
        heading, *parts = PART_START.split(section)
        if not HEADING.fullmatch(heading) or not parts:
            return None
        values: dict[str, Any] = {}
        try:
            for part in parts:
                values |= _part(part)
            config |= dict.fromkeys(_part(heading), values)
        except (yaml.YAMLError, ValueError, TypeError):  # a TypeError if a part is no mapping
            return None
    return config


@lru_cache(MOST_PARTS)
def _part(content: bytes) -> Any:  # Any: YAML
    return yaml.load(content, Loader=FAST)


def _may_be_deep(content: bytes) -> bool:
    return content.count(b"[") + content.count(b"{") > MOST_BRACKETS or LONG_RUN.search(content) is not None
