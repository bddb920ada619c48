"""Uses trained networks: predicts classes, writes files for other programs, and describes networks in cards."""

from collections.abc import Sequence
from pathlib import Path

from dhkd.data.disk.user_cache import expanded
from dhkd.pipeline import card
from dhkd.pipeline import export as exporting
from dhkd.pipeline import predict as predicting
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.python.surroundings import undisturbed
from dhkd.pipeline.results import Exported, Predicted

Images = str | Path | Sequence[str | Path]


def predict(
    network: str | Path,
    images: Images = (),
    *,
    split: str | None = None,
    source: str | None = None,
    top: int = predicting.TOP,
    batch: int | None = None,
    ema: bool = False,
    precision: str | None = None,
    data: DataOptions | None = None,
    cpu: bool = False,
    allow_code: bool = False,
) -> Predicted:
    """Predict the `top` most probable classes of images, as `dhkd predict` does.

    `network` is the folder of a finished run or an exported file. `images` are files, folders or patterns; in place of
    them, `split` and `source` name a split of a data set, by default the run's. Images that can't be read are listed
    in the result's `unreadable`. `allow_code` opens a .pt2 file, which can run code of whoever made it.
    """
    files = [images] if isinstance(images, str | Path) else list(images)
    with undisturbed():
        return predicting.predict(
            Path(expanded(str(network))),
            predicting.Wanted(files, split, source),
            data=data,
            top=top,
            batch=batch,
            ema=ema,
            precision=precision,
            cpu=cpu,
            allow_code=allow_code,
        )


def export(
    run: str | Path,
    out: str | Path,
    *,
    ema: bool = False,
    data: DataOptions | None = None,
    without_data: bool = False,
    card: bool = False,
) -> Exported:
    """Write the network of a finished run as one file, whose ending is the format, as `dhkd export` does.

    The formats are .safetensors, .onnx and .pt2 (`torch.export`). `data` says where the run's test images are, on which
    an .onnx or .pt2 file is compared with the network; with `without_data`, it is compared on random images. If `card`
    is true, the model card is written beside the file.
    """
    paths = (Path(expanded(str(path))) for path in (run, out))
    with undisturbed():
        return exporting.export(*paths, ema=ema, data=data, without_data=without_data, card=card)


def model_card(
    run: str | Path,
    *,
    files: Sequence[str] = (),
    ema: bool = False,
    name: str | None = None,
    license_id: str | None = None,
) -> str:
    """Return the model card of a finished run: a README with the YAML that model hubs read.

    `files` are the names of the files with the network that will lie beside it, `name` is the network's name there, and
    `license_id` a licence as the hub names it.
    """
    return card.model_card(Path(expanded(str(run))), files=files, ema=ema, name=name, license_id=license_id)
