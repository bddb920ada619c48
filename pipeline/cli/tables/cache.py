"""The table of `dhkd inspect`, which describes a cache and its signals, i.e. teacher outputs such as logits."""

from collections.abc import Iterator, Mapping
from typing import Any

from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.results import Inspected, SignalBounds

Row = tuple[str, str]


def cache_table(cache: Inspected) -> str:
    """Return a table that shows what a cache holds, how complete the cache is, and how exact each signal is."""
    return plain_table(["", ""], [*_cache_rows(cache), *_signal_rows(cache)], header=False)


def _cache_rows(cache: Inspected) -> list[Row]:
    summary, dataset, recipe = cache.summary, cache.identity["dataset"], cache.identity["recipe"]
    kind, parameters = recipe.get("kind"), ", ".join(f"{key} {value}" for key, value in recipe.items() if key != "kind")
    return [
        ("cache", f"{summary.path} ({summary.digest[:12]}), {cache.store}, format {cache.format}"),
        ("state", _state(cache)),
        ("size", f"{cache.bytes / 1e6:,.1f} MB" if cache.bytes is not None else "known when it is finished"),
        ("blocks", f"of {cache.rows_per_block:,} rows"),
        (
            "data set",
            f"{dataset['name']}, {dataset['split']}: {summary.samples:,} samples,"
            f" {summary.classes} classes ({dataset['fingerprint'][:12]})",
        ),
        ("views", f"{summary.views} of {kind} ({parameters})"),
    ]


def _state(cache: Inspected) -> str:
    blocks = f"{cache.blocks_done} of {cache.blocks} blocks"
    if cache.complete:
        return f"complete, {blocks}"
    if cache.complete_views:
        signals = ", ".join(cache.complete_signals)
        return f"complete with {cache.complete_views} views of {signals}; being extended or damaged: {blocks}"
    return f"not finished, {blocks}"


def _signal_rows(cache: Inspected) -> Iterator[Row]:
    last_origin: list[Row] = []
    for name, signal in cache.identity["signals"].items():
        codec = ", ".join(f"{value}" if key == "kind" else f"{key} {value}" for key, value in signal["codec"].items())
        yield f"signal {name}", f"{codec}, computed in {signal['precision']}"
        if name in cache.digests:
            yield "  in runs", cache.digests[name][:12]
        yield from _exactness(cache.bounds.get(name))
        origin = _origin(signal["teacher"], cache.provenance.get(name, {}))
        yield from [("  teacher", "the same, in the same call")] if origin == last_origin else origin
        last_origin = origin


def _exactness(bound: SignalBounds | None) -> list[Row]:
    """Return rows that bound the errors of stored logits and of losses; there are none if the bounds are unknown."""
    if bound is None:
        return []
    if bound.tail_mass is not None:
        return [
            (
                "  error",
                f"a stored logit differs by at most {bound.error:.2g}; the others' probabilities, at most"
                f" {bound.tail_mass:.2g} of a row, are kept as their sum",
            )
        ]
    return [
        (
            "  error",
            f"a logit differs from the teacher's by at most {bound.error:.2g}; the top class can change only"
            f" where it leads by at most {bound.margin:.2g}",
        ),
        (
            "  losses",
            f"KL at temperature 4 ≤ {bound.kl_at_4:.2g}, BinaryKL at temperature 2 ≤"
            f" {bound.binary_kl_at_2:.2g} (before the factor τ²)",
        ),
    ]


# Any: these are entries of a manifest, which hold whatever JSON the manifest's writer recorded.
def _origin(teacher: Mapping[str, Any], provenance: Any) -> list[Row]:
    recorded = provenance if isinstance(provenance, Mapping) else {}
    top1, versions = recorded.get("teacher_test_top1"), recorded.get("versions")
    accuracy = f"{top1:.2f} %" if isinstance(top1, int | float) else "unknown"
    part = "val" if recorded.get("teacher_measured_on") == "val" else "test"
    libraries = versions.items() if isinstance(versions, Mapping) else ()
    return [
        ("  teacher", f"{teacher.get('architecture')} ({str(teacher.get('sha256'))[:12]}), {part} top-1 {accuracy}"),
        *(("  code", f"{name} ({str(_hash(code))[:12]})") for name, code in _code(recorded).items()),
        *_seen_and_read(teacher),
        ("  made with", ", ".join(f"{library} {version}" for library, version in libraries)),
        ("  made on", str(recorded.get("hardware", "unknown"))),
        ("  command", str(recorded.get("command", "unknown"))),
    ]


def _code(recorded: Mapping[str, object]) -> Mapping[str, object]:
    """Return the record of user code in a signal's provenance, by name; empty if it is missing or malformed."""
    code = recorded.get("code")
    return code if isinstance(code, Mapping) else {}


def _hash(code: object) -> object:
    return code.get("sha256") if isinstance(code, Mapping) else None


# Any: an entry of a manifest.
def _seen_and_read(teacher: Mapping[str, Any]) -> list[Row]:
    """Return a row with the teacher's image size and the outputs that were kept; empty if neither is recorded."""
    size, classes = teacher.get("size"), teacher.get("classes")
    parts = [] if size is None else [f"saw views of {size}×{size} pixels ({teacher.get('interpolation')})"]
    if isinstance(classes, list):
        parts.append(f"{len(classes):,} of its outputs, from {classes[0]} for class 0")
    return [("  seen, kept", "; ".join(parts))] if parts else []
