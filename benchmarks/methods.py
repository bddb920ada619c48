"""Train every method on the demo's data with several seeds and print a table: `python benchmarks/methods.py --out DIR`.

There is one teacher, and one cache of all views with the signals (teacher outputs) that methods can read from a cache;
methods that need whole feature maps run the teacher live. Settings are the preset's. Finished runs are not repeated, so
an interrupted table can be continued, and other `--methods` add rows. This script is not part of `dhkd bench`, because
it takes an hour and measures accuracy.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

from dhkd.configs.load import load_experiment
from dhkd.pipeline import training
from dhkd.pipeline.caching import cache_teacher
from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.results import TrainedRun
from dhkd.stages.train.objectives import OBJECTIVES
from rich.console import Console

SIGNALS = "cache.signals=[logits,embedding,cam,attention]"
COMBINED = ("dhkd + reviewkd",)


def trained(out: Path, method: str, seed: int, overrides: list[str]) -> TrainedRun:
    """Return the result of this method's run with this seed; train the run first if it isn't finished."""
    run = out / f"{method.replace(' ', '')}-{seed}"
    if (run / "result.json").is_file():
        return TrainedRun.from_json(json.loads((run / "result.json").read_bytes()), str(run / "result.json"))
    settings = [f"objective={method}", f"seed={seed}", "teacher.live=true", *overrides]
    return training.train_student(
        load_experiment("demo", settings),
        str(out / "teacher.zarr"),
        run,
        data=DataOptions(),
        teacher=out / "teacher",
        cpu=True,
        resume=True,
    )


def main() -> None:
    """Train the missing runs and print the table."""
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
        runs = []
        for seed in range(options.seeds):
            runs.append(trained(options.out, method, seed, options.overrides))
            Console(stderr=True).print(f"{method}, seed {seed}: {runs[-1].last_top1:.2f} %", highlight=False)
        top1 = [run.last_top1 for run in runs]
        spread = f"{stdev(top1):.2f}" if len(top1) > 1 else "–"
        live = runs[-1].distillation.live if runs[-1].distillation else []
        seeds = ", ".join(f"{value:.2f}" for value in top1)
        rows.append((method, f"{mean(top1):.2f}", spread, seeds, ", ".join(live) or "–"))
    table = plain_table(["method", "top-1 %", "std", "of each seed", "live"], rows, left=1)
    Console(width=1000, highlight=False, markup=False).print(table)


if __name__ == "__main__":
    main()
