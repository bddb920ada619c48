"""Recipes of views. Each is a file here and a line in `RECIPES`; `base.py` says what a recipe has to do."""

from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop

# By the name in `views.kind`. The fields of a recipe's dataclass are its parameters.
RECIPES: dict[str, type[Recipe]] = {
    "crop-flip": CropFlip,
    "random-resized-crop": RandomResizedCrop,
}
