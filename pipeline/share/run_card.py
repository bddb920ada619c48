"""The card of a shared run, a README.md in the form of model hubs."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from dhkd.data.runs.config import read_config
from dhkd.data.runs.flat import flat
from dhkd.data.runs.measured import top1_name
from dhkd.data.runs.names import OBJECTIVE_KEY, RESULT, SEED_KEY, SOURCE_KEY
from dhkd.data.shown import printable_line
from dhkd.pipeline.share.folder import front_matter
from dhkd.pipeline.share.private import Json

LONGEST = 300  # characters of a value that the card shows


def run_card(run: Path, license_id: str | None) -> str:
    """Return the card of the finished run in this folder, whose files hold nothing private."""
    settings, result = flat(read_config(run) or {}), json.loads((run / RESULT).read_bytes())
    architecture, source = _text(result.get("architecture")), _text(settings.get(SOURCE_KEY))
    facts = {
        "library_name": "dhkd",
        "pipeline_tag": "image-classification",
        "tags": ["dhkd", "knowledge-distillation", architecture, source],
    }
    role = _text(result.get("role", "student"))
    rows = "\n".join(f"| {name} | {value} |" for name, value in _rows(settings, result))
    return f"""{front_matter(facts, license_id)}
# {architecture} for {source}

A {role} trained with [dhkd](https://pypi.org/project/dhkd/).

| | |
|---|---|
{rows}

The folder is that of the run: `config.yaml` holds every setting, `metrics.jsonl` each epoch, `result.json` the result.

## How to use it

```
dhkd evaluate DIR
dhkd export DIR --out network.safetensors
```

DIR is a copy of this folder, or its address on the hub, `hf://USER/NAME`.
"""


def _rows(settings: Mapping[str, Json], result: Mapping[str, Json]) -> Iterator[tuple[str, object]]:
    yield "parameters", f"{result['parameters']:,}"
    for key, what in (("last_top1", top1_name(result.get("measured"))), ("last_top5", "top-5")):
        yield what, f"{result[key]:.2f} %"
    yield "data set", _text(settings.get(SOURCE_KEY))
    if result.get("role", "student") == "student":
        yield "objective", f"`{_text(settings.get(OBJECTIVE_KEY))}`"
    cache = result.get("cache")
    if isinstance(cache, Mapping):
        yield "teacher", _text(cache.get("teacher"))
        yield "cache", f"{_text(cache.get('views'))} views, digest `{_text(cache.get('digest'))}`"
    yield "epochs", _text(result["epochs"])
    yield "seed", _text(settings.get(SEED_KEY))
    yield "SHA-256 of the weights", f"`{_text(result.get('sha256'))}`"


def _text(value: Json) -> str:
    """Return a value as text that can't end a table's cell, a code span or a line, whoever wrote it."""
    return printable_line(str(value), LONGEST).replace("|", "¦").replace("`", "'").replace("<", "‹")
