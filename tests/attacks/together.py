"""A script for two processes: `together.py WHAT`. It prints one JSON object for each process, on a line of its own.

`agree` asks for the agreement of every case in `CASES`. `watch` meets until the other process is lost or, for the first
process, until a line comes in on standard input; it says what the watch says.
"""

import json
import logging
import os
import sys
import time
from functools import partial
from typing import Any

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as the command line sets it, before torch is imported


import torch
from dhkd.data.errors import ProcessError
from dhkd.pipeline.environment import processes_for
from dhkd.stages import watch
from dhkd.stages.agreement import require_agreement
from dhkd.stages.processes import Processes

SETTINGS: dict[str, Any] = {"student": {"lr": 0.1, "epochs": 3, "milestones": [1, 2]}, "objective": "kd"}

# By name: what the second process is told differently, and what the error must say.
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "a number": ({"student": {"lr": 0.01}}, ["got student.lr 0.1 in process 0 and 0.01 in process 1;"]),
    "a word": ({"objective": "dkd"}, ["got objective kd in process 0 and dkd in process 1;"]),
    "a list": ({"student": {"milestones": [1]}}, ["student.milestones [1, 2] in process 0 and [1] in process 1"]),
    "nothing instead": ({"objective": None}, ["objective kd in process 0 and null in process 1"]),
    "one more": ({"student": {"clip": 1.0}}, ["student.clip missing in process 0 and 1.0 in process 1"]),
    "a digest": ({"cache": "a" * 64}, ["cache missing in process 0 and aaaaaaaaaaaa… in process 1"]),
    "two": (
        {"student": {"lr": 0.2}, "objective": "ce"},
        ["student.lr 0.1 in process 0 and 0.2 in process 1; objective kd in process 0 and ce in process 1;"],
    ),
    "many": (
        {"student": {"lr": 0.2, "epochs": 9, "milestones": []}, "objective": "ce", "seed": 4},
        ["student.lr", "student.epochs", "student.milestones", "; and 2 more;"],
    ),
}


def told(other: dict[str, Any], rank: int) -> dict[str, Any]:
    if rank == 0:
        return SETTINGS
    return {**SETTINGS, **other, "student": {**SETTINGS["student"], **other.get("student", {})}}


def agree(processes: Processes) -> dict[str, str | None]:
    said: dict[str, str | None] = {}
    for name, (other, _) in CASES.items():
        try:
            require_agreement(processes, partial(told, other, processes.rank))
            said[name] = None
        except ProcessError as error:
            said[name] = str(error)
    return said


def meet(processes: Processes) -> None:
    while True:
        processes.sum(torch.ones(1))
        time.sleep(0.02)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(what: str) -> None:
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
    with processes_for("float32", cpu=True) as processes:
        watch.QUIET_SECONDS = 3.0
        if what == "agree":
            say(json.dumps({"rank": processes.rank, "said": agree(processes)}))
            return
        say("ready")
        meet(processes)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except ProcessError as error:
        sys.exit(str(error))
