"""The card of a shared cache, a README.md in the form of data-set hubs: what it is, made from what, how to read it."""

import re
from collections.abc import Iterable, Iterator, Mapping

from dhkd.data.cache.manifest import Manifest, teachers_own
from dhkd.data.cache.reader import LogitReader
from dhkd.data.shown import printable_line
from dhkd.pipeline.markdown import LONGEST_NAME, code, fenced, front_matter, table
from dhkd.pipeline.share.private import Json

_PRESET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
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


def cache_card(reader: LogitReader) -> str:
    """Return the card of a complete cache whose manifest holds nothing private."""
    manifest = reader.manifest
    dataset, teachers = manifest.identity.dataset.name, _teachers(manifest)
    title = f"Teacher outputs of {', '.join(dict.fromkeys(teachers.values()))} for {dataset}"
    facts = {
        "pretty_name": printable_line(title, LONGEST_NAME),
        "tags": ["dhkd", "knowledge-distillation", "logits"],
        "task_categories": ["image-classification"],
        "size_categories": [_size_category(manifest.num_views * manifest.num_samples)],
        "viewer": False,  # there is no table in it that a hub could show
    }
    parts = [
        front_matter(facts),
        f"# Teacher outputs of {', '.join(map(code, dict.fromkeys(teachers.values())))} for {code(dataset)}",
        f"What a teacher said about {manifest.num_views:,} augmented views of each image: a cache of"
        " dhkd (`pip install dhkd`), from which any number of students can be distilled"
        " without the teacher. The images are not in it; a view is drawn again from the seed, to the same pixels.",
        "## What it holds",
        _facts(_holds(reader)),
        _signals(reader),
        "## What it was made from",
        _facts(_made_from(manifest)),
        *(part for prefix, name in teachers.items() for part in _of_teacher(manifest, prefix, name)),
        "## How to read it",
        _how(reader, next(iter(manifest.signals))),
    ]
    return "\n\n".join(parts)


def _teachers(manifest: Manifest) -> dict[str, str]:
    """Return each teacher's architecture, by the prefix of its signals' names."""
    return {
        name.removesuffix(teachers_own(name)): str(signal.teacher.get("architecture", "a teacher"))
        for name, signal in manifest.signals.items()
    }


def _holds(reader: LogitReader) -> Iterator[tuple[str, str]]:
    manifest = reader.manifest
    yield "images", f"{manifest.num_samples:,}, of {manifest.num_classes:,} classes"
    yield "views of each image", f"{manifest.num_views:,}"
    yield "store", f"{reader.store}, in blocks of {manifest.block_rows:,} rows"
    yield "size", f"{reader.stored_bytes() / 1e6:,.1f} MB"
    yield "digest", code(manifest.digest)


def _signals(reader: LogitReader) -> str:
    rows = [
        [code(name), " × ".join(map(str, signal.row)), signal.codec.kind, f"{reader.bound(name).error:.2g}"]
        for name, signal in reader.manifest.signals.items()
    ]
    return table(["signal", "shape of a row", "codec", "largest error of a value"], rows)


def _made_from(manifest: Manifest) -> Iterator[tuple[str, str]]:
    dataset, recipe = manifest.identity.dataset, dict(manifest.identity.recipe)
    yield "data set", f"{code(dataset.name)}, split {code(dataset.split)}"
    yield "its fingerprint", code(dataset.fingerprint)
    yield "recipe of the views", code(recipe.pop("kind", "unknown"))
    yield "its settings", ", ".join(f"{code(key)} {code(value)}" for key, value in recipe.items())


def _of_teacher(manifest: Manifest, prefix: str, architecture: str) -> list[str]:
    """Return what is known about a teacher as a table, then the command that cached its outputs."""
    name = next(name for name in manifest.signals if name.removesuffix(teachers_own(name)) == prefix)
    signal, provenance = manifest.signals[name], _recorded(manifest, name)
    rows = [("teacher", code(architecture) + (f", called {code(prefix[:-1])}" if prefix else ""))]
    if "sha256" in signal.teacher:
        rows.append(("SHA-256 of its weights", code(signal.teacher["sha256"])))
    part = code(provenance.get("teacher_measured_on", "test"))
    for key, what in (("teacher_test_top1", "top-1"), ("teacher_test_top5", "top-5")):
        if isinstance(provenance.get(key), int | float):
            rows.append((f"its {what} accuracy on {part} images", f"{provenance[key]:.2f} %"))
    rows.append(("computed in", signal.precision))
    if "hardware" in provenance:
        rows.append(("on", code(provenance["hardware"])))
    if isinstance(versions := provenance.get("versions"), Mapping):
        rows.append(("with", ", ".join(f"{code(key)} {code(value)}" for key, value in versions.items())))
    command = printable_line(str(provenance.get("command", "")))
    return [_facts(rows), *([fenced(command)] if command else [])]


def _recorded(manifest: Manifest, name: str) -> Mapping[str, Json]:
    """Return a signal's provenance, or nothing if it isn't the JSON object that dhkd records."""
    recorded = manifest.provenance.get(name)
    return recorded if isinstance(recorded, Mapping) else {}


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return table(["", ""], [list(row) for row in rows])


def _preset(manifest: Manifest, signal: str) -> str:
    """Return the preset that the command of the cache names, or the word PRESET if it names a file or none."""
    command = str(_recorded(manifest, signal).get("command", ""))
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


def _size_category(rows: int) -> str:
    """Return the hub's name for a number of rows, such as 100K<n<1M."""
    above = next((place for place, size in enumerate(SIZES) if rows < size), len(SIZES))
    if above == 0:
        return f"n<{SIZE_NAMES[0]}"
    if above == len(SIZES):
        return f"n>{SIZE_NAMES[-1]}"
    return f"{SIZE_NAMES[above - 1]}<n<{SIZE_NAMES[above]}"
