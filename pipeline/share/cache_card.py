"""The card of a shared cache, a README.md in the form of data-set hubs: what it is, made from what, how to read it."""

import re
from collections.abc import Iterator, Mapping

from dhkd.data.cache.manifest import Manifest, teachers_own
from dhkd.data.cache.reader import LogitReader
from dhkd.data.shown import printable_line
from dhkd.pipeline.share.folder import front_matter
from dhkd.pipeline.share.private import Json

_PRESET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
LONGEST = 300  # characters of a value that the card shows
SIZES = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9, 10**10, 10**11, 10**12)
SIZE_NAMES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
READ_ZARR = """
```python
import numpy, zarr

rows = zarr.open_group("DIR", mode="r")["signals"]["{signal}"][VIEW]  # of one view
```
"""
READ_TAR = """
```python
import webdataset

for block in webdataset.WebDataset("DIR/shards/{signal}/00000/00000.tar", shardshuffle=False).decode():
    keys, rows = block["key.npy"], block["{signal}.npy"]  # (view, index) of each row, and the rows
```
"""


def cache_card(reader: LogitReader, license_id: str | None) -> str:
    """Return the card of a complete cache whose manifest holds nothing private."""
    manifest = reader.manifest
    dataset, teachers = manifest.identity.dataset, _teachers(manifest)
    title = f"Teacher outputs of {', '.join(dict.fromkeys(teachers.values()))} for {_text(dataset.name)}"
    facts = {
        "pretty_name": title,
        "tags": ["dhkd", "knowledge-distillation", "logits", _text(dataset.name)],
        "task_categories": ["image-classification"],
        "size_categories": [_size_category(manifest.num_views * manifest.num_samples)],
        "viewer": False,  # there is no table in it that a hub could show
    }
    parts = [
        front_matter(facts, license_id),
        f"# {title}\n",
        f"What a teacher said about {manifest.num_views} augmented views of each image: a cache of"
        " [dhkd](https://pypi.org/project/dhkd/), from which any number of students can be distilled without the"
        " teacher. The images are not in it; a view is drawn again from the seed, to the same pixels.\n",
        "## What it holds\n",
        _table(_holds(reader)),
        _signals(reader),
        "## What it was made from\n",
        _table(_made_from(manifest)),
        *(_of_teacher(manifest, prefix, name) for prefix, name in teachers.items()),
        "## How to read it\n",
        _how(reader, next(iter(manifest.signals))),
    ]
    return "\n".join(parts)


def _teachers(manifest: Manifest) -> dict[str, str]:
    """Return each teacher's architecture, by the prefix of its signals' names."""
    return {
        name.removesuffix(teachers_own(name)): _text(signal.teacher.get("architecture", "a teacher"))
        for name, signal in manifest.signals.items()
    }


def _holds(reader: LogitReader) -> Iterator[tuple[str, object]]:
    manifest = reader.manifest
    yield "images", f"{manifest.num_samples:,}, of {manifest.num_classes:,} classes"
    yield "views of each image", f"{manifest.num_views:,}"
    yield "store", f"{reader.store}, in blocks of {manifest.block_rows:,} rows"
    yield "size", f"{reader.stored_bytes() / 1e6:,.1f} MB"
    yield "digest", f"`{manifest.digest}`"


def _signals(reader: LogitReader) -> str:
    lines = ["\n| signal | shape of a row | codec | largest error of a value |", "|---|---|---|---|"]
    for name, signal in reader.manifest.signals.items():
        shape = " × ".join(map(str, signal.row))
        lines.append(f"| `{name}` | {shape} | {signal.codec.kind} | {reader.bound(name).error:.2g} |")
    return "\n".join(lines) + "\n"


def _made_from(manifest: Manifest) -> Iterator[tuple[str, object]]:
    dataset = manifest.identity.dataset
    yield "data set", f"{_text(dataset.name)}, split {_text(dataset.split)}"
    yield "its fingerprint", f"`{_text(dataset.fingerprint)}`"
    recipe = dict(manifest.identity.recipe)
    yield "recipe of the views", f"`{_text(recipe.pop('kind', 'unknown'))}`"
    for key, value in recipe.items():
        yield f"its {_text(key)}", f"`{_text(value)}`"


def _of_teacher(manifest: Manifest, prefix: str, architecture: str) -> str:
    name = next(name for name in manifest.signals if name.removesuffix(teachers_own(name)) == prefix)
    signal, recorded = manifest.signals[name], manifest.provenance.get(name)
    provenance: Mapping[str, Json] = recorded if isinstance(recorded, Mapping) else {}
    rows: list[tuple[str, object]] = [("teacher", f"{architecture}{f', called {prefix[:-1]}' if prefix else ''}")]
    rows += [("SHA-256 of its weights", f"`{_text(signal.teacher['sha256'])}`")] if "sha256" in signal.teacher else []
    part = _text(provenance.get("teacher_measured_on", "test"))
    for key, what in (("teacher_test_top1", "top-1"), ("teacher_test_top5", "top-5")):
        if isinstance(provenance.get(key), int | float):
            rows.append((f"its {what} accuracy ({part} images)", f"{provenance[key]:.2f} %"))
    rows += [("computed in", signal.precision)]
    rows += [("on", _text(provenance["hardware"]))] if "hardware" in provenance else []
    versions = provenance.get("versions")
    if isinstance(versions, Mapping):
        rows.append(("with", ", ".join(f"{_text(key)} {_text(value)}" for key, value in versions.items())))
    command = f"\n```\n{_text(provenance['command'])}\n```\n" if provenance.get("command") else ""
    return f"{_table(rows)}{command}"


def _preset(manifest: Manifest, signal: str) -> str:
    """Return the preset that the command of the cache names, or the word PRESET if it names a file or none."""
    recorded = manifest.provenance.get(signal)
    command = str(recorded.get("command", "")) if isinstance(recorded, Mapping) else ""
    name = command.partition("dhkd cache-teacher ")[2].partition(" ")[0]
    return name if _PRESET.fullmatch(name) and not name.endswith((".yaml", ".yml")) else "PRESET"


def _how(reader: LogitReader, signal: str) -> str:
    preset = _preset(reader.manifest, signal)
    explained = "PRESET is the one with which the cache was made" if preset == "PRESET" else f"`{preset}` is a preset"
    without = (READ_TAR if reader.store == "webdataset" else READ_ZARR).format(signal=signal)
    return f"""With dhkd (`pip install dhkd`), from the hub itself; each file is fetched once and kept:

```
dhkd inspect hf://datasets/USER/NAME
dhkd train-student {preset} --cache hf://datasets/USER/NAME --out runs/student
```

Here, {explained}, which says where the images come from, and `hf://datasets/USER/NAME` stands for
`https://huggingface.co/datasets/USER/NAME/resolve/main`. In Python:

```python
import dhkd

rows = dhkd.open_cache("hf://datasets/USER/NAME").read(view=0, indices=range(128), name="{signal}")
```

Without dhkd, from a copy in the folder DIR; only what its `index.json` lists is complete:
{without}
`dhkd verify DIR` checks every byte against the index, as `sha256sum -c SHA256SUMS` does against the checksums.
"""


def _table(rows: Iterator[tuple[str, object]] | list[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def _text(value: Json) -> str:
    """Return a value as text that can't end a table's cell, a code span or a line, whoever wrote it."""
    return printable_line(str(value), LONGEST).replace("|", "¦").replace("`", "'").replace("<", "‹")


def _size_category(rows: int) -> str:
    """Return the hub's name for a number of rows, such as 100K<n<1M."""
    above = next((place for place, size in enumerate(SIZES) if rows < size), len(SIZES))
    if above == 0:
        return f"n<{SIZE_NAMES[0]}"
    if above == len(SIZES):
        return f"n>{SIZE_NAMES[-1]}"
    return f"{SIZE_NAMES[above - 1]}<n<{SIZE_NAMES[above]}"
