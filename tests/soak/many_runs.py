"""Write a folder of many runs without training them: python -P tests/soak/many_runs.py FOLDER [--runs 500]

The files are written by the program's own writers, and are as long as those of real runs. Reports and the server are
measured on them.
"""

import argparse
import math
import random
from pathlib import Path

from dhkd.configs.load import load_experiment
from dhkd.data.runs.folder import RunFolder
from dhkd.pipeline.claims import settings_of

OBJECTIVES = ("ce", "kd", "binary-kl", "binary-kl-norm", "dhkd")
DIGEST = "d1" * 32
VERSIONS = {"python": "3.11.14", "torch": "2.11.0", "torchvision": "0.26.0", "numpy": "2.3.5", "dhkd": "0.1.0"}
CACHE = {"location": "caches/c.zarr", "digest": DIGEST, "views": 162, "samples": 50_000, "row_bytes": 200}

TOP5_ABOVE = 20  # points between the two accuracies of every epoch


def write_runs(folder: Path, runs: int = 500, epochs: int = 240, seeds: int = 5) -> None:
    """Write finished runs of several objectives, learning rates and seeds below `folder`."""
    for number in range(runs):
        kind, seed = divmod(number, seeds)
        rate = 0.05 * 1.1 ** (kind // len(OBJECTIVES))
        write_run(folder, OBJECTIVES[kind % len(OBJECTIVES)], f"{rate:.4f}", seed, epochs)


def write_run(folder: Path, objective: str, rate: str, seed: int, epochs: int) -> None:
    """Write one finished run."""
    overrides = [f"objective={objective}", f"student.lr={rate}", f"seed={seed}", f"student.epochs={epochs}"]
    experiment = settings_of(load_experiment("cifar100/resnet56-resnet20", overrides))
    facts = {"command": "train-student", "cache": DIGEST, "views": 162, "precision": "float32"}
    run = RunFolder(
        folder / f"objective={objective},lr={rate},seed={seed}", {"run": facts, "experiment": experiment}, resume=False
    )
    run.begin()
    top1 = [add_epoch(run, epoch, epochs, f"{objective} {rate} {seed}") for epoch in range(1, epochs + 1)]
    figures = {"last_top1": top1[-1], "best_top1": max(top1), "epochs": epochs}
    figures |= {name.replace("1", "5"): value + TOP5_ABOVE for name, value in figures.items() if name != "epochs"}
    of_machine = {"hardware": "a CPU of two cores", "processes": 1, "versions": VERSIONS, "precision": "float32"}
    run.write_result(
        {"role": "student", "architecture": "resnet20", "parameters": 278_324, **figures, "seconds": 12.5 * epochs}
        | {"samples_per_second": 4000.0, "seed": seed, "objective": objective, "cache": CACHE, "live": []}
        | {"together": 1, "sha256": "9e" * 32, **of_machine}
    )


def add_epoch(run: RunFolder, epoch: int, epochs: int, name: str) -> float:
    """Append an epoch's metrics, and return its accuracy."""
    noise = random.Random(f"{name} {epoch}").gauss
    progress = epoch / epochs
    top1 = 70 * (1 - math.exp(-4 * progress)) + noise(0, 0.4)
    losses = {"loss": 4 * math.exp(-3 * progress) + abs(noise(0, 0.05)), "ce": 2 * math.exp(-2 * progress) + 0.01}
    terms = {"binary_kl": 1.5 * math.exp(-progress) + noise(0, 0.01), "conflict": noise(0.5, 0.05)}
    rates = {"train_top1": top1 + noise(2, 0.3), "lr": 0.05 * (1 - progress), "samples_per_second": noise(4000, 50)}
    run.append_metrics(
        {"epoch": epoch, **losses, **terms, **rates, "top1": top1, "top5": top1 + TOP5_ABOVE, "seconds": 12.5 * epoch}
    )
    return top1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    write_runs(chosen.folder, chosen.runs, chosen.epochs, chosen.seeds)
