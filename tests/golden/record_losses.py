"""Record the named loss terms of each golden case's first steps: `python -m tests.golden.record_losses`.

The script writes losses.json. If a change is meant to change results, run the script again and check the difference
with git. In each of two processes, `record_losses FOLDER` writes that process's terms of the two-process cases there.
"""

import contextlib
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.e2e.command_line import in_processes
from tests.golden.cases import CASES, ENVIRONMENT, PREPARATION, STEPS, Case
from tests.golden.commands import run, stay_together

ROOT = Path(__file__).parents[2]
LOSSES = Path(__file__).parent / "losses.json"
ALONE, TWO = ([case for case in CASES if case.processes == processes] for processes in (1, 2))

Terms = dict[str, list[float]]  # each term's values, one per step


def machine() -> dict[str, str]:
    """Return what the last digits of losses depend on."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


@contextlib.contextmanager
def recorded() -> Iterator[Terms]:
    """Record the terms of which a step takes gradients, in whichever training module it imported the functions."""
    from dhkd.stages.train import gradients, loop  # noqa: F401  # importing the loop imports all modules that train

    terms_of_steps: Terms = {}
    missing = object()

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        def record(terms: Mapping[str, torch.Tensor], *args: Any, **options: Any) -> Any:
            for name, term in terms.items():
                # Nine digits distinguish all float32 values.
                terms_of_steps.setdefault(name, []).append(float(f"{term.item():.9g}"))
            return function(terms, *args, **options)

        return record

    training = [module for name, module in sys.modules.items() if name.startswith("dhkd.stages.train")]
    with contextlib.ExitStack() as patches:
        for name in ("backward", "gradients_by_group"):
            function = getattr(gradients, name, missing)  # a commit to compare with may lack one
            for module in training:
                if module is not gradients and getattr(module, name, None) is function:
                    patches.enter_context(patch.object(module, name, recording(function)))
        yield terms_of_steps


def losses_of(case: Case) -> Terms:
    """Train the case's student in the current folder, and return the terms of the first steps."""
    with recorded() as terms:
        done(case.words)
    return {name: values[:STEPS] for name, values in terms.items()}


def done(words: list[str]) -> None:
    """Run a command that has to succeed."""
    outcome = run(words)
    assert outcome.code == 0, outcome.err


def prepare(folder: Path) -> None:
    """Train the teachers and write the caches."""
    torch.set_num_threads(1)
    with contextlib.chdir(folder):
        for words in PREPARATION.values():
            done(words)
            gc.freeze()  # garbage collection after each command then skips all imported objects


def losses_of_two_processes(folder: Path) -> dict[str, Terms]:
    """Return each process's terms of every two-process case, with the teachers and caches of `folder`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
    outcome = in_processes(2, folder, script=Path(__file__), environment=environment)
    assert outcome.code == 0, outcome.err
    first, second = (json.loads((folder / f"process-{rank}.json").read_text()) for rank in (0, 1))
    return {
        name: {f"{term} of process {rank}": values for rank, terms in enumerate(both) for term, values in terms.items()}
        for name, both in {name: (first[name], second[name]) for name in first}.items()
    }


def _as_one_process(folder: Path) -> None:
    stay_together()
    torch.set_num_threads(1)
    with contextlib.chdir(folder):
        losses = {case.name: losses_of(case) for case in TWO}
        Path(f"process-{os.environ['RANK']}.json").write_text(json.dumps(losses))


def _write(losses: Mapping[str, Terms]) -> None:
    """Write the losses as JSON, with a line for each term."""
    cases = []
    for name, terms in losses.items():
        lines = ",\n".join(f"    {json.dumps(term)}: {json.dumps(values)}" for term, values in terms.items())
        cases.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    joined = ",\n".join(cases)
    LOSSES.write_text(f'{{"machine": {json.dumps(machine())}, "losses": {{\n{joined}\n}}}}\n')


def _record() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        with contextlib.chdir(folder):
            losses = {case.name: losses_of(case) for case in ALONE}
        _write(losses | losses_of_two_processes(folder))


if __name__ == "__main__":
    _as_one_process(Path(sys.argv[1])) if len(sys.argv) > 1 else _record()
