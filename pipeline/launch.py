"""Which processes run a command together, read from the variables that launchers set.

`torchrun` and `accelerate launch` say it with RANK and WORLD_SIZE. MPI and Slurm have variables of their own, but a
single process has these too, for example in the shell of an interactive allocation. So their variables count only if
MASTER_ADDR says where the processes meet; otherwise the process runs alone, and waits for nobody.

This is a separate module, because the command line needs it before anything heavy is imported.
"""

import logging
import os
from collections.abc import MutableMapping
from typing import NamedTuple

from dhkd.data.errors import ConfigError

log = logging.getLogger("dhkd")

START = "start processes that work together with 'torchrun'"


class Launch(NamedTuple):
    """This process's number (from 0), and the number of processes that work together."""

    rank: int
    world_size: int


class _Names(NamedTuple):
    """The variables in which a launcher states the number of processes, and this process's number in all and here."""

    world_size: str
    rank: str
    local_rank: str


_TORCH = _Names("WORLD_SIZE", "RANK", "LOCAL_RANK")
_OTHERS = (
    _Names("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    _Names("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    _Names("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    _Names("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)
# Accelerate would mix these up with torchrun's.
_READ_BY_ACCELERATE = (
    *(name for names in _OTHERS[:3] for name in names),
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)
DEFAULT_PORT = "29500"  # torchrun's


def settle_launch(variables: MutableMapping[str, str] = os.environ) -> Launch:
    """Read how this process was started, and leave in `variables` only what is consistent with that.

    A process that runs alone keeps none of the launchers' variables, and one of several keeps those of `torchrun`. In
    both cases, LOCAL_WORLD_SIZE stays if it is a number. Raises `ConfigError` for variables that contradict each other.
    """
    for name in (*_TORCH, "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        if variables.get(name, "").strip() in ("", "-1"):  # -1 stands for none
            variables.pop(name, None)
    if _TORCH.rank not in variables and _TORCH.world_size not in variables:
        _translate(variables)
    launch = _launch(variables)
    for name in (*_READ_BY_ACCELERATE, *(_TORCH if launch.world_size == 1 else ())):
        variables.pop(name, None)
    if launch.world_size > 1:
        variables.setdefault("LOCAL_RANK", str(launch.rank))
        variables.setdefault("MASTER_PORT", DEFAULT_PORT)
    if not variables.get("LOCAL_WORLD_SIZE", "1").isdecimal():
        variables.pop("LOCAL_WORLD_SIZE")
    return launch


def processes_here() -> int:
    """Return how many processes on this machine work together, as the launcher says; 1 if it doesn't say."""
    number = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(number)) if number.isdecimal() else 1


def is_first_process() -> bool:
    """Return whether this is the first of the processes that work together, the only one that prints."""
    rank = os.environ.get("RANK", "")
    return not rank.isdecimal() or int(rank) == 0


def _launch(variables: MutableMapping[str, str]) -> Launch:
    rank, world_size = _number(variables, "RANK"), _number(variables, "WORLD_SIZE")
    if world_size is None:
        if rank:
            raise ConfigError(f"RANK={rank}: expected WORLD_SIZE beside it, found none; unset RANK, or {START}")
        return Launch(0, 1)
    if world_size < 1:
        raise ConfigError(f"WORLD_SIZE: expected at least 1, got {world_size}; unset it, or {START}")
    if world_size > 1 and rank is None:
        raise ConfigError(f"WORLD_SIZE={world_size}: expected RANK beside it, found none; unset WORLD_SIZE, or {START}")
    if rank is not None and rank >= world_size:
        raise ConfigError(f"RANK: expected 0 to {world_size - 1}, as WORLD_SIZE says, got {rank}; {START}")
    if world_size > 1:
        _require_meeting_place(variables, world_size)
    return Launch(rank or 0, world_size)


def _require_meeting_place(variables: MutableMapping[str, str], world_size: int) -> None:
    if "MASTER_ADDR" not in variables:
        raise ConfigError(
            f"WORLD_SIZE={world_size}: expected MASTER_ADDR, the address at which the processes meet, found none;"
            f" unset WORLD_SIZE to run alone, or {START}"
        )
    port = _number(variables, "MASTER_PORT")
    if port is not None and not 1 <= port <= 65535:
        raise ConfigError(f"MASTER_PORT: expected 1 to 65535, got {port}; {START}")
    local_rank, local_size = _number(variables, "LOCAL_RANK"), _number(variables, "LOCAL_WORLD_SIZE")
    if local_size is not None and not 1 <= local_size <= world_size:
        raise ConfigError(
            f"LOCAL_WORLD_SIZE: expected 1 to {world_size}, as WORLD_SIZE says, got {local_size}; {START}"
        )
    if local_rank is not None and local_rank >= (local_size or world_size):
        raise ConfigError(
            f"LOCAL_RANK: expected 0 to {(local_size or world_size) - 1}, as"
            f" {'LOCAL_WORLD_SIZE' if local_size else 'WORLD_SIZE'} says, got {local_rank}; {START}"
        )


def _number(variables: MutableMapping[str, str], name: str) -> int | None:
    """Return a variable's value, or None if it isn't set. Raises `ConfigError` if it is no number from 0."""
    value = variables.get(name)
    if value is None:
        return None
    if not value.strip().isdecimal():
        raise ConfigError(f"{name}: expected a number, as launchers set it, got {value!r}; unset it, or {START}")
    return int(value)


def _translate(variables: MutableMapping[str, str]) -> None:
    """Set torchrun's variables from those of MPI or Slurm, if they start this process together with others."""
    for names in _OTHERS:
        world_size, rank = variables.get(names.world_size, ""), variables.get(names.rank, "")
        if not (world_size.isdecimal() and rank.isdecimal() and int(world_size) > 1):
            continue
        if "MASTER_ADDR" not in variables:
            log.info(
                "processes: %s=%s is not followed, so this process runs alone; to let processes work together, use"
                " 'torchrun', or set MASTER_ADDR to the address of the first",
                names.world_size,
                world_size,
            )
            return
        variables.update({_TORCH.world_size: world_size, _TORCH.rank: rank})
        if variables.get(names.local_rank, "").isdecimal():
            variables[_TORCH.local_rank] = variables[names.local_rank]
        return
