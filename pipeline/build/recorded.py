"""Records in a cache the settings that it was made with, and reads them, so that later work needs only the cache.

The cache's identity fully describes built-in recipes without pixel operations and mixing, and built-in sources that are
held in memory. For other sources and recipes, the provenance records the settings.
"""

from collections.abc import Collection, Mapping
from typing import Any

from dhkd.configs.load import parse_section
from dhkd.configs.schema import Data, Experiment, Views
from dhkd.data.cache.manifest import Manifest, signal_name
from dhkd.data.errors import CacheMismatch, ConfigError
from dhkd.data.recipes import ADDED, RECIPES
from dhkd.data.sources import SOURCES

SETTINGS = "settings"  # the key in a signal's provenance
LIMITS = ("limit", "test_limit")


# Any: settings are plain values, as JSON stores them.
def settings_to_record(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that a cache's identity doesn't contain, as plain values; empty if it contains all."""
    data = experiment.data.model_dump(mode="json", exclude_none=True)
    source = SOURCES.get(experiment.data.source)
    known = source is not None and source.size is not None and data.keys() <= {"source", *LIMITS}
    recorded: dict[str, Any] = {}
    if not known:
        recorded["data"] = data
    if experiment.views.kind not in RECIPES or experiment.views.parameters.keys() & ADDED:
        recorded["views"] = {"kind": experiment.views.kind, **experiment.views.parameters}
    return recorded


# The settings of a teacher that a cache records besides the weights: at which size it saw the views, and which of its
# outputs were read.
SEEN_AND_READ = ("size", "interpolation", "classes")


# Any: settings are plain values, as JSON stores them.
def recorded_settings(
    manifest: Manifest, location: str, teacher: str | None = None, *, known: Collection[str] = ()
) -> dict[str, Any]:
    """Return the sections data, views and teacher of the experiment that made the cache, as plain values.

    `teacher` is a teacher's name in the cache. Sections listed in `known` are left out. Raises `CacheMismatch` if the
    cache doesn't record its data set.
    """
    signals, recorded = manifest.signals, _recorded(manifest, teacher)
    of_teacher = signals.get(signal_name(teacher, "logits")) or next(iter(signals.values()))
    tree: dict[str, Any] = {
        # How the teacher was trained is not recorded, and no student needs it; the schema requires these values.
        "teacher": {
            **{key: of_teacher.teacher[key] for key in SEEN_AND_READ if key in of_teacher.teacher},
            "architecture": of_teacher.teacher.get("architecture"),
            "epochs": 1,
            "lr": 0.05,
        }
    }
    try:
        if "data" not in known:
            data = recorded.get("data") or _data_of(manifest, location)
            tree["data"] = parse_section(Data, data, "data")
        if "views" not in known:
            views = recorded.get("views") or _views_of(manifest.identity.recipe)
            tree["views"] = parse_section(Views, views, "views")
    except ConfigError as error:
        raise CacheMismatch(
            f"cache at {location}: expected the settings that it was made with, found damaged ones ({error}); name a"
            f" preset"
        ) from error
    return tree


def _recorded(manifest: Manifest, teacher: str | None) -> Mapping[str, Any]:  # Any: JSON of the cache's writer
    """Return the settings in the provenance of the teacher's logits or, if it has none, of any signal."""
    for name in (signal_name(teacher, "logits"), *manifest.signals):
        provenance = manifest.provenance.get(name)
        recorded = provenance.get(SETTINGS) if isinstance(provenance, Mapping) else None
        if isinstance(recorded, Mapping):
            return recorded
    return {}


def _data_of(manifest: Manifest, location: str) -> dict[str, object]:
    dataset = manifest.identity.dataset
    source = SOURCES.get(dataset.name)
    if source is None or source.size is None:
        raise CacheMismatch(
            f"cache at {location}: expected a record of its data set {dataset.name}, found none, because an earlier"
            f" version made it or the command line's preset did; name the preset or the data set"
        )
    return {"source": dataset.name} | (
        {} if dataset.num_samples == source.size.samples else {"limit": dataset.num_samples}
    )


def _views_of(recipe: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON, as a recipe describes itself
    return {key: value for key, value in recipe.items() if key == "kind" or key in Views.model_fields}
