"""The layouts, by the name of their store. To add a layout, add a file beside this one and a line in `LAYOUTS`."""

from dhkd.data.cache.layouts.base import Layout
from dhkd.data.cache.layouts.tar_shards import TarLayout
from dhkd.data.cache.layouts.zarr_chunks import ZarrLayout
from dhkd.data.cache.manifest import Manifest
from dhkd.data.errors import one_of

LAYOUTS: dict[str, type[Layout]] = {
    "zarr": ZarrLayout,
    "webdataset": TarLayout,
}


def layout_of(store: str, manifest: Manifest) -> Layout:
    """Return the layout of this cache in the store; raises `ConfigError` for an unknown store."""
    return one_of("store", store, LAYOUTS)(manifest)
