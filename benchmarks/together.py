"""Several students side by side in one process, compared with one after the other, and the greatest possible gain."""

import multiprocessing
import time
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.nn.functional as F
from dhkd.benchmarks.figure import Figure, interleaved, middle
from dhkd.benchmarks.setup import Setup
from dhkd.benchmarks.steps import RECIPE, STUDENT, Loop, batches_of, random_images, stream_of, train_side_by_side
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.stream.signals import NoSignals
from dhkd.stages.processes import Processes
from dhkd.stages.train.side_by_side import SideBySide
from numpy.typing import NDArray
from torch import Tensor

STUDENTS, STEPS = 4, 3  # number of students, and each student's steps in a repetition


def together(setup: Setup) -> list[Figure]:
    """Measure the rate of four students on shared batches, relative to training one after the other on all threads.

    The greatest possible gain is the rate of one process per thread, each with a separate student, relative to one
    student on all threads. This gain is the time lost when a network's layers are divided among threads.
    """
    rounds, batch_size = setup.sizes.together_rounds, setup.batch_size
    stream = stream_of(setup.renderer(), NoSignals(RECIPE.num_crops), batch_size)
    loops = [Loop("ce", stream, setup.processes, alone=False) for _ in range(STUDENTS)]
    batches = batches_of(stream)
    threads = torch.get_num_threads()

    def one_after_the_other() -> None:
        for loop in loops:
            for _ in range(STEPS):
                loop.train_on(*next(batches))

    with SideBySide(STUDENTS, setup.processes.device) as side_by_side:

        def all_at_once() -> None:
            for _ in range(STEPS):
                train_side_by_side(side_by_side, loops, *next(batches))

        seconds = interleaved({"one": one_after_the_other, "all": all_at_once}, rounds, warm_up=1)
    detail = f"{STUDENTS} × {STUDENT}, batch {batch_size}, {threads} threads"
    ratio = seconds["one"] / seconds["all"]
    figures = [middle("together / one after the other", ratio, "×", detail, at_least=1.3)]
    if threads > 1:
        ceiling = _independent(rounds, threads, batch_size)
        detail = f"{threads} processes of one thread / one process of {threads}, {STUDENT}, batch {batch_size}"
        figures.append(middle("independent processes / one after the other", ceiling, "×", detail))
    return [*figures, *(_stacked(rounds, batch_size, channels, side) for channels, side in ((16, 32), (64, 8)))]


def _stacked(rounds: int, batch_size: int, channels: int, side: int) -> Figure:
    """Compare one convolution for each student, forward and backward, with one grouped convolution for all students."""

    def tensors(students: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(students * channels, channels, 3, 3, requires_grad=True)
        images = torch.randn(batch_size, students * channels, side, side).to(memory_format=torch.channels_last)
        return images.requires_grad_(), weight

    single, stacked = [tensors(1) for _ in range(STUDENTS)], tensors(STUDENTS)

    def one_after_the_other() -> None:
        for images, weight in single:
            torch.autograd.backward(F.conv2d(images, weight, padding=1).sum())

    def as_groups() -> None:
        torch.autograd.backward(F.conv2d(*stacked, padding=1, groups=STUDENTS).sum())

    seconds = interleaved({"one": one_after_the_other, "groups": as_groups}, rounds)
    detail = (
        f"{STUDENTS} convolutions 3 × 3 of {channels} channels, {side} × {side}, batch {batch_size}, with gradients"
    )
    return middle("one after the other / stacked in groups", seconds["one"] / seconds["groups"], "×", detail)


def _independent(rounds: int, threads: int, batch_size: int) -> NDArray[np.float64]:
    """Measure the speed-up of `threads` processes of one thread each over one process of `threads` threads.

    The single process takes as many steps as the other processes together.
    """
    spawn = multiprocessing.get_context("spawn")
    children = []
    for threads_of_child in (*[1] * threads, threads):
        connection, childs_end = spawn.Pipe()
        child = spawn.Process(target=_train_on_command, args=(childs_end, threads_of_child, batch_size), daemon=True)
        child.start()
        children.append((child, connection))
    *singles, whole = [connection for _, connection in children]

    def run(connections: list[Connection], steps: int) -> None:
        for connection in connections:
            connection.send(steps)
        for connection in connections:
            connection.recv()

    actions = {"singles": partial(run, singles, STEPS), "whole": partial(run, [whole], STEPS * threads)}
    seconds = interleaved(actions, rounds, warm_up=1)
    for child, connection in children:
        connection.send(0)
        child.join()
    return seconds["whole"] / seconds["singles"]


def _train_on_command(parent: Connection, threads: int, batch_size: int) -> None:
    """Receive a number of steps, take them and answer, until the number is 0."""
    torch.set_num_threads(threads)
    processes = Processes("float32", cpu=True)
    renderer = ResidentRenderer(random_images(500, 100), RECIPE, processes.device)
    loop = Loop("ce", stream_of(renderer, NoSignals(RECIPE.num_crops), batch_size), processes)
    while steps := parent.recv():
        for _ in range(steps):
            loop.step()
        parent.send(time.time())
