"""The table that `dhkd predict` prints."""

from dhkd.pipeline.cli.tables.plain import plain_table
from dhkd.pipeline.results import Predicted


def predictions_table(result: Predicted) -> str:
    """Return a table with a row for each image, and the accuracy if the images have labels."""
    labelled = result.top1 is not None
    most = max(len(one.classes) for one in result.predictions)
    columns = ["image", *(["label"] if labelled else []), *[""] * (2 * most)]
    columns[-2 * most :: 2] = ["class", *("then" for _ in range(most - 1))]
    rows = []
    names = {one.number: str(one) for of_image in result.predictions for one in of_image.classes}
    for of_image in result.predictions:
        cells = [cell for one in of_image.classes for cell in (str(one), f"{100 * one.probability:.1f} %")]
        label = [] if of_image.label is None else [names.get(of_image.label, str(of_image.label))]
        rows.append([of_image.image, *label, *cells])
    lines = [plain_table(columns, rows, left=len(columns))]
    if labelled:
        lines.append(f"{result.architecture}: top-1 {result.top1:.2f} % of {len(rows)} images ({result.precision})")
    return "\n".join(lines)
