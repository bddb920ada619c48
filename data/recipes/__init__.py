"""Recipes draw views. Each recipe is a file in this folder and a line in `RECIPES`; `base.py` has the interface."""

from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop

# The names are the values of `views.kind` in a preset. The fields of a recipe's dataclass are its parameters.
RECIPES: dict[str, type[Recipe]] = {
    "crop-flip": CropFlip,
    "random-resized-crop": RandomResizedCrop,
}
