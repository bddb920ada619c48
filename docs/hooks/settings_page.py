"""The reference of all settings: from the schema of presets, and the presets that change them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dhkd.configs.load import load_experiment, preset_names
from dhkd.configs.schema import Experiment, Section, Student, Teacher, Training
from pydantic.fields import FieldInfo
from words import code, escaped, number, sentence, value

HEAD = """\
# Settings

Every setting of a preset, generated from the schema with which dhkd checks presets. A preset is a YAML file; its
sections are the sections of this page. `--set KEY=VALUE` changes a setting for one command, as in
`--set student.epochs=30`, and `--grid KEY=A,B` trains a student for each value. Values are YAML. `null` means that a
setting is not set. An unknown key, and a value out of range, are refused in one line.

The last line of each setting says which of dhkd's presets change it. `dhkd presets show NAME` prints a preset. The
options of each method are in [Objectives](objectives.md).
"""

Presets = Mapping[str, Experiment]


@dataclass(frozen=True)
class Setting:
    """A setting in a section: its field, its JSON schema, and the keys under which presets hold it."""

    name: str
    field: FieldInfo
    schema: Mapping[str, Any]
    keys: tuple[tuple[str, ...], ...]


def page() -> str:
    """Return the page as Markdown."""
    presets = {name: load_experiment(name) for name in preset_names()}
    lines = [HEAD]
    lines += _section("Experiment", Experiment, ((),), presets, leave_out=_sections(Experiment))
    lines += _section("data", _model(Experiment, "data"), (("data",),), presets)
    lines += _section("views", _model(Experiment, "views"), (("views",),), presets)
    both = (("teacher",), ("student",))
    lines += _section("teacher and student", Training, both, presets)
    lines += _section("teacher", Teacher, (("teacher",),), presets, leave_out=set(Training.model_fields))
    lines += _section("student", Student, (("student",),), presets, leave_out=set(Training.model_fields))
    lines += _section("cache", _model(Experiment, "cache"), (("cache",),), presets)
    lines += _section("alignment", _model(Experiment, "alignment"), (("alignment",),), presets)
    return "\n".join(lines)


def _section(
    title: str,
    model: type[Section],
    sections: tuple[tuple[str, ...], ...],
    presets: Presets,
    leave_out: set[str] | None = None,
) -> Iterator[str]:
    yield f"\n## {title if title == 'Experiment' else ' and '.join(map(code, title.split(' and ')))}\n"
    yield f"{_described(model)}\n"
    if model.main_field:
        yield f"A word or number in place of the section sets `{model.main_field}`.\n"
    for setting in _settings(model, sections):
        if setting.name not in (leave_out or set()):
            yield from _lines(setting, presets)


def _settings(model: type[Section], sections: tuple[tuple[str, ...], ...], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a section, each followed by those of the section that it may be."""
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        keys = tuple((*section, name) for section in sections)
        yield Setting(f"{prefix}{name}", field, schema["properties"][name], keys)
        inner = _model(model, name)
        if inner is not None and model is not Experiment:
            yield from _settings(inner, keys, f"{prefix}{name}.")


def _lines(setting: Setting, presets: Presets) -> Iterator[str]:
    first, *others = [".".join(key) for key in setting.keys]
    shown = setting.name if others else first
    yield f'### {code(shown)} {{ #{first} data-toc-label="{setting.name}" }}\n'
    anchors = "".join(f'<a id="{key}"></a>' for key in others)
    yield f"{anchors}{sentence(setting.field.description or _described(_only_model(setting.field)))}\n"
    facts = [("Type", kind(setting.schema)), ("Default", default(setting.field))]
    if others:
        facts.insert(0, ("Keys", ", ".join(map(code, [first, *others]))))
    facts += [("Presets", text) for text in [_changes(setting, presets)] if text]
    yield '<div class="facts" markdown>\n'
    yield "\n".join(f"- {name}: {text}" for name, text in facts) + "\n\n</div>\n"


def _described(model: type[Section] | None) -> str:
    """Return a section's docstring, which is written in Markdown."""
    return "\n\n".join(" ".join(part.split()) for part in (model.__doc__ or "").split("\n\n")) if model else ""


def _sections(model: type[Section]) -> set[str]:
    return {name for name in model.model_fields if _model(model, name) is not None}


def _model(model: type[Section], name: str) -> Any:
    """Return the class of the section that a field of `model` holds; None if it holds a plain value."""
    return _only_model(model.model_fields[name])


def _only_model(field: FieldInfo) -> type[Section] | None:
    members = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((one for one in members if isinstance(one, type) and issubclass(one, Section)), None)


def default(field: FieldInfo) -> str:
    """Return a field's default as Markdown."""
    if field.is_required():
        return "none, it is required"
    content = field.get_default(call_default_factory=True)
    if isinstance(content, Section):
        return value(getattr(content, content.main_field)) if content.main_field else "all defaults of the section"
    return value(content)


def kind(schema: Mapping[str, Any]) -> str:
    """Return in words what JSON Schema says of a value."""
    if "anyOf" in schema:
        members = [kind(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(members))
    if "$ref" in schema:
        return "a section, or the value of its main setting"
    if "enum" in schema or "const" in schema:
        words = [value(one) for one in schema.get("enum", [schema.get("const")])]
        return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
    return _kind_of_type(schema)


def _kind_of_type(schema: Mapping[str, Any]) -> str:
    match schema.get("type"):
        case "integer":
            return f"whole number{_limits(schema)}"
        case "number":
            return f"number{_limits(schema)}"
        case "boolean":
            return "`true` or `false`"
        case "array" if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])} values, each: {kind(schema['prefixItems'][0])}"
        case "array":
            return f"list, each value: {kind(schema['items'])}"
        case "object":
            return "mapping of keys to values"
        case "string":
            return f"text that matches `{schema['pattern']}`" if "pattern" in schema else "text"
        case _:
            return "any value"


def _limits(schema: Mapping[str, Any]) -> str:
    limits = [
        f"{words} {number(schema[key])}"
        for key, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in schema
    ]
    return f", {' and '.join(limits)}" if limits else ""


def _changes(setting: Setting, presets: Presets) -> str:
    """Return which presets have other values than the default: each value once, with the presets that have it."""
    if _only_model(setting.field) is not None or setting.name in ("description", "smoke", "record", "objectives"):
        return ""
    usual = None if setting.field.is_required() else setting.field.get_default(call_default_factory=True)
    holders: dict[tuple[str, str], list[str]] = {}
    for key in setting.keys:
        role = key[0] if setting.keys[1:] else ""
        for name, experiment in presets.items():
            content = _at(experiment, key)
            if content is not None and content != usual:
                holders.setdefault((role, value(content)), []).append(name)
    texts = []
    for role in dict.fromkeys(role for role, _ in holders):
        parts = [f"{text} in {_names(names, presets)}" for (of, text), names in holders.items() if of == role]
        texts.append(f"{role}: " * bool(role) + "; ".join(parts))
    return ". ".join(text[:1].upper() + text[1:] if ":" in text[:9] else text for text in texts)


def _at(experiment: object, key: tuple[str, ...]) -> object:
    for name in key:
        experiment = getattr(experiment, name, None)
    return experiment


def _names(names: list[str], presets: Presets) -> str:
    """List presets by name; if all presets of a folder are among them, name the folder once."""
    shown: list[str] = []
    for folder in dict.fromkeys(name.rpartition("/")[0] for name in names):
        here = [name for name in names if name.rpartition("/")[0] == folder]
        whole = folder and len(here) == sum(name.startswith(f"{folder}/") for name in presets)
        shown += [f"all of {folder}/"] if whole else here
    return ", ".join(map(escaped, shown))
