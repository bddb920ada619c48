"""The operations of policies as a script with Pillow alone computes them, for comparison."""

from dhkd.data.recipes.operations.policies.steps import Step
from PIL import Image, ImageEnhance, ImageOps

ENHANCERS = {
    "Brightness": ImageEnhance.Brightness,
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Sharpness": ImageEnhance.Sharpness,
}


def changed_by_pillow(image: Image.Image, step: Step) -> Image.Image:
    """Apply an operation and its magnitude to an image."""
    size = float(step.magnitude)
    matrices = {
        "ShearX": (1, size, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, size, 1, 0),
        "TranslateX": (1, 0, -int(size), 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, -int(size)),
    }
    if step.name in matrices:
        return image.transform(image.size, Image.Transform.AFFINE, matrices[step.name], Image.Resampling.NEAREST)
    if step.name in ENHANCERS:
        return ENHANCERS[step.name](image).enhance(1 + size)
    match step.name:
        case "Rotate":
            return image.rotate(size, Image.Resampling.NEAREST)
        case "Posterize":
            return ImageOps.posterize(image, int(size))
        case "Solarize":
            return ImageOps.solarize(image, int(size))
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
    return image
