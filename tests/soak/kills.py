"""Kill stage one at random, and resume it until its caches are finished: `python tests/soak/kills.py --kills 200`.

One process imports torch, and every attempt is a fork of it, so that it begins to write within milliseconds and most
kills come while it writes. An attempt notes in a file beside the cache what it computes; this shows whether finished
blocks were computed again.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.missing import missing_blocks
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.errors import CacheIncomplete
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.render import Keys, Normalization
from dhkd.data.storage.places import storage_of
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from torch import Tensor, nn

STORES = ("zarr", "webdataset")
SAMPLES, CLASSES, VIEWS, BLOCK_ROWS, BATCH = 60, 5, 3, 8, 4

Numbered = tuple[int, int]  # a block's view and number


def manifest() -> Manifest:
    """The manifest of every cache here."""
    logits = {"teacher": {"sha256": "0" * 64}, "precision": "float32", "codec": {"kind": "float16"}, "row": [CLASSES]}
    dataset = {"name": "random", "split": "train", "num_samples": SAMPLES, "num_classes": CLASSES, "fingerprint": "f"}
    recipe = {"kind": "crop-flip", "version": 1, "padding": 1, "flip": True, "seed": 0}
    identity = {"dataset": dataset, "recipe": recipe, "signals": {"logits": logits}}
    sizes = {"num_views": VIEWS, "block_rows": BLOCK_ROWS}
    return Manifest.from_json({"format": 2, "identity": identity, "provenance": {"logits": {}}, **sizes}, "soak")


class Noting(ResidentRenderer):
    """Notes every batch that it renders: what was computed, whether or not it was stored.

    After its first batch it waits until those who write the notes `others` have begun too.
    """

    def __init__(
        self, images: ImageSet, recipe: CropFlip, device: torch.device, notes: Path, others: Sequence[Path]
    ) -> None:
        super().__init__(images, recipe, device)
        self._notes, self._others = notes, others

    def render(self, batches: Iterable[Keys]) -> Iterator[Tensor]:
        with self._notes.open("ab", buffering=0) as notes:
            for view_B, index_B in batches:
                notes.write(f"{int(view_B[0])} {int(index_B[0]) // BLOCK_ROWS}\n".encode())
                self._meet_others()
                yield self.pixels(view_B, index_B)

    def _meet_others(self) -> None:
        """Wait for the notes of others; a run that never begins must not make this one wait for ever."""
        for _ in range(60_000):
            if all(notes.exists() and notes.stat().st_size for notes in self._others):
                return
            time.sleep(0.001)
        raise TimeoutError("the other run has not begun within a minute")


def stage_one(place: str, store: str, notes: Path, others: Sequence[Path] = ()) -> None:
    """The whole stage: begin, compute what is missing, check, finish."""
    torch.set_num_threads(1)  # a fork has no other threads than this one
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))
    pixels = torch.randint(0, 256, (SAMPLES, 3, 8, 8), dtype=torch.uint8)
    colours = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    images = ImageSet("random", "train", pixels, torch.arange(SAMPLES) % CLASSES, CLASSES, *colours)
    processes = Processes("float32", cpu=True)
    renderer = Noting(images, CropFlip(padding=1, flip=True, seed=0), processes.device, notes, others)
    teacher = Teacher(network, Normalization(*colours), processes)
    storage = storage_of(place)
    writer = LogitWriter(storage, store, begin(storage, store, manifest()), ["logits"])
    write_blocks(teacher, renderer, writer, batch_size=BATCH, processes=processes)


def started(place: str, store: str, notes: Path, others: Sequence[Path] = ()) -> int:
    """Start stage one in a new process; the process's id. No block is written before `others` have notes too."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        stage_one(place, store, notes, others)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(process: int) -> int:
    """The exit code of a process when it has ended; negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def noted(notes: Path) -> list[Numbered]:
    """The blocks of which something was computed; a block that was begun again comes again."""
    rows = [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []
    batches = [(int(view), int(number)) for view, number in rows]
    return [block for block, before in zip(batches, [None, *batches], strict=False) if block != before]


def finished(place: str, store: str) -> set[Numbered]:
    """The blocks of which every object exists."""
    wanted = manifest()
    missing = missing_blocks(storage_of(place), store, wanted, wanted.names)
    return {(b.view, b.number) for b in wanted.plan.blocks()} - {(b.view, b.number) for b in missing}


def contents(place: str) -> dict[str, bytes]:
    """All objects except what kills leave behind."""
    storage = storage_of(place)
    sizes = storage.sizes()
    assert sizes is not None
    return {key: storage.get(key) for key in sorted(sizes) if not key.endswith(".partial")}


def values(reader: LogitReader) -> np.ndarray:
    """Every value of the cache."""
    return np.stack([reader.read_view(view) for view in range(VIEWS)])


def killed_until_finished(
    folder: Path, store: str, chance: random.Random, expected: Path, *, span: float, at_most: int
) -> Counter[str]:
    """Write one cache, killed up to `at_most` times, each within `span` seconds of a start; counts of what happened.

    Raises `AssertionError` if a kill left something wrong behind.
    """
    counted: Counter[str] = Counter()
    cache, everything = folder / "cache", len(manifest().plan.blocks())
    done: set[Numbered] = set()
    for attempt in range(1000):
        notes = folder / f"notes {attempt}"
        process = started(str(cache), store, notes)
        if counted["kills"] < at_most:
            time.sleep(chance.uniform(0, span))
            os.kill(process, signal.SIGKILL)  # not waited for yet, so the id is still its own even if it has ended
        code = ended(process)
        assert code in (0, -signal.SIGKILL), f"{store}, attempt {attempt}: stage one ended with {code}"
        computed = set(noted(notes))
        again = computed & done
        assert not again, f"{store}, attempt {attempt}: finished blocks were computed again: {sorted(again)}"
        was_done, done = done, finished(str(cache), store)
        assert was_done <= done, f"{store}, attempt {attempt}: finished blocks are gone: {sorted(was_done - done)}"
        counted["blocks computed"] += len(computed)
        if code:
            counted["kills"] += 1
            before, after = not computed and len(done) < everything, len(done) == everything
            counted["before a block" if before else "after the last block" if after else "among blocks"] += 1
        try:
            reader = open_cache(cache)
        except CacheIncomplete:
            assert code, f"{store}, attempt {attempt}: not finished, although stage one ended normally"
            continue
        assert (values(reader) == values(open_cache(expected))).all()
        assert contents(str(cache)) == contents(str(expected)), f"{store}: not the bytes of an uninterrupted cache"
        counted[f"caches in {store}"] += 1
        return counted
    raise AssertionError(f"{store}: not finished after 1000 attempts")


def main() -> None:
    """Kill as often as asked, writing caches in each store in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, counted, begun = random.Random(options.seed), Counter[str](), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        spans = {}
        for store in STORES:
            took = []
            for _ in range(3):
                shutil.rmtree(f"{temporary}/{store}", ignore_errors=True)
                start = time.perf_counter()
                assert ended(started(f"{temporary}/{store}", store, Path(temporary) / "notes")) == 0
                took.append(time.perf_counter() - start)
            spans[store] = min(took)
        for number, store in enumerate(cycle(STORES)):
            if counted["kills"] >= options.kills:
                break
            folder = Path(temporary) / str(number)
            folder.mkdir()
            # Less time than a whole cache takes, so that each is killed several times, but enough to make progress.
            expected, left = Path(temporary) / store, options.kills - counted["kills"]
            counted += killed_until_finished(folder, store, chance, expected, span=0.7 * spans[store], at_most=left)
            shutil.rmtree(folder)
    caches = sum(number for name, number in counted.items() if name.startswith("caches"))
    blocks = caches * len(manifest().plan.blocks())
    write = sys.stdout.write
    write(
        f"{counted['kills']} kills: {counted['before a block']} before a block was begun, {counted['among blocks']}"
        f" among blocks, {counted['after the last block']} while all was checked and the index was written\n"
    )
    write(f"{caches} caches finished, each bit-identical to the uninterrupted one:")
    write(" " + ", ".join(f"{store} {counted['caches in ' + store]}" for store in STORES) + "\n")
    write(
        f"{counted['blocks computed']} blocks begun for {blocks}: {counted['blocks computed'] - blocks} lost to kills;"
        f" 0 finished ones computed again\n"
    )
    write(f"{time.perf_counter() - begun:.0f} s; an uninterrupted cache takes {max(spans.values()) * 1000:.0f} ms\n")


if __name__ == "__main__":
    main()
