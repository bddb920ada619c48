"""Images, labels and the teacher's signals are joined by key, for any process and any share of the batch."""

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.cache.blocks import WITNESS, Block
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.draws.orders import windowed_order
from dhkd.data.draws.schedules import SCHEDULES, independent
from dhkd.data.errors import CacheDamaged, CacheMismatch, ConfigError
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.images.witness import witnesses
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.render import Normalization
from dhkd.data.stream.batches import Batch, Stream, shares
from dhkd.data.stream.check import check_witnesses
from dhkd.data.stream.labels import Labels
from dhkd.data.stream.signals import NoSignals, ResidentSignals, Signals, StreamedSignals, WindowedSignals
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from tests.caches import complete, manifest_of, opened, writer_at
from tests.samples import make_images, pixels_of

CPU = torch.device("cpu")
VIEWS, SAMPLES, CLASSES, BLOCK_ROWS = 4, 37, 5, 10
RECIPE = CropFlip(padding=1, flip=True, seed=3)  # 18 views, of which the cache holds the first 4
SIGNALS = {"logits": ["logits"], "embedding": ["embedding"]}
NO_KEYS = (torch.empty(0, dtype=torch.int64),) * 2  # for signals that have no use for the epoch's keys


def signals_of(view_B: NDArray[np.int64], index_B: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Values that are different for each view, index and position in the row; exact in both dtypes."""
    key_B = (view_B * 64 + index_B).astype(np.float32)
    return {
        "logits": key_B[:, None] + np.arange(CLASSES, dtype=np.float32) / 8,
        "embedding": -key_B[:, None, None] - np.arange(6, dtype=np.float32).reshape(2, 3) / 8,
    }


def write_cache(path: Path, renderer: ResidentRenderer) -> LogitReader:
    """A complete cache of the renderer's pixels, with `signals_of` in place of a teacher."""
    images = renderer.images
    signals = {"logits": ("float32", (CLASSES,)), "embedding": ("float16", (2, 3))}
    manifest = manifest_of(len(images), images.num_classes, VIEWS, BLOCK_ROWS, signals=signals)
    writer = writer_at(path, manifest)
    for block in writer.missing():
        view_B, index_B = keys_of(block)
        pixels = renderer.pixels(torch.from_numpy(view_B), torch.from_numpy(index_B))
        writer.write(block, {**signals_of(view_B, index_B), WITNESS: witnesses(pixels)})
    complete(writer)
    reader = open_cache(path)
    reader.require_present()
    return reader


def keys_of(block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    index_B = np.arange(block.start, block.stop)
    return np.full_like(index_B, block.view), index_B


@cache
def renderer() -> ResidentRenderer:
    return ResidentRenderer(make_images(SAMPLES), RECIPE, CPU)


@cache
def pixels_by_key() -> Tensor:
    """uint8 (V, N, C, H, W), each computed from its own key without the renderer."""
    images, index_N = make_images(SAMPLES), torch.arange(SAMPLES)
    views = [RECIPE.draws(torch.full_like(index_N, view), index_N) for view in range(VIEWS)]
    return torch.stack([pixels_of(RECIPE, images.images_NCHW, draws) for draws in views])


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> LogitReader:
    return write_cache(tmp_path_factory.mktemp("stream") / "c.zarr", renderer())


@pytest.fixture(scope="module")
def resident(reader: LogitReader) -> ResidentSignals:
    return ResidentSignals(reader, SIGNALS, CPU)


def stream_of(
    signals: Signals,
    schedule: str,
    *,
    seed: int = 0,
    batch_size: int = 8,
    window: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Stream:
    images = renderer().images
    return Stream(
        renderer(),
        Normalization(images.mean, images.std),
        signals,
        schedule=schedule,
        seed=seed,
        batch_size=batch_size,
        block_rows=BLOCK_ROWS,
        window=window,
        rank=rank,
        world_size=world_size,
    )


def require_joined(batch: Batch) -> None:
    """Every row of every tensor belongs to the key that the batch names for it."""
    images = make_images(SAMPLES)
    rows = len(batch.index_B)
    assert isinstance(batch.view_B, Int64[Tensor, f"{rows}"])
    assert isinstance(batch.index_B, Int64[Tensor, f"{rows}"])
    assert isinstance(batch.labels.first_B, Int64[Tensor, f"{rows}"])
    assert isinstance(batch.images_BCHW, Float32[Tensor, f"{rows} 3 8 8"])
    assert torch.equal(batch.labels.first_B, images.labels_N[batch.index_B])
    pixels = pixels_by_key()[batch.view_B, batch.index_B]
    assert torch.equal(batch.images_BCHW, Normalization(images.mean, images.std)(pixels))
    expected = signals_of(batch.view_B.numpy(), batch.index_B.numpy())
    assert batch.teacher.keys() == expected.keys()
    assert isinstance(batch.teacher["logits"], Float32[Tensor, f"{rows} {CLASSES}"])
    assert isinstance(batch.teacher["embedding"], Float[Tensor, f"{rows} 2 3"])
    assert batch.teacher["embedding"].dtype == torch.float32, "decoded"
    for name, values in expected.items():
        assert (batch.teacher[name].float().numpy() == values).all(), name


def require_same(first: Batch, second: Batch) -> None:
    for field in ("view_B", "index_B", "images_BCHW"):
        assert torch.equal(getattr(first, field), getattr(second, field)), field
    assert torch.equal(first.labels.first_B, second.labels.first_B)
    assert first.global_size == second.global_size
    assert first.teacher.keys() == second.teacher.keys()
    for name, values in first.teacher.items():
        assert torch.equal(values, second.teacher[name]), name


def union(parts: Sequence[Batch]) -> Batch:
    """The processes' shares of one step, concatenated in the order of their ranks."""
    ((epoch, global_size),) = {(part.epoch, part.global_size) for part in parts}
    fields = ("view_B", "index_B", "images_BCHW")
    joined = {field: torch.cat([getattr(part, field) for part in parts]) for field in fields}
    teacher = {name: torch.cat([part.teacher[name] for part in parts]) for name in parts[0].teacher}
    labels = Labels(torch.cat([part.labels.first_B for part in parts]))
    return Batch(**joined, epoch=epoch, labels=labels, teacher=teacher, global_size=global_size)


# the join


@given(
    schedule=st.sampled_from(["independent", "cycle"]),
    world_size=st.integers(1, 3),
    batch_size=st.integers(6, 50),
    epoch=st.integers(0, 1000),
    seed=st.integers(0, 2**63 - 1),
)
@example(schedule="independent", world_size=1, batch_size=12, epoch=0, seed=0)  # 37 rows: the last one is left alone
@example(schedule="cycle", world_size=3, batch_size=32, epoch=5, seed=1)  # the last 5 rows are too few for 3
@settings(max_examples=40, deadline=None)
def test_every_row_is_joined_by_its_key(
    resident: ResidentSignals, schedule: str, world_size: int, batch_size: int, epoch: int, seed: int
) -> None:
    alone = stream_of(resident, schedule, seed=seed, batch_size=batch_size)
    streams = [
        stream_of(resident, schedule, seed=seed, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    per_rank = [list(stream.epoch(epoch)) for stream in streams]
    assert {len(batches) for batches in per_rank} == {stream.steps_per_epoch for stream in streams}
    seen: list[int] = []
    # One process may have a last step that several had to drop.
    for *parts, whole in zip(*per_rank, alone.epoch(epoch), strict=False):
        for part in parts:
            require_joined(part)
        require_same(union(parts), whole)
        sizes = [len(part.index_B) for part in parts]
        assert sum(sizes) == parts[0].global_size
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2
        seen += whole.index_B.tolist()
    left = SAMPLES % batch_size
    expected = SAMPLES - left if left // world_size < 2 else SAMPLES
    assert len(seen) == len(set(seen)) == expected == streams[0].samples_per_epoch
    view_N, index_N = alone.keys(epoch)
    assert index_N[:expected].tolist() == seen
    assert sorted(index_N.tolist()) == list(range(SAMPLES))
    if schedule == "independent":
        assert len(view_N.unique()) > 1
        assert torch.equal(view_N, independent(seed, epoch, SAMPLES, VIEWS, BLOCK_ROWS)[index_N]), (
            "a sample's, not a place's"
        )
    else:
        assert (view_N == epoch % VIEWS).all()


def test_an_epoch_can_be_repeated_and_others_differ(resident: ResidentSignals) -> None:
    stream = stream_of(resident, "independent")
    orders = []
    for epoch in (0, 1, 2):
        first, second = union(list(stream.epoch(epoch))[:4]), union(list(stream.epoch(epoch))[:4])
        require_same(first, second)
        orders.append(first.index_B.tolist())
    of_another_seed = union(list(stream_of(resident, "independent", seed=1).epoch(0))[:4])
    assert len({tuple(order) for order in [*orders, of_another_seed.index_B.tolist()]}) == 4


def test_without_a_teacher_the_rest_is_the_same(resident: ResidentSignals) -> None:
    for schedule in ("independent", "cycle"):
        free = list(stream_of(NoSignals(VIEWS), schedule).epoch(5))
        for bare, full in zip(free, stream_of(resident, schedule).epoch(5), strict=True):
            assert bare.teacher == {}
            require_same(bare, replace(full, teacher={}))


def test_only_the_named_signals_are_gathered(reader: LogitReader) -> None:
    for kind in (ResidentSignals, StreamedSignals):
        batch = next(stream_of(kind(reader, {"embedding": ["embedding"]}, CPU), "cycle").epoch(1))
        assert batch.teacher.keys() == {"embedding"}


def test_an_unknown_schedule_names_the_nearest(resident: ResidentSignals) -> None:
    with pytest.raises(
        ConfigError, match=r"^unknown schedule 'cycles': did you mean 'cycle'\? valid are block, cycle, indep"
    ):
        stream_of(resident, "cycles")


# streamed signals


@pytest.mark.parametrize("start", [0, 1, 3, 6])
def test_streamed_signals_equal_resident_ones(reader: LogitReader, resident: ResidentSignals, start: int) -> None:
    """In more epochs than there are views, from the first epoch on or, as in a resumed run, from a later one."""
    streamed, in_memory = (stream_of(s, "cycle") for s in (StreamedSignals(reader, SIGNALS, CPU), resident))
    for epoch in range(start, start + 2 * VIEWS + 1):
        for got, expected in zip(streamed.epoch(epoch), in_memory.epoch(epoch), strict=True):
            require_same(got, expected)


@given(epochs=st.lists(st.integers(0, 2 * VIEWS), min_size=1, max_size=8))
@example(epochs=[0, 0, 2, 1, 2, 2])
@settings(max_examples=15, deadline=None)
def test_streamed_signals_can_jump(reader: LogitReader, epochs: list[int]) -> None:
    signals = StreamedSignals(reader, {"logits": ["logits"]}, CPU)
    index_B = torch.arange(SAMPLES)
    for epoch in epochs:
        signals.prepare(epoch, *NO_KEYS)
        view_B = torch.full_like(index_B, epoch % VIEWS)
        logits = signals.gather(view_B, index_B)["logits"].numpy()
        assert (logits == signals_of(view_B.numpy(), index_B.numpy())["logits"]).all()


def test_streamed_signals_read_each_view_once_and_one_ahead(reader: LogitReader) -> None:
    read: list[int] = []
    ahead = threading.Event()

    class Recording(LogitReader):
        def stored(self, block: Block, name: str) -> dict[str, NDArray[np.generic]]:
            read.append(block.view)
            if block.view == 1:
                ahead.set()
            return super().stored(block, name)

    signals = StreamedSignals(Recording(*opened(reader.location)), {"logits": ["logits"]}, CPU)
    signals.prepare(0, *NO_KEYS)
    assert ahead.wait(60), "view 1 is read before anyone asks for it"
    for epoch in range(1, VIEWS):
        signals.prepare(epoch, *NO_KEYS)
        assert read[:: reader.plan.blocks_per_view][: epoch + 1] == list(range(epoch + 1))
    signals.prepare(VIEWS, *NO_KEYS)  # waits for view 0, read again
    signals.prepare(VIEWS + 1, *NO_KEYS)
    assert read[: (VIEWS + 1) * reader.plan.blocks_per_view : reader.plan.blocks_per_view] == [0, 1, 2, 3, 0]


def test_streamed_signals_never_give_another_views_rows(reader: LogitReader) -> None:
    signals = StreamedSignals(reader, SIGNALS, CPU)
    signals.prepare(0, *NO_KEYS)
    with pytest.raises(AssertionError):
        signals.gather(torch.tensor([0, 1]), torch.tensor([0, 0]))


def test_damage_found_while_reading_ahead_ends_the_epoch_that_needs_it(tmp_path: Path) -> None:
    damaged = write_cache(tmp_path / "c.zarr", renderer())
    chunks = sorted((tmp_path / "c.zarr" / "signals" / "logits" / "c" / "1").rglob("*"))
    (chunk := next(chunk for chunk in chunks if chunk.is_file())).write_bytes(b"")
    stream = stream_of(StreamedSignals(damaged, SIGNALS, CPU), "cycle")
    assert len(list(stream.epoch(0))) == stream.steps_per_epoch
    with pytest.raises(CacheDamaged, match=str(chunk.relative_to(tmp_path / "c.zarr"))):
        next(stream.epoch(1))


# windowed signals


@given(
    schedule=st.sampled_from(["cycle", "block"]),
    window=st.integers(1, 60),
    batch_size=st.integers(4, 50),
    epochs=st.lists(st.integers(0, 2 * VIEWS), min_size=1, max_size=3),
    seed=st.integers(0, 2**63 - 1),
)
@example(schedule="block", window=20, batch_size=8, epochs=[0, 1, 2], seed=0)
@example(schedule="cycle", window=10, batch_size=37, epochs=[3, 3], seed=0)  # a batch over all windows
@example(schedule="cycle", window=1, batch_size=4, epochs=[0, 4, 1], seed=1)
@settings(max_examples=25, deadline=None)
def test_windowed_signals_equal_resident_ones(
    reader: LogitReader,
    resident: ResidentSignals,
    schedule: str,
    window: int,
    batch_size: int,
    epochs: list[int],
    seed: int,
) -> None:
    options = {"seed": seed, "batch_size": batch_size, "window": window}
    whole = stream_of(resident, schedule, **options)
    ranks = [
        stream_of(WindowedSignals(reader, SIGNALS, CPU, window), schedule, rank=rank, world_size=2, **options)
        for rank in (0, 1)
    ]
    alone = stream_of(WindowedSignals(reader, SIGNALS, CPU, window), schedule, **options)
    for epoch in epochs:
        expected = list(whole.epoch(epoch))
        for got, same in zip(alone.epoch(epoch), expected, strict=True):
            require_joined(got)
            require_same(got, same)
        # One process may have a last step that two had to drop.
        for first, second, same in zip(*(stream.epoch(epoch) for stream in ranks), expected, strict=False):
            require_same(union([first, second]), same)


def test_a_windowed_epoch_is_in_the_windowed_order(reader: LogitReader) -> None:
    stream = stream_of(WindowedSignals(reader, SIGNALS, CPU, 20), "block", window=20)
    view_N, index_N = stream.keys(3)
    assert torch.equal(index_N, windowed_order(0, 3, SAMPLES, BLOCK_ROWS, 20))
    assert torch.equal(view_N, SCHEDULES["block"](0, 3, SAMPLES, VIEWS, BLOCK_ROWS)[index_N])
    seen = [index for batch in stream.epoch(3) for index in batch.index_B.tolist()]
    assert seen == index_N.tolist()[: stream.samples_per_epoch]


@pytest.fixture(scope="module")
def many_blocks(tmp_path_factory: pytest.TempPathFactory) -> LogitReader:
    """28 blocks of a view, the last one short."""
    return write_cache(
        tmp_path_factory.mktemp("many") / "c.zarr", ResidentRenderer(make_images(271, size=2), RECIPE, CPU)
    )


class Counting(LogitReader):
    """Remembers which blocks were read."""

    def __init__(self, path: str) -> None:
        super().__init__(*opened(path))
        self.blocks_read: list[Block] = []

    def stored(self, block: Block, name: str) -> dict[str, NDArray[np.generic]]:
        self.blocks_read.append(block)
        return super().stored(block, name)


def windowed_epochs(
    reader: LogitReader, schedule: str, window: int, batch_size: int, num_epochs: int
) -> Iterator[tuple[int, WindowedSignals]]:
    """After each batch of each epoch: the epoch, and the signals."""
    signals = WindowedSignals(reader, {"logits": ["logits"]}, CPU, window)
    num_samples = reader.plan.num_samples
    for epoch in range(num_epochs):
        index_N = windowed_order(0, epoch, num_samples, BLOCK_ROWS, window)
        view_N = SCHEDULES[schedule](0, epoch, num_samples, VIEWS, BLOCK_ROWS)[index_N]
        signals.prepare(epoch, view_N, index_N)
        for view_B, index_B in zip(view_N.split(batch_size), index_N.split(batch_size), strict=True):
            signals.gather(view_B, index_B)
            yield epoch, signals


@pytest.mark.parametrize("schedule", ["cycle", "block"])
@pytest.mark.parametrize(("window", "batch_size"), [(50, 7), (50, 64), (10, 10), (271, 50)])
def test_each_block_is_read_once_in_an_epoch(
    many_blocks: LogitReader, schedule: str, window: int, batch_size: int
) -> None:
    counting = Counting(many_blocks.location)
    read_before = 0
    steps = [epoch for epoch, _ in windowed_epochs(counting, schedule, window, batch_size, 3)]
    assert len(steps) == 3 * -(-271 // batch_size)
    for epoch in range(3):
        views = SCHEDULES[schedule](0, epoch, 271, VIEWS, BLOCK_ROWS)[::BLOCK_ROWS]
        needed = {(int(view), number) for number, view in enumerate(views)}
        read = [(block.view, block.number) for block in counting.blocks_read[read_before:]][: len(needed)]
        # Blocks that the end of the last epoch left in memory may be used by the next one.
        assert len(read) == len(set(read))
        read_before += len([key for key in read if key in needed])
    assert read_before == len(counting.blocks_read)
    assert 3 * len(needed) - read_before <= 2 * 2 * (window // BLOCK_ROWS)


@pytest.mark.parametrize(
    ("schedule", "window", "batch_size"),
    [
        ("cycle", 50, 10),
        ("block", 50, 10),
        ("cycle", 50, 7),
        ("cycle", 10, 5),
        ("cycle", 100, 30),
        ("block", 100, 30),
        ("block", 10, 5),
    ],
)
def test_no_more_than_two_windows_are_in_memory(
    many_blocks: LogitReader, schedule: str, window: int, batch_size: int
) -> None:
    held = [signals._blocks.num_held for _, signals in windowed_epochs(many_blocks, schedule, window, batch_size, 4)]
    assert max(held) <= 2 * (window // BLOCK_ROWS)


def test_damage_found_while_reading_ahead_ends_the_batch_that_needs_it(tmp_path: Path) -> None:
    damaged = write_cache(tmp_path / "c.zarr", renderer())
    stream = stream_of(WindowedSignals(damaged, SIGNALS, CPU, 10), "cycle", window=10)
    _, index_N = stream.keys(1)
    last = int(index_N[-1]) // BLOCK_ROWS
    chunks = sorted((tmp_path / "c.zarr" / "signals" / "logits" / "c" / "1" / str(last)).rglob("*"))
    (chunk := next(chunk for chunk in chunks if chunk.is_file())).write_bytes(b"")
    assert len(list(stream.epoch(0))) == stream.steps_per_epoch
    first = int((index_N // BLOCK_ROWS == last).nonzero()[0])
    batches = stream.epoch(1)
    for _ in range(first // 8):  # every batch before it
        next(batches)
    with pytest.raises(CacheDamaged, match=str(chunk.relative_to(tmp_path / "c.zarr"))):
        next(batches)


def test_views_may_differ_within_a_block(reader: LogitReader, resident: ResidentSignals) -> None:
    """It is slow, because nearly every block of every view is needed all the time, but correct."""
    windowed = stream_of(WindowedSignals(reader, SIGNALS, CPU, 10), "independent", window=10)
    for got, expected in zip(windowed.epoch(0), stream_of(resident, "independent", window=10).epoch(0), strict=True):
        require_same(got, expected)


# shares


@given(num_samples=st.integers(1, 400), batch_size=st.integers(2, 300), world_size=st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_shares_cover_the_order_once(num_samples: int, batch_size: int, world_size: int) -> None:
    if batch_size < 2 * world_size:
        with pytest.raises(ConfigError, match="batch_size"):
            shares(num_samples, batch_size, world_size)
        return
    if num_samples < 2 * world_size:
        with pytest.raises(ConfigError, match="too few"):
            shares(num_samples, batch_size, world_size)
        return
    steps = shares(num_samples, batch_size, world_size)
    assert steps[0][0] == 0
    for bounds, following in pairwise(steps):
        assert bounds[-1] == following[0]
    for number, bounds in enumerate(steps):
        rows = np.diff(bounds)
        assert len(rows) == world_size
        assert rows.max() - rows.min() <= 1
        assert rows.min() >= 2
        assert rows.sum() == min(batch_size, num_samples - number * batch_size)
    dropped = num_samples - steps[-1][-1]
    assert dropped < 2 * world_size, "only what can't give each process two rows"


def test_golden_shares() -> None:
    assert shares(10, 4, 1) == [[0, 4], [4, 8], [8, 10]]
    assert shares(10, 7, 3) == [[0, 2, 4, 7]]
    assert shares(13, 7, 3) == [[0, 2, 4, 7], [7, 9, 11, 13]]
    assert shares(9, 4, 1) == [[0, 4], [4, 8]], "one row is no batch"
    assert shares(3, 64, 1) == [[0, 3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 1, 1), "batch_size: expected at least 2 rows for each of 1 processes, got 1"),
        ((100, 5, 3), "batch_size: expected at least 2 rows for each of 3 processes, got 5"),
        ((100, 0, 1), "batch_size: expected at least 2 rows for each of 1 processes, got 0"),
        ((5, 64, 3), "data: 5 samples are too few for 3 processes"),
        ((1, 64, 1), "data: 1 samples are too few for 1 processes"),
    ],
)
def test_impossible_shares_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shares(*arguments)
    assert str(caught.value) == message


# witnesses

EVERYTHING = {"rows_per_block": BLOCK_ROWS, "max_blocks": 10**6}


def test_witnesses_of_a_good_cache_pass(reader: LogitReader) -> None:
    assert check_witnesses(renderer(), reader, seed=0, rows_per_block=10**6, max_blocks=10**6) == VIEWS * SAMPLES
    for seed in range(5):
        assert check_witnesses(renderer(), reader, seed=seed, rows_per_block=3, max_blocks=2) == 6


def mismatched_key(caught: pytest.ExceptionInfo[CacheMismatch]) -> tuple[int, int]:
    """The key in the message, after a check that the line names its two checksums."""
    line = str(caught.value)
    assert "\n" not in line
    match = re.search(r"first at view (\d+), index (\d+) \(crc32 expected ([0-9a-f]{8}), got ([0-9a-f]{8})\)", line)
    assert match is not None, line
    view, index = int(match[1]), int(match[2])
    (expected,) = witnesses(pixels_by_key()[view, index][None])
    assert int(match[3], 16) == expected != int(match[4], 16)
    return view, index


def test_images_in_another_order_are_noticed(reader: LogitReader) -> None:
    images = make_images(SAMPLES)
    backwards = replace(images, images_NCHW=images.images_NCHW.flip(0))
    with pytest.raises(CacheMismatch, match="rows in view") as caught:
        check_witnesses(ResidentRenderer(backwards, RECIPE, CPU), reader, seed=0, rows_per_block=2, max_blocks=1)
    view, index = mismatched_key(caught)
    assert view < VIEWS
    assert index != SAMPLES // 2, "that image is still in its place"


def test_two_swapped_images_are_noticed_and_named(reader: LogitReader) -> None:
    images = make_images(SAMPLES)
    order = torch.arange(SAMPLES)
    order[[12, 30]] = order[[30, 12]]
    swapped: ImageSet = replace(images, images_NCHW=images.images_NCHW[order])
    with pytest.raises(CacheMismatch) as caught:
        check_witnesses(ResidentRenderer(swapped, RECIPE, CPU), reader, seed=0, **EVERYTHING)
    assert mismatched_key(caught)[1] in (12, 30)


@pytest.mark.parametrize("index", [0, 17, SAMPLES - 1])
def test_one_changed_level_is_noticed_and_named(reader: LogitReader, index: int) -> None:
    images = make_images(SAMPLES)
    changed = images.images_NCHW.clone()
    changed[index, 1, 4, 4] ^= 1
    with pytest.raises(CacheMismatch) as caught:
        check_witnesses(
            ResidentRenderer(replace(images, images_NCHW=changed), RECIPE, CPU), reader, seed=0, **EVERYTHING
        )
    assert mismatched_key(caught)[1] == index


@pytest.mark.parametrize(
    "recipe", [replace(RECIPE, seed=4), replace(RECIPE, padding=2), replace(RECIPE, flip=False)], ids=str
)
def test_another_recipe_is_noticed(reader: LogitReader, recipe: CropFlip) -> None:
    with pytest.raises(CacheMismatch) as caught:
        check_witnesses(
            ResidentRenderer(make_images(SAMPLES), recipe, CPU), reader, seed=0, rows_per_block=5, max_blocks=2
        )
    mismatched_key(caught)
