"""The check before training that pixels are still those that the teacher saw.

The cache holds a witness of each row, i.e. a checksum of the row's rendered pixels.
"""

from collections.abc import Mapping
from typing import Any

from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import CacheMismatch
from dhkd.data.render import Renderer
from dhkd.data.stream.check import check_witnesses
from dhkd.pipeline.environment import versions

WITNESS_BLOCKS, WITNESS_ROWS = 16, 64  # blocks to check before training, and rows in each block


def check_pixels(renderer: Renderer, reader: LogitReader, *, seed: int, allow_drift: bool) -> str:
    """Render random rows again, compare them with the pixels that the teacher saw, and return the result as one line.

    Raises `CacheMismatch` if a row differs, unless `allow_drift` is set.
    """
    try:
        checked = rerender(renderer, reader, seed=seed, rows_per_block=WITNESS_ROWS)
    except CacheMismatch as error:
        if allow_drift:
            return f"cache {reader.location}: {error}; --allow-drift: the student trains all the same"
        if not renderer.exact:  # pixels may differ by a grey level between versions of Pillow
            raise CacheMismatch(f"{error}; where that is a matter of a grey level, use --allow-drift") from error
        raise
    return f"cache {reader.location}: {checked} random rows re-rendered, all as the teacher saw them"


def rerender(renderer: Renderer, reader: LogitReader, *, seed: int, rows_per_block: int) -> int:
    """Render random rows of random blocks again, compare them with what the teacher saw, and return the number of rows.

    Raises `CacheMismatch` if a row differs.
    """
    return check_witnesses(
        renderer,
        reader,
        seed=seed,
        rows_per_block=rows_per_block,
        max_blocks=WITNESS_BLOCKS,
        versions=_versions_on_both_sides(reader),
    )


def _versions_on_both_sides(reader: LogitReader) -> str:
    # Any: a manifest's provenance is JSON, and whoever wrote it may have recorded anything.
    provenance: Any = next(iter(reader.manifest.provenance.values()), {})
    versions_then = provenance.get("versions") if isinstance(provenance, Mapping) else None
    recorded = versions_then if isinstance(versions_then, Mapping) else {}
    changes = [
        f"{name} {recorded[name]} then, {version} now"
        for name, version in versions().items()
        if recorded.get(name, version) != version
    ]
    return f" ({', '.join(changes)})" if changes else " (with the same versions of all libraries)"
