"""The precision that `auto` stands for, and which errors are of a connection that broke."""

import logging

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.pipeline.environment import processes_for
from dhkd.stages.processes import Processes, cpu_capabilities, cpu_precision, resolve_precision


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({}, "float32"),
        ({"avx2": True}, "float32"),
        ({"avx512_f": True, "avx512_bf16": True}, "float32"),  # measured: 550 images/s in bf16, 791 in float32
        ({"avx512_bf16": True, "amx_bf16": False}, "float32"),
        ({"avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"amx_bf16": True, "amx_tile": True}, "bf16"),
        ({"amx_tile": True}, "float32"),
        ({"bf16": True}, "float32"),
    ],
)
def test_a_cpu_takes_bf16_only_where_it_is_faster(capabilities: dict[str, bool], precision: str) -> None:
    chosen, reason = cpu_precision(capabilities)
    assert chosen == precision
    assert "AMX" in reason


def test_only_auto_needs_a_reason() -> None:
    assert resolve_precision("bf16", cpu=True) == ("bf16", None)
    assert resolve_precision("float32", cpu=True) == ("float32", None)
    assert resolve_precision("auto", cpu=True) == cpu_precision(cpu_capabilities())
    with pytest.raises(ConfigError, match="precision fp16: expected a GPU"):
        resolve_precision("fp16", cpu=True)
    with pytest.raises(ConfigError, match="expected auto, float32, bf16 or fp16, got 'half'"):
        resolve_precision("half", cpu=True)


def test_a_note_says_what_auto_became(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dhkd")
    with processes_for("auto", cpu=True) as processes:
        assert f"precision: {processes.precision}, because this CPU has " in caplog.text
    caplog.clear()
    with processes_for("float32", cpu=True):
        assert "precision" not in caplog.text


def test_autocast_is_of_the_run_or_of_the_precision_that_is_asked_for(processes: Processes) -> None:
    """The inner one holds, also in a context of another precision."""
    matrix = torch.ones(2, 2)
    with processes.autocast("bf16"):
        assert (matrix @ matrix).dtype == torch.bfloat16
        with processes.autocast():
            assert (matrix @ matrix).dtype == torch.float32
