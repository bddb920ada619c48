"""Recipes draw views. Each recipe is a file in this folder and a line in `RECIPES`; `base.py` has the interface."""

from collections.abc import Mapping
from inspect import isclass

from dhkd.data.errors import ConfigError, unknown
from dhkd.data.options import parameters_of, with_options
from dhkd.data.own_code import find, running
from dhkd.data.recipes.augmented import Augmented
from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.mixing import build_mixing
from dhkd.data.recipes.operations import OPERATIONS, build_operations
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop

# The names are the values of `views.kind` in a preset. The fields of a recipe's dataclass are its parameters.
RECIPES: dict[str, type[Recipe]] = {
    "crop-flip": CropFlip,
    "random-resized-crop": RandomResizedCrop,
}

MIX = "mix"  # the key of `views` that sets mixing
ADDED = frozenset((*OPERATIONS, MIX))  # the keys of `views` that add something to a geometry


def build_recipe(kind: str, parameters: Mapping[str, object]) -> Recipe:
    """Build the recipe that `views.kind` names, with the other keys of `views` as its parameters.

    The keys that name pixel operations add these to the recipe, and the key `mix` adds mixing. Raises `ConfigError` for
    an unknown kind, for own code that is no subclass of `Recipe`, and for missing or unknown parameters.
    """
    operations = build_operations(parameters)
    geometry = _geometry(kind, {name: value for name, value in parameters.items() if name not in ADDED})
    if not operations and MIX not in parameters:
        return geometry
    seed = int(str(parameters["seed"]))
    mixing = build_mixing(parameters[MIX], seed) if MIX in parameters else None
    return Augmented(geometry.without_end(), operations, seed, mixing)


def _geometry(kind: str, parameters: Mapping[str, object]) -> Recipe:
    """Build the recipe without pixel operations."""
    recipe = find("views.kind", kind, RECIPES)
    if kind in RECIPES:
        known = parameters_of(RECIPES[kind])
        for name in parameters.keys() - known.keys():
            raise ConfigError(f"views of kind {kind}: {unknown('option', name, [*known, *ADDED])}")
        return with_options(f"views of kind {kind}", RECIPES[kind], parameters)
    if isclass(recipe) and not _is_recipe(recipe):
        raise ConfigError(f"views.kind {kind}: expected a subclass of Recipe, got the class {recipe.__name__}")
    if taken := sorted(ADDED & parameters_of(recipe).keys()):
        raise ConfigError(
            f"views.kind {kind}: {taken[0]}: expected parameters of other names than those of pixel operations and"
            f" mixing; rename it"
        )
    with running(f"views.kind {kind}"):
        made: Recipe = with_options(f"views of kind {kind}", recipe, parameters)
    if not _is_recipe(made):
        raise ConfigError(f"views.kind {kind}: expected a Recipe, got a {type(made).__name__}")
    return made


def _is_recipe(thing: object) -> bool:
    """Return whether a class or an object has the attributes of a recipe."""
    return all(hasattr(thing, name) for name in ("identity", "num_views", "shape", "draws", "pixels", "at_test"))
