"""The model card of a finished run: the README with which a model hub shows what the network is and how good it is.

It begins with YAML that hubs read. It names no paths of the machine where the run was trained, and a licence only if
the caller names one.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from dhkd.configs.load import parse_experiment
from dhkd.configs.schema import SGD, Experiment
from dhkd.data.runs.measured import top1_name
from dhkd.data.sources import SOURCES
from dhkd.pipeline.card_facts import CardFacts, facts_of_run
from dhkd.pipeline.claims import settings_of
from dhkd.pipeline.markdown import code, fenced, folded, front_matter, table
from dhkd.stages.models.architecture import PROJECTED
from dhkd.stages.report.statistics import wilson_interval

NAME = "README.md"
SETTINGS = "settings.yaml"  # the name under which the card's reader saves its settings
HUGGINGFACE = "huggingface:"
ON_HUB = {"cifar100": "uoft-cs/cifar100"}  # the names of data sets on the hub, by source
LIBRARY = "dhkd"


def model_card(
    run: Path,
    *,
    files: Sequence[str] = (),
    ema: bool = False,
    name: str | None = None,
    license_id: str | None = None,
) -> str:
    """Return the model card of the finished run in the folder `run`.

    `files` are the names of the files with the network that will lie beside the card, such as "student.onnx"; the card
    says how to use each. If `ema` is true, the network is the average that the run kept of its weights. `name` is the
    network's name on the hub; it is made of network and data set if it is None. `license_id` is a licence as the hub
    names it. If the run belongs to a sweep, the card also has the mean over the sweep's runs that differ only in their
    seed.

    Raises `WeightsError` for a folder without a finished run, and `RunMismatch` for a damaged one.
    """
    facts = facts_of_run(run, ema=ema)
    name = name or f"{_plain(facts.result.architecture)}-{_plain(facts.experiment.data.source)}"
    parts = [
        front_matter(({"license": license_id} if license_id else {}) | _hub_facts(facts, name)),
        f"# {name}",
        _summary(facts),
        "## Accuracy",
        _accuracy(facts),
        *(["## Use", *(_use(file) for file in files)] if files else []),
        "## Training",
        table(["", ""], [[key, value] for key, value in _training(facts)]),
        "## Commands",
        _commands(facts),
        folded(f"Settings ({SETTINGS})", fenced(_settings_text(facts.experiment), "yaml")),
        *([folded(f"The {len(facts.classes)} classes", fenced("\n".join(facts.classes)))] if facts.classes else []),
    ]
    return "\n\n".join(parts) + "\n"


# Any: the hub's YAML.
def _hub_facts(facts: CardFacts, name: str) -> dict[str, Any]:
    source = facts.experiment.data.source
    on_hub = source.removeprefix(HUGGINGFACE) if source.startswith(HUGGINGFACE) else ON_HUB.get(source)
    split = "validation" if (facts.result.measured or "").startswith("val") else "test"
    of_teacher = (facts.result.measured or "").endswith("agreement")
    figures = [
        {"type": "agreement" if of_teacher else "accuracy", "value": round(value, 2), "name": f"{title} (%)"}
        for title, value in ((_top1_title(facts), facts.top1), (_top1_title(facts).replace("1", "5"), facts.top5))
    ]
    return {
        "library_name": LIBRARY,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", *(["knowledge-distillation"] * (facts.result.role == "student"))],
        **({"datasets": [on_hub]} if on_hub else {}),
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image classification"},
                        "dataset": {"name": _plain(source), "type": on_hub or _plain(source), "split": split},
                        "metrics": figures,
                    }
                ],
            }
        ],
    }


def _plain(name: str) -> str:
    """Return the last part of a name, such as resnet50 for torchvision:resnet50, in characters that titles may have."""
    last = PurePosixPath(name.rpartition(":")[2]).name
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in last) or "network"


def _top1_title(facts: CardFacts) -> str:
    name = top1_name(facts.result.measured)
    return "Top-1 accuracy" if name == "top-1" else f"{name[0].upper()}{name[1:]}"


def _summary(facts: CardFacts) -> str:
    result, experiment = facts.result, facts.experiment
    classes = f" of {facts.num_classes} classes" if facts.num_classes else ""
    what = f"{code(result.architecture)} with {result.parameters:,} parameters, an image classifier{classes}"
    if result.distillation is None:
        how = f"trained on {code(experiment.data.source)} with cross-entropy"
    else:
        how = f"trained on {code(experiment.data.source)} with the method {code(result.distillation.objective)}"
        if facts.cache is not None:
            teacher = f"the teacher {code(facts.cache.teacher)}" if facts.cache.teacher else "a teacher"
            how += f" from the cached outputs of {teacher}"
    kept = " Its weights are the average (EMA) that the run kept of them." if facts.ema else ""
    return f"{what}, {how}.{kept}"


def _accuracy(facts: CardFacts) -> str:
    rows = []
    for title, value in ((_top1_title(facts), facts.top1), (_top1_title(facts).replace("1", "5"), facts.top5)):
        interval = wilson_interval(value, facts.tested_on) if facts.tested_on else None
        rows.append([title, f"{value:.2f} %", f"{interval[0]:.2f} to {interval[1]:.2f} %" if interval else ""])
    if facts.seeds is not None:
        low, high = (min(100.0, max(0.0, end)) for end in facts.seeds.interval or (facts.seeds.mean,) * 2)
        title = f"Mean of {facts.seeds.count} runs that differ only in their seed"
        rows.append([title, f"{facts.seeds.mean:.2f} %", f"{low:.2f} to {high:.2f} %"])
    if facts.teacher_top1 is not None:
        rows.append(["The teacher's top-1 accuracy", f"{facts.teacher_top1:.2f} %", ""])
    notes = ["Figures are those of the last epoch, whose weights these are."]
    if facts.tested_on:
        notes.append(
            f"An interval covers the choice of the {facts.tested_on:,} images on which the network was tested (Wilson's"
            f" interval)."
        )
    else:
        notes.append("The run doesn't record on how many images it was tested, so there is no interval.")
    if facts.seeds is not None:
        notes.append("That of the mean covers what changes with the seed (Student's t distribution).")
    return f"{table(['', '', '95 % interval'], rows)}\n\n{' '.join(notes)}"


def _use(file: str) -> str:
    """Return how to use one file with the network."""
    command = fenced(f"pip install dhkd\ndhkd predict {shlex.quote(file)} photo.jpg", "bash")
    return f"{code(file)}: {_USES.get(PurePosixPath(file).suffix, 'weights.')}\n\n{command}"


_USES = {
    ".safetensors": "the weights; the metadata has the network's name, the classes and the normalisation.",
    ".onnx": "takes pixels, `uint8` (N, C, H, W), and returns `logits`. It normalises the pixels itself; the metadata"
    " has the classes, and how an image of another size is resized.",
    ".pt2": "a program of `torch.export`, which takes pixels, `uint8` (N, C, H, W), and returns logits. It normalises"
    " the pixels itself. Such a file can run code when it is opened, so `predict` asks for `--allow-code`.",
}


def _training(facts: CardFacts) -> list[tuple[str, str]]:
    result, data, settings = facts.result, facts.experiment.data, facts.training
    optimizer = settings.optimizer.name if settings.optimizer else SGD
    rows = [("Data", code(data.source) + (f", the first {data.limit:,} training images" if data.limit else ""))]
    if facts.cache is not None:
        cache, sha256 = facts.cache, facts.cache.teacher_sha256
        of_weights = f", weights with the SHA-256 {code(sha256)}" if sha256 else ""
        rows += [
            ("Teacher", (code(cache.teacher) if cache.teacher else "not recorded") + of_weights),
            (
                "Cache",
                f"{code(_last_part(cache.path))}: {', '.join(map(code, cache.signals))} for {cache.views} views of"
                f" {cache.samples:,} images, identity {code(cache.digest)}",
            ),
        ]
    if result.distillation is not None:
        live = result.distillation.live
        computed = f", with {', '.join(map(code, live))} from a teacher in every step" if live else ""
        rows.append(("Method", code(result.distillation.objective) + computed))
    rows += [
        (
            "Schedule",
            f"{_number(result.epochs, 'epoch', 'epochs')}, batch size {settings.batch_size}, learning rate"
            f" {settings.lr:g} ({code(settings.lr_schedule)}), {code(optimizer)}",
        ),
        ("Seed", str(result.seed)),
        ("Precision", code(result.precision)),
        (
            "Hardware",
            f"{code(result.hardware)}, {_number(result.processes, 'process', 'processes')}, {result.seconds:,.0f} s",
        ),
        ("Versions", ", ".join(f"{_plain(name)} {code(version)}" for name, version in result.versions.items())),
        ("SHA-256 of the weights", code((result.ema_sha256 if facts.ema else result.sha256) or "not recorded")),
    ]
    return rows


def _commands(facts: CardFacts) -> str:
    """Return the commands that train the network again, from the settings that the card holds."""
    imports = [word for name in facts.imports if name for word in ("--import", name)]
    source = SOURCES.get(facts.experiment.data.source)
    data = [*imports, *([] if source is not None and source.bundled else ["--data-root", "DATA"])]
    if facts.result.role == "teacher":
        lines = [["dhkd", "train-teacher", SETTINGS, *data, "--out", "runs/teacher"]]
    else:
        lines, cached = [], []
        if facts.cache is not None:
            name = facts.experiment.student.teacher
            asked = ["--views", str(facts.cache.views), *(["--name", name] if name else [])]
            lines.append(
                [
                    "dhkd",
                    "cache-teacher",
                    SETTINGS,
                    "--teacher",
                    "TEACHER",
                    *data,
                    *asked,
                    "--out",
                    "caches/teacher.zarr",
                ]
            )
            cached = ["--cache", "caches/teacher.zarr"]
        assert facts.result.distillation is not None, "of a student"
        if facts.result.distillation.live or facts.result.architecture.startswith(PROJECTED):
            cached += ["--teacher", "TEACHER"]
        lines.append(["dhkd", "train-student", SETTINGS, *cached, *data, "--out", "runs/student"])
    text = (
        f"These train the network again. Save the settings below as {code(SETTINGS)}. `TEACHER` stands for"
        f" the teacher's weights, and `DATA` for the data set's folder."
    )
    return f"{text}\n\n{fenced(chr(10).join(map(shlex.join, lines)), 'bash')}"


def _settings_text(experiment: Experiment) -> str:
    """Return the settings as YAML of a preset, without those that are null if that changes nothing."""
    whole = settings_of(experiment)
    if weights := whole["student"].get("weights"):
        whole["student"]["weights"] = _last_part(weights)
    short = _without_nulls(whole)
    same = parse_experiment(short, "the card's settings") == parse_experiment(whole, "the run's settings")
    return yaml.safe_dump(short if same else whole, sort_keys=False, allow_unicode=True)


# Any: settings are YAML.
def _without_nulls(tree: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in tree.items() if value is not None}
    return {key: _without_nulls(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _number(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path
