"""The table of `dhkd demo` shows every figure."""

from dhkd.pipeline.cli.tables.demo import demo_table
from dhkd.pipeline.results import CachedTeacher, CacheSummary, Demo, DemoRun, TrainedRun


def run(name: str, architecture: str, last: float, best: float, seconds: float, saved: float | None) -> DemoRun:
    trained = TrainedRun(
        role="student",
        architecture=architecture,
        parameters=1,
        epochs=1,
        last_top1=last,
        best_top1=best,
        last_top5=100.0,
        best_top5=100.0,
        seconds=seconds,
        samples_per_second=1.0,
        seed=0,
        sha256="",
        precision="float32",
        hardware="a CPU",
        processes=1,
        versions={},
    )
    return DemoRun(name=name, teacher_seconds_saved=saved, run=trained)


def demo_of(runs: list[DemoRun], reading: list[str]) -> Demo:
    summary = CacheSummary(
        path="", digest="", teacher=None, teacher_sha256=None, views=1, samples=1, classes=1, signals={}, row_bytes=1
    )
    cache = CachedTeacher(
        cache=summary,
        complete=True,
        blocks_written=1,
        blocks_repaired=0,
        blocks_left_to_others=0,
        rows_written=1,
        seconds=1.0,
        rows_per_second=1.0,
        teacher_top1=61.25,
        processes=1,
        versions={},
    )
    return Demo(runs=runs, cache=cache, picture="accuracy.png", folder="runs/demo", seconds=1.0, reading=reading)


def test_every_figure_of_the_demo_is_in_the_table() -> None:
    runs = [
        run("teacher", "resnet20", 61.25, 62.0, 12.34, None),
        run("ce", "resnet8", 9.5, 10.125, 3.0, 0.0),
        run("dhkd", "resnet8", 100.0, 100.0, 103.0, 4.56),
    ]
    lines = demo_table(demo_of(runs, ["One seed.", "Curves: accuracy.png"])).splitlines()
    assert " ".join(lines[0].split()) == "run network top-1 % best seconds teacher's forwards saved, s"
    assert [line.split() for line in lines[1:4]] == [
        ["teacher", "resnet20", "61.25", "62.00", "12.3", "–"],
        ["ce", "resnet8", "9.50", "10.12", "3.0", "–"],
        ["dhkd", "resnet8", "100.00", "100.00", "103.0", "4.6"],
    ]
    assert lines[4:] == ["One seed.", "Curves: accuracy.png"]
    # The figures of a column end in the same place.
    bests = ("62.00", "10.12", "100.00")
    assert len({line.rindex(best) + len(best) for line, best in zip(lines[1:4], bests, strict=True)}) == 1
