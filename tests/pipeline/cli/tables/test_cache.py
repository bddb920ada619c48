"""The table of `dhkd inspect` shows every figure."""

from dataclasses import replace

from dhkd.pipeline.cli.tables.cache import cache_table
from dhkd.pipeline.results import CacheSummary, Inspected, SignalBounds

CACHE = Inspected(
    summary=CacheSummary(
        path="runs/c.zarr",
        digest="d1" * 32,
        teacher="resnet56",
        teacher_sha256="3f" * 32,
        views=12,
        samples=50_000,
        classes=100,
        signals={"logits": "float16"},
        row_bytes=200,
    ),
    format=2,
    store="zarr",
    complete=False,
    complete_views=0,
    complete_signals=[],
    blocks=36,
    blocks_done=7,
    rows_per_block=16_667,
    bytes=123_456_789,
    bounds={
        "logits": SignalBounds(
            error=0.0078125, tail_mass=None, kl_at_4=1.9e-6, binary_kl_at_2=0.000191, margin=0.015625
        )
    },
    digests={"logits": "e7" * 32},
    identity={
        "dataset": {"name": "cifar100", "split": "train", "fingerprint": "ab" * 32},
        "recipe": {"kind": "crop-flip", "version": 1, "padding": 4, "flip": True, "seed": 9},
        "signals": {
            "logits": {
                "teacher": {"architecture": "resnet56", "sha256": "3f" * 32},
                "precision": "bf16",
                "codec": {"kind": "float16"},
                "row": [100],
            }
        },
    },
    provenance={
        "logits": {
            "command": "dhkd cache-teacher cifar100/resnet56-resnet20 --out [c]",
            "teacher_test_top1": 72.345,
            "versions": {"torch": "2.11", "numpy": "2.1"},
            "hardware": "a CPU",
        }
    },
)


def rows_of(table: str) -> dict[str, str]:
    """The rows of a table of two columns."""
    rows = (line.strip().partition("  ") for line in table.splitlines())
    return {name: value.strip() for name, _, value in rows}


def test_every_figure_of_a_cache_is_in_the_table() -> None:
    assert rows_of(cache_table(CACHE)) == {
        "cache": "runs/c.zarr (d1d1d1d1d1d1), zarr, format 2",
        "state": "not finished, 7 of 36 blocks",
        "size": "123.5 MB",
        "blocks": "of 16,667 rows",
        "data set": "cifar100, train: 50,000 samples, 100 classes (abababababab)",
        "views": "12 of crop-flip (version 1, padding 4, flip True, seed 9)",
        "signal logits": "float16, computed in bf16",
        "in runs": "e7e7e7e7e7e7",
        "teacher": "resnet56 (3f3f3f3f3f3f), test top-1 72.34 %",
        "error": "a logit differs from the teacher's by at most 0.0078; the top class can change only where it leads"
        " by at most 0.016",
        "losses": "KL at temperature 4 ≤ 1.9e-06, BinaryKL at temperature 2 ≤ 0.00019 (before the factor τ²)",
        "made with": "torch 2.11, numpy 2.1",
        "made on": "a CPU",
        "command": "dhkd cache-teacher cifar100/resnet56-resnet20 --out [c]",
    }


def test_a_finished_cache_of_unknown_origin() -> None:
    rows = rows_of(cache_table(replace(CACHE, complete=True, blocks_done=36, provenance={})))
    assert rows["state"] == "complete, 36 of 36 blocks"
    assert rows["made on"] == rows["command"] == "unknown"
    assert rows["teacher"].endswith("test top-1 unknown")


def test_a_cache_that_is_being_extended() -> None:
    rows = rows_of(cache_table(replace(CACHE, bytes=None, complete_views=4, complete_signals=["logits"])))
    assert rows["size"] == "known when it is finished"
    assert rows["state"] == "complete with 4 views of logits; being extended or damaged: 7 of 36 blocks"


def test_a_top_k_cache_says_what_it_lacks() -> None:
    bounds = {"logits": replace(CACHE.bounds["logits"], tail_mass=0.125)}
    signals = {"logits": {**CACHE.identity["signals"]["logits"], "codec": {"kind": "top-k", "k": 8}}}
    rows = rows_of(cache_table(replace(CACHE, bounds=bounds, identity={**CACHE.identity, "signals": signals})))
    assert rows["signal logits"] == "top-k, k 8, computed in bf16"
    assert rows["error"].endswith("the others' probabilities, at most 0.12 of a row, are kept as their sum")
    assert "losses" not in rows


def test_a_second_signal_of_the_same_call_names_its_teacher_once() -> None:
    logits = CACHE.identity["signals"]["logits"]
    signals = {"logits": logits, "embedding": {**logits, "row": [64]}}
    provenance = dict.fromkeys(signals, CACHE.provenance["logits"])
    lines = cache_table(replace(CACHE, identity={**CACHE.identity, "signals": signals}, provenance=provenance))
    assert lines.splitlines()[-2:] == [
        "signal embedding  float16, computed in bf16",
        "  teacher         the same, in the same call",
    ]
