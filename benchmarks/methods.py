"""Every method on the demo's data, several seeds each, as one table: `python benchmarks/methods.py --out DIR`.

One teacher, one cache of every view with the signals that methods read from a cache; methods that need whole maps run
the teacher live. Settings are the preset's. Runs that are finished are not repeated, so that an interrupted table goes
on, and another `--methods` adds rows. Not part of `make bench`: it takes an hour and measures accuracy, not speed.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dhkd.configs.load import load_experiment
from dhkd.pipeline import training
from dhkd.pipeline.caching import cache_teacher
from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.results import plain
from dhkd.stages.train.objectives import OBJECTIVES
from rich.console import Console

SIGNALS = "cache.signals=[logits,embedding,cam,attention]"
COMBINED = ("dhkd + reviewkd",)


def trained(out: Path, method: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """The result of one run, made where it isn't there."""
    run = out / f"{method.replace(' ', '')}-{seed}"
    if (run / "result.json").is_file():
        result: dict[str, Any] = json.loads((run / "result.json").read_bytes())
        return result
    settings = [f"objective={method}", f"seed={seed}", "teacher.live=true", *overrides]
    trained_run = training.train_student(
        load_experiment("demo", settings),
        str(out / "teacher.zarr"),
        run,
        data=DataOptions(),
        teacher=out / "teacher",
        cpu=True,
        resume=True,
    )
    return dict(plain(trained_run))


def main() -> None:
    """Train what isn't there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of teacher, cache and runs")
    parser.add_argument("--methods", nargs="+", default=[*OBJECTIVES, *COMBINED])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if not (options.out / "teacher" / "result.json").is_file():
        training.train_teacher(
            load_experiment("demo"), options.out / "teacher", data=DataOptions(), cpu=True, resume=True
        )
    if not (options.out / "teacher.zarr" / "index.json").is_file():
        cache_teacher(
            load_experiment("demo", [SIGNALS]),
            options.out / "teacher",
            str(options.out / "teacher.zarr"),
            data=DataOptions(),
            cpu=True,
        )
    rows = []
    for method in options.methods:
        top1 = []
        for seed in range(options.seeds):
            result = trained(options.out, method, seed, options.overrides)
            top1.append(result["last_top1"])
            Console(stderr=True).print(f"{method}, seed {seed}: {top1[-1]:.2f} %", highlight=False)
        each = ", ".join(f"{value:.2f}" for value in top1)
        spread = f"{stdev(top1):.2f}" if len(top1) > 1 else "–"
        rows.append((method, f"{mean(top1):.2f}", spread, each, ", ".join(result["live"]) or "–"))
    table = plain_table(["method", "top-1 %", "std", "of each seed", "live"], rows, left=1)
    Console(width=1000, highlight=False, markup=False).print(table)


if __name__ == "__main__":
    main()
