"""Presets load, an override changes only what it names, and every mistake is one line that says what to write."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from dhkd.configs.load import load_experiment, parse_experiment, preset_names, preset_text
from dhkd.configs.schema import Experiment
from dhkd.data.errors import ConfigError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

SECTIONS = ("data", "views", "teacher", "cache", "student")

# Leaves of the preset "digits" that an override may set: dotted key, text after the "=", and the resulting value.
LEAVES: list[tuple[str, str, Any]] = [
    ("data.source", "glyphs", "glyphs"),
    ("data.limit", "100", 100),
    ("views.padding", "3", 3),
    ("views.flip", "true", True),
    ("teacher.architecture", "resnet56", "resnet56"),
    ("teacher.lr", "1e-3", 1e-3),
    ("teacher.sha256", "0" * 63 + "a", "0" * 63 + "a"),
    ("cache.views", "7", 7),
    ("cache.store", "webdataset", "webdataset"),
    ("student.milestones", "[1, 3]", (1, 3)),
    ("student.clip_norm", "5", 5.0),
    ("student.weight_decay", "0", 0.0),
    ("student.view_schedule", "cycle", "cycle"),
    ("objective", "kd", "kd"),
    ("objectives.kd.temperature", "4", 4),
    ("seed", "9", 9),
]


def one_line(name: str, *overrides: str, smoke: bool = False) -> str:
    """The line of the `ConfigError` that these arguments cause."""
    with pytest.raises(ConfigError) as caught:
        load_experiment(name, overrides, smoke=smoke)
    line = str(caught.value)
    assert line
    assert "\n" not in line
    return line


def leaf(experiment: Experiment, key: str) -> object:
    node: Any = experiment
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return node


def write_preset(folder: Path, **changes: object) -> str:
    """The path of a copy of the preset "digits" with other values at its top level."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(preset_text("digits")), **changes}))
    return str(path)


# presets


def test_the_presets_are_found_in_their_folders() -> None:
    names = preset_names()
    assert names == sorted(names)
    assert {"demo", "digits", "cifar100/resnet56-resnet20", "cifar100/resnet32x4-resnet8x4"} <= set(names)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_is_a_lab_record(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.description
    assert "\n" not in experiment.description, "'dhkd presets' gives each one line"
    assert experiment.record["commands"]
    assert all(command.startswith("dhkd ") for command in experiment.record["commands"])
    for command in experiment.record["commands"]:
        assert name in command.split()
    assert parse_experiment(experiment.model_dump(mode="json"), "again") == experiment


@pytest.mark.parametrize("name", preset_names())
def test_smoke_of_every_preset_is_short(name: str) -> None:
    full, smoke = load_experiment(name), load_experiment(name, smoke=True)
    assert smoke.teacher.epochs == smoke.student.epochs == 1
    assert smoke.data.limit is not None
    assert smoke.data.limit <= 1000
    assert smoke.cache.views == 2
    assert smoke.data.source in (full.data.source, "glyphs")
    sizes: dict[str, Any] = {
        "data": {"source", "limit", "test_limit"},
        "views": {"size", "test_resize"},
        "teacher": {"architecture", "epochs", "batch_size", "lr", "milestones"},  # a smaller one of its family
        "student": {"options", "epochs", "batch_size", "lr", "milestones", "warmup_epochs", "window"},
        "cache": {"views", "batch_size", "block_mb", "codec", "precision"},
    }
    assert smoke.model_dump(exclude=sizes) == full.model_dump(exclude=sizes)


def test_set_wins_over_smoke() -> None:
    experiment = load_experiment("digits", ["student.epochs=3"], smoke=True)
    assert (experiment.student.epochs, experiment.teacher.epochs) == (3, 1)


def test_the_text_of_a_preset_is_its_file() -> None:
    assert yaml.safe_load(preset_text("digits"))["student"]["architecture"] == "resnet8"


# --set


@pytest.mark.parametrize(("key", "text", "value"), LEAVES)
def test_an_override_sets_its_leaf_alone(key: str, text: str, value: object) -> None:
    before, after = load_experiment("digits"), load_experiment("digits", [f"{key}={text}"])
    assert leaf(after, key) == value
    assert type(leaf(after, key)) is type(value)
    changed = {name for name in Experiment.model_fields if getattr(before, name) != getattr(after, name)}
    assert changed == {key.split(".")[0]}
    section, _, field = key.partition(".")
    if field and section in SECTIONS:
        others = {field}
        assert getattr(after, section).model_dump(exclude=others) == getattr(before, section).model_dump(exclude=others)


@given(chosen=st.lists(st.sampled_from(LEAVES), unique_by=lambda leaf: leaf[0], max_size=6))
@settings(max_examples=25, deadline=None)
def test_overrides_of_different_leaves_are_independent(chosen: list[tuple[str, str, Any]]) -> None:
    forward = load_experiment("digits", [f"{key}={text}" for key, text, _ in chosen])
    backward = load_experiment("digits", [f"{key}={text}" for key, text, _ in reversed(chosen)])
    assert forward == backward
    for key, _, value in chosen:
        assert leaf(forward, key) == value


@pytest.mark.parametrize(
    ("section", "word", "main_field"),
    [
        ("data", "glyphs", "source"),
        ("student", "resnet20", "architecture"),
        ("teacher", "resnet56", "architecture"),
    ],
)
def test_a_bare_word_sets_a_sections_main_field_alone(section: str, word: str, main_field: str) -> None:
    before = load_experiment("digits", ["data.limit=100"])
    after = load_experiment("digits", ["data.limit=100", f"{section}={word}"])
    expected = before.model_dump()
    expected[section][main_field] = word
    assert after.model_dump() == expected
    assert load_experiment("digits", [f"{section}={word}", "data.limit=100"]) == after


def test_a_bare_word_in_a_file_can_be_reached_into(tmp_path: Path) -> None:
    name = write_preset(tmp_path, data="glyphs")
    assert load_experiment(name).data.source == "glyphs"
    data = load_experiment(name, ["data.limit=50"]).data
    assert (data.source, data.limit) == ("glyphs", 50)


def test_a_mapping_replaces_a_whole_section() -> None:
    student = load_experiment("digits", ["student={architecture: resnet20, epochs: 2, lr: 0.5}"]).student
    assert (student.architecture, student.epochs, student.lr) == ("resnet20", 2, 0.5)
    assert student.lr_schedule == "multistep", "the default, not the preset's"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("1.e-3", 1e-3),
        ("1.5e-3", 1.5e-3),
        ("+2e0", 2.0),
        ("2e1", 20.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("3", 3.0),
    ],
)
def test_numbers_mean_what_people_mean(text: str, value: float) -> None:
    experiment = load_experiment("digits", [f"student.lr={text}", f"objectives.kd.temperature={text}"])
    assert experiment.student.lr == value
    temperature = experiment.objectives["kd"]["temperature"]
    assert isinstance(temperature, float | int)
    assert temperature == value


def test_numbers_inside_mappings_are_numbers_too() -> None:
    """YAML 1.1 reads 1e-1 as text wherever it stands."""
    experiment = load_experiment("digits", ["objectives.dhkd={alpha: 1e-1}", "record.rates=[1e-1, word]"])
    assert experiment.objectives["dhkd"] == {"alpha": 0.1}
    assert experiment.record["rates"] == [0.1, "word"]


def test_numbers_in_a_file_are_numbers_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(preset_text("digits") + "\nobjectives: {dhkd: {alpha: 1e-1}}\n")
    assert load_experiment(str(path)).objectives["dhkd"] == {"alpha": 0.1}


def test_values_are_yaml() -> None:
    overrides = ["data.limit=100", "data.limit=null", "student.clip_norm=1", "student.clip_norm=~"]
    experiment = load_experiment("digits", overrides)
    assert experiment.data.limit is None
    assert experiment.student.clip_norm is None
    assert load_experiment("digits", ["student.milestones=[]"]).student.milestones == ()
    assert load_experiment("digits", ["description='3'"]).description == "3"
    assert load_experiment("digits", ["description=a=b"]).description == "a=b"


def test_spaces_around_the_equals_sign_are_ignored() -> None:
    student = load_experiment("digits", [" student.lr = 0.5 ", "student.architecture = resnet20"]).student
    assert (student.lr, student.architecture) == (0.5, "resnet20")


def test_the_last_override_wins() -> None:
    assert load_experiment("digits", ["seed=1", "seed=2"]).seed == 2
    assert load_experiment("digits", ["student.epochs=2", "student={architecture: a, epochs: 3, lr: 1}"]) == (
        load_experiment("digits", ["student={architecture: a, epochs: 3, lr: 1}"])
    )


def test_options_of_objectives_and_records_are_free() -> None:
    experiment = load_experiment("digits", ["objectives.new.option=[1, 2]", "record.result.top1=97.5"])
    assert experiment.objectives == {"new": {"option": [1, 2]}}
    assert experiment.record["result"] == {"top1": 97.5}
    assert experiment.record["commands"] == load_experiment("digits").record["commands"]


def test_options_of_own_losses_have_dots_in_their_keys() -> None:
    for name in ("my_loss.py:far", "../a.b/my_loss.py:far", "package.losses:far"):
        experiment = load_experiment("digits", [f"objectives.{name}.margin=2", f"objectives.{name}.power=3"])
        assert dict(experiment.objectives[name]) == {"margin": 2, "power": 3}
        whole = load_experiment("digits", [f"objectives.{name}={{margin: 4}}"])
        assert dict(whole.objectives[name]) == {"margin": 4}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sed=1", ["unknown key 'sed'", "did you mean 'seed'?", "student, teacher, views"]),
        ("studnt=resnet8", ["unknown key 'studnt'", "did you mean 'student'?"]),
        ("studnt.lr=1", ["--set studnt.lr: ", "unknown key 'studnt'", "did you mean 'student'?"]),
        ("student.epoch=1", ["--set student.epoch: ", "unknown key 'epoch'", "did you mean 'epochs'?"]),
        ("student.sha256=0", ["unknown key 'sha256'"]),
        ("student.epochs.more=1", ["epochs is a single value, not a section"]),
        ("student.depth.more=1", ["unknown key 'depth'"]),
        ("student={architecture: a, epochs: 1, lr: 1, momentun: 0}", ["student: unknown key 'momentun'", "'momentum'"]),
        (
            "data={source: digits, int: 3}",
            ["data: unknown key 'int'", "limit, max_megapixels, max_metadata_mb, mean, num_classes, options, source"],
        ),
        (
            "data={source: digits, 'literal[a]': 3}",
            [
                "data: unknown key 'literal[a]'",
                "limit, max_megapixels, max_metadata_mb, mean, num_classes, options, source",
            ],
        ),
        ("record.commands.0=dhkd demo", ["commands is a single value, not a section"]),
        ("student.=1", ["unknown key ''"]),
        (".student=1", ["unknown key ''"]),
        (" =1", ["unknown key ''"]),
        ("=1", ["expected key=value"]),
        ("seed", ["--set seed: expected key=value"]),
        ("", ["expected key=value"]),
        ("seed=[1", ["--set seed=[1: the value is not YAML"]),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, parts: list[str]) -> None:
    line = one_line("digits", override)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("override", "got"),
    [
        ("student.epochs=many", "'many'"),
        ("student.epochs=2.5", "2.5"),
        ("student.epochs=0", "0"),
        ("student.epochs=[1]", "[1]"),
        ("student.epochs=null", "None"),
        ("student.lr=0", "0"),
        ("student.lr=-1e-3", "-0.001"),
        ("student.lr=.nan", "nan"),
        ("student.lr=.inf", "inf"),
        ("student.lr=1e999", "inf"),
        ("objectives.kd={temperature: .nan}", "{'temperature': nan}"),
        ("smoke={cache.views: [1, .inf]}", "{'cache.views': [1, inf]}"),
        ("student.momentum=1", "1"),
        ("student.batch_size=1", "1"),
        ("student.milestones=30", "30"),
        ("student.precision=half", "'half'"),
        ("student.view_schedule=cycles", "'cycles'"),
        ("views.padding=-1", "-1"),
        ("views.padding=65", "65"),
        ("views.flip=maybe", "'maybe'"),
        ("views.seed=9223372036854775808", "9223372036854775808"),
        ("seed=-1", "-1"),
        ("data=null", "None"),
        ("data.limit=1", "1"),
        ("data.source=3", "3"),
        ("cache.views=some", "'some'"),
        ("cache.block_mb=65", "65"),
        ("teacher.sha256=abc", "'abc'"),
        ("description=null", "None"),
        ("objectives=kd", "'kd'"),
        ("objectives.kd=4", "4"),
        ("record=3", "3"),
    ],
)
def test_an_impossible_value_names_its_key_and_what_was_got(override: str, got: str) -> None:
    line = one_line("digits", override)
    assert line.startswith(f"preset digits: {override.partition('=')[0]}: ")
    assert "error" not in line
    assert line.endswith(f"got {got}")


def test_a_missing_key_is_named() -> None:
    line = one_line("digits", "student={architecture: resnet8, lr: 1}")
    assert line == "preset digits: student.epochs: field required"


def test_every_mistake_is_listed() -> None:
    line = one_line("digits", "student.epochs=0", "seed=-1")
    assert "student.epochs: " in line
    assert "; seed: " in line


# Text for which PyYAML raises errors other than its own.
HOSTILE = [
    *("2024-99-99", "0x_", "0b_", "!!int x", "!!int", "!!float x", "!!bool x", "!!timestamp x", "!!binary x"),
    *(
        "9" * 5000,
        "[" * 600,
        "{{}: 1}",
        "&a [*a]",
        "!!python/object/apply:os.getcwd []",
        "=",
        "<<: 1",
        "\x00",
        "\ud800",
    ),
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:40]))
def test_hostile_values_are_a_config_error(text: str, tmp_path: Path) -> None:
    one_line("digits", f"seed={text}")
    path = tmp_path / "mine.yaml"
    path.write_text(f"{preset_text('digits')}\nseed: {text}\n", errors="surrogatepass")
    one_line(str(path))
    (tmp_path / "run").mkdir()
    path.rename(tmp_path / "run" / "config.yaml")
    one_line(str(tmp_path / "run"))


@given(
    key=st.sampled_from([*Experiment.model_fields, "student.lr", "student.milestones", "objectives.kd", "smoke.x"]),
    text=st.text() | st.text("0123456789.-+eE_:[]{}!&*<=~'\", abx\n", max_size=12),
)
@example(key="data", text="{int: 3}")
@settings(max_examples=30, deadline=None)
def test_any_text_as_a_value_is_accepted_or_refused(key: str, text: str) -> None:
    try:
        experiment = load_experiment("digits", [f"{key}={text}"])
    except ConfigError:
        return
    assert isinstance(experiment, Experiment)
    assert math.isfinite(experiment.student.lr)


@given(override=st.text() | st.text("abdelrstu.= 1", max_size=12) | st.sampled_from(SECTIONS).map(lambda s: f"{s}..=1"))
@settings(max_examples=30, deadline=None)
def test_any_text_as_an_override_is_accepted_or_refused(override: str) -> None:
    try:
        experiment = load_experiment("digits", [override])
    except ConfigError:
        return
    assert "=" in override
    assert isinstance(experiment, Experiment)


# files


@pytest.mark.parametrize("override", ["data.mean=[123,116,103]", "data.std=[0,0.2,0.2]", "teacher.std=[-0.2,0.2,0.2]"])
def test_colours_are_shares_of_full_scale(override: str) -> None:
    assert one_line("digits", override).startswith(f"preset digits: {override.partition('=')[0]}.0: input should be ")


def test_a_preset_can_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(preset_text("digits"), encoding="utf-8")
    assert load_experiment(str(path)) == load_experiment("digits")
    assert load_experiment(str(path.rename(tmp_path / "no-suffix"))) == load_experiment("digits")


@pytest.mark.parametrize(("name", "nearest"), [("digit", "digits"), ("Demo", "demo"), ("./digits", "digits")])
def test_an_unknown_preset_names_the_nearest(name: str, nearest: str) -> None:
    line = one_line(name)
    assert line == f"unknown preset {name!r}: did you mean {nearest!r}? valid are {', '.join(preset_names())}"


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a\0b", "\n", "x" * 5000])
def test_a_name_that_cannot_be_a_preset_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "preset" in one_line(name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert one_line(str(path)) == f"preset file {path}: No such file or directory"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a mapping of keys to values, got NoneType"),
        (b"[1, 2]", "expected a mapping of keys to values, got list"),
        (b"just words", "expected a mapping of keys to values, got str"),
        (b"a: b: c", "mapping values are not allowed here"),
        (b"seed: [1,\nstudent: 3", "line 2"),
        (b"\tseed: 1", "cannot start any token"),
        (b"seed: 1\n---\nseed: 2", "expected a single document"),
        (b"\xff\xfe\x00", "it is not text"),
        (b"seed: 1", "description: field required; data: field required; views: field required"),
    ],
)
def test_a_file_that_is_not_a_preset_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    line = one_line(str(path))
    assert str(path) in line
    assert message in line


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sed": 1}, ["top level: unknown key 'sed'", "did you mean 'seed'?"]),
        ({"int": 1}, ["top level: unknown key 'int'"]),
        ({"literal[x]": 1}, ["top level: unknown key 'literal[x]'"]),
        ({"cache": {"view": 3}}, ["cache: unknown key 'view'", "did you mean 'views'?"]),
        ({"cache": {"int": 3}}, ["cache: unknown key 'int'"]),
        ({"data": {"source": "digits", 3: 4}}, ["data.3: ", "got 3"]),
        ({"smoke": [1]}, ["smoke", "got [1]"]),
    ],
)
def test_an_unknown_key_in_a_file_names_the_nearest(changes: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    for smoke in (False, True):
        line = one_line(write_preset(tmp_path, **changes), smoke=smoke)
        for part in parts:
            assert part in line


def test_smoke_settings_are_checked_when_they_are_used(tmp_path: Path) -> None:
    name = write_preset(tmp_path, smoke={"data.limt": 10})
    load_experiment(name)
    line = one_line(name, smoke=True)
    assert "unknown key 'limt': did you mean 'limit'?" in line


# mutated files

ODD = st.sampled_from(
    [None, True, 0, -1, 10**400, 1.5, math.nan, math.inf, "", "2", "\n", "x" * 5000, [], [[]], {}, {"x": 1}]
)


@st.composite
def mutated_presets(draw: st.DrawFn) -> dict[str, Any]:
    """The preset "digits" with one to three of its values removed, replaced, renamed, doubled or nested."""
    tree = yaml.safe_load(preset_text("digits"))
    for _ in range(draw(st.integers(1, 3))):
        section = draw(
            st.sampled_from([tree, *(child for child in tree.values() if isinstance(child, dict) and child)])
        )
        key = draw(st.sampled_from(sorted(section, key=str)))
        how = draw(st.sampled_from(["remove", "replace", "rename", "nest", "deep"]))
        value = section.pop(key)
        if how == "replace":
            section[key] = draw(ODD)
        elif how == "rename":
            section[draw(st.sampled_from(["x", "epochs", "source", 3, "a.b"]))] = value
        elif how == "nest":
            section[key] = draw(st.sampled_from([[value], {"x": value}, [value, value]]))
        elif how == "deep":
            section[key] = yaml.safe_load("[" * 60 + "]" * 60)
        if not tree:
            break
    return tree


@given(tree=mutated_presets(), smoke=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_mutated_preset_is_an_experiment_or_one_line(
    tree: dict[str, Any], smoke: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("mutated") / "mine.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    try:
        experiment = load_experiment(str(path), smoke=smoke)
    except ConfigError as error:
        line = str(error)
    else:
        line = "an experiment"
        assert parse_experiment(experiment.model_dump(mode="json"), "again") == experiment
    assert line
    assert "\n" not in line


# a run's folder


def test_the_folder_of_a_run_gives_its_experiment(tmp_path: Path) -> None:
    experiment = load_experiment("digits", ["student.lr=0.3", "objectives.kd.temperature=4", "seed=5"])
    tree = {"run": {"role": "student"}, "experiment": experiment.model_dump(mode="json")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert load_experiment(str(tmp_path)) == experiment
    assert load_experiment(str(tmp_path), ["seed=6"]).seed == 6
    assert load_experiment(str(tmp_path), smoke=True).data.limit == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"seed: 1",
        b"[1]",
        b"words",
        b"experiment: 3",
        b"experiment: [",
        b"experiment: null",
        b"experiment: {}",
        b"\xff",
    ],
)
def test_a_damaged_run_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    assert str(tmp_path) in one_line(str(tmp_path))


# frozen


@pytest.mark.parametrize("name", [None, *SECTIONS])
def test_experiments_are_frozen(name: str | None) -> None:
    experiment = load_experiment("digits")
    section = experiment if name is None else getattr(experiment, name)
    for field in type(section).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, getattr(section, field))


def test_loading_twice_shares_nothing() -> None:
    first, second = load_experiment("digits"), load_experiment("digits")
    assert first == second
    assert first.record is not second.record
