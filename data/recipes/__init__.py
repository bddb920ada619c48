"""How a view is drawn. A recipe is one file here and one line in `RECIPES`; what it promises is in `base.py`."""

from dhkd.data.recipes.base import Recipe
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop

# By the name that `views.kind` gives; a recipe's parameters are the fields of its dataclass.
RECIPES: dict[str, type[Recipe]] = {
    "crop-flip": CropFlip,
    "random-resized-crop": RandomResizedCrop,
}
