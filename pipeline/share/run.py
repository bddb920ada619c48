"""Sharing a run: its weights, settings, metrics and result in a folder, without anything of this machine.

The folder is a run's folder like any other: reports read it, and its network can be evaluated, exported and used as a
teacher. Left out: checkpoints, weights that were kept during training, and what trackers wrote.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from dhkd.data.errors import ConfigError, RunMismatch
from dhkd.data.runs.config import read_config, settings_sha256
from dhkd.data.runs.metrics import read_metrics
from dhkd.data.runs.names import CLASSES, CONFIG, METRICS, RESULT, SWEEP
from dhkd.data.runs.result import read_result
from dhkd.pipeline.build.networks import OF_AVERAGE
from dhkd.pipeline.card import model_card
from dhkd.pipeline.results import Shared
from dhkd.pipeline.share.folder import Sharing, finish, put, require_ours
from dhkd.pipeline.share.private import Json, changed, public, require_public, shortened_in
from dhkd.stages.models.weights import read_metadata, with_metadata

ROLES = ("student", "teacher")
SETTINGS_SHA256, SHA256 = "settings_sha256", "sha256"  # of a result


@dataclass(frozen=True)
class _Files:
    """A run's files as they are shared: the texts by name, and the weights' files with what their metadata become.

    `shortened` maps each text that was shortened, such as a path, to what is left of it.
    """

    texts: Mapping[str, bytes]
    weights: Mapping[Path, Mapping[str, str]]
    left_out: list[str]
    shortened: Mapping[str, str]


def share_run(run: Path, folder: Path, options: Sharing) -> Shared:
    """Write the finished run into the folder, or continue to.

    Raises `RunMismatch` for a run that is unfinished or damaged, and `ConfigError` for a folder that holds something
    else and for a run that can't be shared.
    """
    if options.store is not None:
        raise ConfigError("--store: expected none for a run, which has no store; leave it out")
    files = _files_of(run)
    for name, content in files.texts.items():
        require_public(f"{run / name}", content.decode(errors="replace"), allow_names=options.allow_names)
    for file, metadata in files.weights.items():
        require_public(f"{file}, metadata", json.dumps(metadata), allow_names=options.allow_names)
    require_ours(folder, {*files.texts, *(file.name for file in files.weights)})
    _require_same(folder, json.loads(files.texts[RESULT]))
    for file, metadata in files.weights.items():
        put(folder / file.name, with_metadata(file, metadata))
    for name, content in files.texts.items():
        put(folder / name, content)
    sizes = finish(folder, _card(run, files), ["*.safetensors"], options)
    return Shared(
        kind="run",
        folder=str(folder),
        store=None,
        digest=json.loads(files.texts[RESULT])[SHA256],
        files=len(sizes),
        bytes=sum(sizes.values()),
        left_out=files.left_out,
    )


def _files_of(run: Path) -> _Files:
    config = read_config(run)
    if config is None or (run / SWEEP).is_file():
        found = "a sweep's folder, which holds many" if (run / SWEEP).is_file() else "no settings of one"
        raise RunMismatch(f"{run}: expected a cache or a run, found {found}; name a cache, or one run's folder")
    result = read_result(run, read_metrics(run), settings_sha256(config))
    weights = [run / f"{role}{part}.safetensors" for role in ROLES for part in ("", OF_AVERAGE)]
    weights = [file for file in weights if file.is_file()]
    if result is None or not weights:
        raise RunMismatch(f"run at {run}: expected a finished run, found none; finish it with --resume")
    tree = json.loads((run / RESULT).read_bytes())
    settings, facts = public(config), public(tree)
    left_out = [*changed(config, settings, CONFIG), *changed(tree, facts, RESULT)]
    texts = {name: (run / name).read_bytes() for name in (CONFIG, RESULT, METRICS, CLASSES) if (run / name).is_file()}
    if settings != config:
        texts[CONFIG] = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode()
        facts |= {SETTINGS_SHA256: settings_sha256(settings)} if SETTINGS_SHA256 in facts else {}
    if facts != tree:
        texts[RESULT] = (json.dumps(facts, indent=2) + "\n").encode()
    metadata = {file: read_metadata(file) for file in weights}
    shortened = {file: {key: _shortened(value) for key, value in one.items()} for file, one in metadata.items()}
    left_out += [line for file, one in metadata.items() for line in changed(one, shortened[file], file.name)]
    return _Files(texts, shortened, left_out, dict(shortened_in([config, tree])))


def _card(run: Path, files: _Files) -> str:
    """Return the run's model card. It is that of the original, which is still beside its sweep and its cache."""
    card = model_card(run, files=[file.name for file in files.weights])
    for text in sorted(files.shortened, key=len, reverse=True):
        card = card.replace(text, files.shortened[text])
    return card


def _shortened(value: str) -> str:
    """Return a value of a weights file's metadata, which may itself be JSON, without anything of this machine."""
    try:
        tree = json.loads(value)
    except (ValueError, RecursionError):
        return str(public(value))
    clean = public(tree)
    return json.dumps(clean, sort_keys=True) if clean != tree else value


def _require_same(folder: Path, result: Json) -> None:
    """Raise `ConfigError` if the folder holds another run's result."""
    try:
        existing = json.loads((folder / RESULT).read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        existing = None
    if not isinstance(existing, dict) or existing.get(SHA256) != result.get(SHA256):
        raise ConfigError(
            f"{folder}: expected a new or empty folder, or one that 'dhkd share' made of this run, found another run;"
            f" choose another folder"
        )
