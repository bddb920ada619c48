"""Finding and reading presets, and overriding their settings from the command line."""

import copy
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

import yaml
from dhkd.configs.places import require_below_here
from dhkd.configs.schema import Codec, Experiment, Section, is_bare
from dhkd.configs.strict_yaml import LARGEST_TEXT, decode
from dhkd.data.errors import ConfigError, unknown  # configs imports only this and `shown` from `data`
from dhkd.data.shown import redacted
from pydantic import BaseModel, ValidationError

SUFFIX = ".yaml"
RUN_CONFIG = "config.yaml"  # the file of settings in a run's folder
MOST_PROBLEMS = 20  # of a preset that a message lists
LONGEST_SHOWN = 500  # characters of a wrong value that a message shows


def preset_names() -> list[str]:
    """Return the sorted names of the presets that come with the program."""
    return sorted(_walk(files("dhkd.configs") / "presets", ""))


def preset_text(name: str) -> str:
    """Return the YAML text of a preset.

    `name` is a name from `preset_names`, the path of a YAML file, or a run's folder. Raises `ConfigError` for a name or
    path that doesn't exist.
    """
    path = Path(name)
    try:
        if (path / RUN_CONFIG).is_file():
            return _experiment_of_run(path / RUN_CONFIG)
        if path.suffix in (".yaml", ".yml") or path.is_file():
            return _read(path)
    except OSError as error:
        raise ConfigError(f"preset {name}: {error.strerror}") from error
    names = preset_names()
    if name not in names:
        raise ConfigError(unknown("preset", name, names))
    return (files("dhkd.configs") / "presets").joinpath(*f"{name}{SUFFIX}".split("/")).read_text(encoding="utf-8")


def load_experiment(name: str, overrides: Iterable[str] = (), *, smoke: bool = False) -> Experiment:
    """Load a preset and apply `key=value` overrides, in which a dot separates section and key: `student.epochs=5`.

    Values are YAML: `data.limit=null` is None, and `student.milestones=[30,60]` is a list. With `smoke`, the preset's
    smoke settings are applied before the overrides. Raises `ConfigError` with a one-line message, which suggests the
    nearest valid name for an unknown key.
    """
    preset = preset_tree(name, smoke=smoke)
    tree = copy.deepcopy(preset)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {override}: expected key=value")
        _assign(tree, key.strip(), _parse(text, f"--set {override}: the value is not YAML"))
    _require_own_weights(preset, tree, f"preset {name}")
    return parse_experiment(_without_secrets(tree), f"preset {name}")


def preset_tree(name: str, *, smoke: bool = False) -> dict[str, Any]:
    """Load a preset as nested plain values, with its smoke settings applied if `smoke` is set."""
    tree = copy.deepcopy(_parse_preset(preset_text(name), f"preset {name}"))
    if not isinstance(tree, dict):
        raise ConfigError(f"preset {name}: expected a mapping of keys to values, got {type(tree).__name__}")
    if smoke:
        settings = tree.get("smoke") or {}
        if not isinstance(settings, dict):
            raise ConfigError(f"preset {name}: smoke expected a mapping of keys to values, got {settings!r}")
        for key, value in settings.items():
            _assign(tree, str(key), value)
    return tree


def experiment_with(tree: Mapping[str, Any], settings: Mapping[str, object], where: str) -> Experiment:
    """Build the experiment from nested plain values, changed by settings with dotted keys: `{"student.epochs": 5}`.

    Raises `ConfigError` as `load_experiment` does; messages about the experiment as a whole begin with `where`.
    """
    changed = copy.deepcopy(dict(tree))
    for key, value in settings.items():
        _assign(changed, key, value)
    _require_own_weights(tree, changed, where)
    return parse_experiment(_without_secrets(changed), where)


def _require_own_weights(preset: Mapping[str, Any], changed: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` if the preset itself names student weights outside of the current folder.

    A preset may come from a stranger. Weights that the user names instead are not checked.
    """
    if _weights_in(changed) == _weights_in(preset):
        require_below_here(_weights_in(preset), where)


def _weights_in(tree: Mapping[str, Any]) -> object:
    """Return the value of `student.weights` in nested values that are not validated yet, or None if it is absent."""
    student = tree.get("student")
    return student.get("weights") if isinstance(student, dict) else None


def experiment_of_run(path: Path) -> Experiment:
    """Load the settings of the run at `path`, to show or compare them; files that the settings name are not read."""
    where = f"run {path}"
    return parse_experiment(_parse(_experiment_of_run(path / RUN_CONFIG), where), where)


def parse_experiment(tree: Mapping[str, Any], where: str) -> Experiment:
    """Build the experiment from nested plain values.

    Raises `ConfigError` for invalid values; its message begins with `where`.
    """
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain_all(error)}") from error


def parse_section(kind: type[Section], tree: object, where: str) -> dict[str, Any]:
    """Check the plain values of one section and return those that are set. Raises `ConfigError` for invalid values."""
    try:
        return kind.model_validate(tree).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain_all(error)}") from error


def parse_codec(kind: str | None, k: int | None, temperature: float | None) -> Codec:
    """Build the codec from the options that are not None. Raises `ConfigError` if the options don't fit together."""
    given = {"kind": kind, "k": k, "temperature": temperature}
    try:
        return Codec.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(f"--codec: {_explain_all(error)}") from error


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"preset file {path}: {reason}") from error
    if len(text) > LARGEST_TEXT:
        raise ConfigError(f"preset file {path}: expected at most {LARGEST_TEXT:,} characters, got more")
    return text


def _experiment_of_run(path: Path) -> str:
    """Return the experiment as YAML, without the other facts about the run that its config.yaml holds."""
    try:
        return yaml.safe_dump(_parse(_read(path), str(path))["experiment"], sort_keys=False, allow_unicode=True)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected a run's settings, got something else") from error


def _walk(folder: Traversable, prefix: str) -> Iterable[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            yield prefix + entry.name.removesuffix(SUFFIX)


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. A word or number given for a section sets its main field and keeps its other fields."""
    *sections, last = _parts_of(key)
    model: type[BaseModel] | None = Experiment
    node = tree
    for name in sections:
        model = _require_field(model, name, key)
        child = node.get(name)
        if is_bare(child) and model is not None and issubclass(model, Section) and model.main_field:
            child = {model.main_field: child}
        if child is not None and not isinstance(child, dict):
            raise ConfigError(f"--set {key}: {name} is a single value, not a section")
        node[name] = dict(child or {})
        node = node[name]
    section = _require_field(model, last, key)
    if section is not None and issubclass(section, Section) and section.main_field and is_bare(value):
        existing = node.get(last)
        node[last] = {**(existing if isinstance(existing, dict) else {}), section.main_field: value}
    else:
        node[last] = value


def _parts_of(key: str) -> list[str]:
    """Split a key at its dots, except for those within a name FILE.py:NAME, as in objectives.my.py:far.margin."""
    first, _, rest = key.partition(".")
    if first == "objectives" and ":" in rest:
        name, dot, option = rest.rpartition(".")
        return [first, name, option] if dot and ":" not in option else [first, rest]
    return key.split(".")


def _require_field(model: type[BaseModel] | None, name: str, key: str) -> type[BaseModel] | None:
    """Return the section model of the field `name` of `model`, or None if there is no such section.

    There is none if the field is a single value, and if `model` accepts any key. Raises `ConfigError` for an unknown
    field.
    """
    if model is None:
        return None
    if name not in model.model_fields and model.model_config.get("extra") == "allow":
        return None
    if name not in model.model_fields:
        raise ConfigError(f"--set {key}: {unknown('key', name, model.model_fields)}")
    annotation = model.model_fields[name].annotation
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


@lru_cache(maxsize=4)  # a command, and each run of a sweep on other machines, asks for the same preset several times
def _parse_preset(text: str, where: str) -> Any:
    return _parse(text, where)


def _parse(text: str, where: str) -> Any:
    try:
        return decode(text)
    except ValueError as error:
        raise ConfigError(f"{where} ({error})") from error


def _without_secrets(tree: Any) -> Any:
    """Return a preset's values, as YAML gave them, without the passwords and signatures of URLs.

    An experiment is written into every run's folder and shown in reports.
    """
    if isinstance(tree, str):
        return redacted(tree)
    if isinstance(tree, dict):
        return {key: _without_secrets(value) for key, value in tree.items()}
    return [_without_secrets(value) for value in tree] if isinstance(tree, list) else tree


def _explain_all(error: ValidationError) -> str:
    """Describe the first of pydantic's problems in one line."""
    problems = error.errors()
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return "; ".join(map(_explain, problems[:MOST_PROBLEMS])) + more


def _explain(problem: Any) -> str:
    """Describe one of pydantic's problems as "key: what is wrong, got value"."""
    place = list(problem["loc"])
    if problem["type"] != "extra_forbidden":  # pydantic adds the members of a union to the location
        place = [part for part in place if not str(part).startswith("literal[") and part != "int"]
    name = ".".join(str(part) for part in place) or "the file"
    if problem["type"] == "extra_forbidden":
        model: type[BaseModel] | None = Experiment
        for part in place[:-1]:
            model = _require_field(model, str(part), name)
        valid = model.model_fields if model is not None else ()
        return f"{'.'.join(map(str, place[:-1])) or 'top level'}: {unknown('key', str(place[-1]), valid)}"
    value = repr(problem["input"])
    value = value if len(value) <= LONGEST_SHOWN else f"{value[:LONGEST_SHOWN]}…"
    got = "" if problem["type"] == "missing" else f", got {value}"
    return f"{name}: {problem['msg'][:1].lower()}{problem['msg'][1:]}{got}"
