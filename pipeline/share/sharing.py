"""`share`: finds out whether a place holds a cache or a run, and shares it."""

from pathlib import Path

from dhkd.data.cache.find import find
from dhkd.data.errors import ConfigError
from dhkd.data.runs.names import CONFIG, METRICS, RESULT, SWEEP
from dhkd.data.runs.near import FINAL_WEIGHTS
from dhkd.data.runs.place import runs_at
from dhkd.data.storage.base import Storage
from dhkd.data.storage.places import storage_of
from dhkd.pipeline.results import Shared
from dhkd.pipeline.share.cache import share_cache
from dhkd.pipeline.share.folder import Sharing
from dhkd.pipeline.share.run import share_run


def share(
    source: str | Path,
    folder: str | Path,
    *,
    license: str | None = None,
    store: str | None = None,
    allow_names: bool = False,
) -> Shared:
    """Write the cache or the run at a path or URL into a folder that can be pushed to a hub as it is.

    Nothing else may be in the folder, except what an earlier call for the same source wrote, which is continued. The
    card names the `license`, such as cc-by-4.0. `store` is the storage format of a cache, zarr or webdataset; None
    keeps that of the source. Paths of this machine are shortened. Raises `ConfigError` for what is private and can't be
    left out: secrets and, unless `allow_names` is set, this user's and this machine's name.
    """
    source, folder, options = str(source), Path(folder), Sharing(license, store, allow_names)
    storage = storage_of(source)
    if _holds_run(storage):
        place = runs_at(source)
        with place.named():
            place.refresh(FINAL_WEIGHTS)
            return share_run(place.folder, folder, options)
    if find(storage) is None:
        raise ConfigError(f"{source}: expected a cache or a finished run, found neither; check the path or the URL")
    return share_cache(source, folder, options)


def _holds_run(storage: Storage) -> bool:
    return any(storage.size(name) >= 0 for name in (CONFIG, RESULT, METRICS, SWEEP))
