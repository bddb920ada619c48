"""Progress in a log, where there is no terminal: lines at intervals by the clock, nothing else."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from dhkd.data.progress import duration, progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_line_a_minute_says_how_far_how_fast_and_how_long(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dhkd")
    clock = Clock()
    with progress("caching", 8_100_000, clock=clock) as advance:
        for _ in range(12):
            clock.now += 20
            advance(20_000)
    assert caplog.messages == [
        "caching: 60,000 of 8,100,000 (0.7 %), 1,000/s, 2 h 14 min left",
        "caching: 120,000 of 8,100,000 (1.5 %), 1,000/s, 2 h 13 min left",
        "caching: 180,000 of 8,100,000 (2.2 %), 1,000/s, 2 h 12 min left",
        "caching: 240,000 of 8,100,000 (3.0 %), 1,000/s, 2 h 11 min left",
    ]


def test_the_rate_is_that_of_the_last_minute(caplog: pytest.LogCaptureFixture) -> None:
    """What an earlier call has done is counted at once, and is no work of this call."""
    caplog.set_level(logging.INFO, "dhkd")
    clock = Clock()
    with progress("caching", 1_000_000, clock=clock, line_seconds=10) as advance:
        advance(900_000)
        clock.now += 10
        advance(50)
        clock.now += 10
        advance(50)
    assert caplog.messages[-1] == "caching: 900,100 of 1,000,000 (90.0 %), 5/s, 5 h 33 min left"


def test_short_work_and_its_end_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dhkd")
    clock = Clock()
    with progress("checking", 10, clock=clock) as advance:
        for _ in range(9):
            clock.now += 5
            advance(1)
        clock.now += 100
        advance(1)
    assert caplog.messages == []


def test_work_of_unknown_length_has_no_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dhkd")
    clock = Clock()
    with progress("fetching x, MB", None, clock=clock, bar=False) as advance:
        clock.now += 60
        advance(90)
    assert caplog.messages == ["fetching x, MB: 90, 1.5/s"]


def test_what_is_not_visible_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dhkd")
    with progress("caching", 10, visible=False, line_seconds=0) as advance:
        advance(1)
    assert caplog.messages == []


def test_threads_lose_no_advance(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dhkd")
    clock = Clock()
    with progress("caching", 10_000, clock=clock) as advance:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(advance, [1] * 4000))
        clock.now += 60
        advance(0)
    assert caplog.messages[0].startswith("caching: 4,000 of 10,000 (40.0 %)")


@pytest.mark.parametrize("variable", [{"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}, {"TERM": "xterm"}])
def test_no_variable_puts_control_characters_into_a_log(
    variable: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    with progress("caching", 10) as advance:
        advance(5)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3540, "59 min"),
        (3600, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
