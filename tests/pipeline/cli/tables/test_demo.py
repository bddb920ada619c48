"""The table of `dhkd demo` shows every figure."""

from dhkd.pipeline.cli.tables.demo import demo_table


def test_every_figure_of_the_demo_is_in_the_table() -> None:
    runs = [
        {"name": "teacher", "architecture": "resnet20", "last_top1": 61.25, "best_top1": 62.0, "seconds": 12.34,
         "teacher_seconds_saved": None},
        {"name": "ce", "architecture": "resnet8", "last_top1": 9.5, "best_top1": 10.125, "seconds": 3.0,
         "teacher_seconds_saved": 0.0},
        {"name": "dhkd", "architecture": "resnet8", "last_top1": 100.0, "best_top1": 100.0, "seconds": 103.0,
         "teacher_seconds_saved": 4.56},
    ]  # fmt: skip
    lines = demo_table({"runs": runs, "reading": ["One seed.", "Curves: accuracy.png"]}).splitlines()
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
