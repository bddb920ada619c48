"""Run `python -m dhkd.benchmarks.scale`: simulate stage one on a cluster, and say what becomes its limit.

python -m dhkd.benchmarks.scale cluster   units that an engine gives to workers that die, come back and join late
python -m dhkd.benchmarks.scale commands  commands that share a bucket and don't know of each other
python -m dhkd.benchmarks.scale index     what the real code costs for the index of so many blocks
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace

import torch
from dhkd.benchmarks.scale.cluster import simulate, units_to_compute
from dhkd.benchmarks.scale.commands import Commands
from dhkd.benchmarks.scale.costs import index_costs, schedule_seconds
from dhkd.benchmarks.scale.settings import Setting, Size, Workers
from dhkd.benchmarks.scale.store import LISTED_AT_A_TIME, Limits
from dhkd.benchmarks.scale.waiting import seconds_for_a_message
from dhkd.pipeline.environment import hardware
from rich.console import Console

console = Console()
PARTS = {"size": Size, "workers": Workers, "store": Limits}


def main() -> None:
    """Simulate as the command line says, and print one line for each figure, or JSON."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m dhkd.benchmarks.scale", description=summary)
    parser.add_argument("what", choices=tuple(KINDS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coordinator-s", type=float, default=Setting().coordinator_s)
    for part in PARTS.values():
        for field in fields(part):
            kind = type(field.default)
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = vars(parser.parse_args())
    parts = {name: part(**{field.name: options[field.name] for field in fields(part)}) for name, part in PARTS.items()}
    setting = replace(Setting(**parts), seed=options["seed"], coordinator_s=options["coordinator_s"])
    began = time.process_time()
    figures = KINDS[options["what"]](setting)
    figures = {**figures, "processor seconds of the simulation": round(time.process_time() - began, 1)}
    if options["json"]:
        result = {"setting": asdict(setting), "figures": figures, "hardware": hardware(torch.device("cpu"))}
        console.print_json(json.dumps(result))
        return
    for name, figure in figures.items():
        text = f"{figure:,}" if isinstance(figure, int) else f"{figure:,.4g}" if isinstance(figure, float) else figure
        console.print(f"{name:55} {text}", highlight=False)


def cluster(setting: Setting) -> Mapping[str, object]:
    """Simulate an engine's workers; fail if a block is lost, or computed more often than lost work explains."""
    outcome, bucket, manifest = simulate(setting)
    assert not outcome.lost, f"{outcome.lost} blocks are lost"
    assert not outcome.unexplained, f"{outcome.unexplained} blocks were computed without a reason"
    workers, store = setting.workers, setting.store
    units = units_to_compute(setting, manifest)
    per_unit = schedule_seconds(units, workers.number)
    read = bucket.bytes_sent
    return {
        "blocks": outcome.blocks,
        "units": outcome.units,
        "seconds": outcome.seconds,
        "seconds without failures, start and end": outcome.ideal_seconds,
        "seconds from the first idle worker to the end": outcome.tail_seconds,
        "workers that died": outcome.deaths,
        "units lost with a worker": outcome.losses,
        "units given up": outcome.given_up,
        "blocks computed again": outcome.recomputed,
        "blocks lost": outcome.lost,
        "computed without a reason": outcome.unexplained,
        "share of the coordinator's time": outcome.coordinator_busy / outcome.seconds,
        "processor seconds of the schedule for a unit": per_unit,
        **{f"{kind} requests": number for kind, number in bucket.requests.items()},
        "GB written": bucket.bytes_sent / 1e9,
        **{f"share of the time: {name}": busy / outcome.seconds for name, busy in bucket.busy_seconds.items()},
        "seconds to read all back: one machine": read / store.worker_bytes_per_s,
        "seconds to read all back: all workers": read
        / min(store.bytes_per_s, workers.number * store.worker_bytes_per_s),
        "seconds to list: one request after the other": -(-len(bucket.objects) // LISTED_AT_A_TIME) * store.latency_s,
    }


def commands(setting: Setting) -> Mapping[str, object]:
    """Simulate commands that don't know of each other."""
    simulation = Commands(setting)
    outcome = simulation.run()
    return {**asdict(outcome), **{f"{kind} requests": number for kind, number in simulation.bucket.requests.items()}}


def index(setting: Setting) -> Mapping[str, object]:
    """Measure the real code on the blocks of the setting."""
    figures: dict[str, object] = {}
    for cost in index_costs(setting.size.manifest()):
        figures[f"{cost.step}: processor seconds"] = cost.seconds
        figures[f"{cost.step}: memory, GB"] = f"{cost.memory_gb:.2f} {cost.detail}".strip()
    return figures


def messages(setting: Setting) -> Mapping[str, object]:
    """Measure Ray's share of what a unit costs the command."""
    number = setting.workers.number
    return {f"processor seconds for a message among {number:,} workers": seconds_for_a_message(number)}


KINDS = {"cluster": cluster, "commands": commands, "index": index, "ray": messages}

if __name__ == "__main__":
    main()
