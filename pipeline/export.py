"""`export`: writes a finished run's network as one file, in the format of the file's ending.

Files for other programs take pixels and normalise them themselves. Before such a file gets its name, its logits are
compared with those of the network on images of the run's test split.
"""

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.data.recipes.preparation import Preparation, preparation_of
from dhkd.pipeline import card as cards
from dhkd.pipeline.build.code import code_of_data, require_code_of_run
from dhkd.pipeline.build.data import images_of, renderer_of
from dhkd.pipeline.build.described import Described, test_recipe_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.predictor import FORMATS, ONNX, PROGRAM, WEIGHTS, Loaded, loaded
from dhkd.pipeline.results import Compared, Exported
from dhkd.stages.models import count_parameters
from dhkd.stages.models.onnx_file import open_onnx, write_onnx
from dhkd.stages.models.pixels import OnPixels
from dhkd.stages.models.program_file import open_program, write_program
from dhkd.stages.models.weights import save_weights, weights_sha256
from torch import Tensor, nn

log = logging.getLogger("dhkd")

CHECKED = 256  # images on which a file is compared with its network
AT_ONCE = 64
# Two libraries sum the same products in another order, so their logits differ in the last bits. Relative to the largest
# logit, the networks of the tests differ by at most 1e-5, and wrong ones by more than 1e-1.
TOLERANCE = 1e-3


def export(
    run: Path,
    out: Path,
    *,
    ema: bool = False,
    data: DataOptions | None = None,
    without_data: bool = False,
    card: bool = False,
) -> Exported:
    """Write a finished run's network, without its auxiliary head, as one file.

    The ending of `out` is the format: .safetensors, .onnx or .pt2 (`torch.export`). If `ema` is true, its weights are
    the average that the run kept of them. `data` says where the run's test images are, on which an .onnx or .pt2 file
    is compared with the network; with `without_data`, it is compared on random images. If `card` is true, the run's
    model card is written beside the file, as README.md.

    Raises `WeightsError` for a network that a format can't hold, and if the file's logits differ.
    """
    _require_new(out, card, run)
    whole = loaded(run, ema=ema)
    compared = None
    if out.suffix == WEIGHTS:
        metadata = _metadata_of_weights(whole)
        save_weights(out, whole.network, metadata)
    else:
        metadata, compared = _write_compared(whole, out, data or DataOptions(), without_data)
    written = None
    if card:
        text = cards.model_card(run, files=[out.name], ema=ema).encode()
        written = out.parent / cards.NAME
        write_atomically(written, lambda stream: stream.write(text))
    return Exported(
        file=str(out),
        metadata=metadata,
        parameters=count_parameters(whole.network),
        sha256=weights_sha256(whole.network),
        compared=compared,
        card=None if written is None else str(written),
    )


def _require_new(out: Path, card: bool, run: Path) -> None:
    if out.suffix not in FORMATS:
        raise ConfigError(
            f"--out {out}: expected a file that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, the formats that"
            f" export writes, got {out.suffix or 'no ending'}; name it {out.stem or 'network'}{WEIGHTS}"
        )
    if card and not run.is_dir():
        raise ConfigError(f"--card: expected a run's folder, whose results a card shows, got {run}; leave it out")
    for file in (out, *([out.parent / cards.NAME] if card else [])):
        if file.exists():
            raise ConfigError(f"--out {file}: expected a new file, it exists; choose another or remove it")


def _metadata_of_weights(whole: Loaded) -> Mapping[str, str]:
    """Return the metadata of a file of weights; those of other programs may not say how images are normalised."""
    return whole.facts.metadata if whole.experiment is not None else whole.metadata


def _write_compared(
    whole: Loaded, out: Path, data: DataOptions, without_data: bool
) -> tuple[Mapping[str, str], Compared]:
    """Write a file that takes pixels, under its name once it is known to compute what the network computes."""
    facts = whole.facts
    images = "random images" if without_data else "test images"
    pixels_NCHW, preparation = _random_pixels(whole, facts) if without_data else _test_pixels(whole, facts, data)
    if preparation is not None:
        facts = facts.prepared(preparation)
    network = OnPixels(whole.network, facts.mean, facts.std, pixels_NCHW.shape[1], facts.resizing).eval()
    with _under_another_name(out) as partial:
        write, open_file = _FORMATS[out.suffix]
        write(partial, network, pixels_NCHW[:2].clone(), facts.metadata)
        return facts.metadata, _compared(network, open_file(partial), pixels_NCHW, images, out)


@contextlib.contextmanager
def _under_another_name(out: Path) -> Iterator[Path]:
    partial = out.with_name(f".{out.stem}-{secrets.token_hex(4)}{out.suffix}")
    try:
        yield partial
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _open_own_program(path: Path) -> Callable[[Tensor], Tensor]:
    return open_program(path, torch.device("cpu"), allow_code=True)[1]  # this process wrote it


def _open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    return open_onnx(path)[1]


_FORMATS: Mapping[
    str,
    tuple[Callable[[Path, nn.Module, Tensor, Mapping[str, str]], None], Callable[[Path], Callable[[Tensor], Tensor]]],
] = {ONNX: (write_onnx, _open_onnx), PROGRAM: (write_program, _open_own_program)}


def _test_pixels(whole: Loaded, facts: Described, data: DataOptions) -> tuple[Tensor, Preparation | None]:
    """Return pixels of the run's first test images, uint8 (N, C, H, W), and how images are prepared, if it is known."""
    experiment = whole.experiment
    if experiment is None:
        raise ConfigError(
            f"{whole.file}: expected a run's folder, on whose test images the file is checked, got a file; check it on"
            f" random images with --without-data"
        )
    require_code_of_run(whole.file.parent, code_of_data(experiment))
    images = images_of(experiment, "test", data, lambda: facts.num_classes)
    renderer = renderer_of(images.first(CHECKED), test_recipe_of(experiment, whole.role), torch.device("cpu"), data)
    batches = torch.split(torch.arange(len(renderer.images)), AT_ONCE)
    pixels = list(renderer.render((torch.zeros_like(index_B), index_B) for index_B in batches))
    shape = (pixels[0].shape[2], pixels[0].shape[3])
    return torch.cat(pixels).contiguous(), preparation_of(renderer.recipe, shape, images.channels)


def _random_pixels(whole: Loaded, facts: Described) -> tuple[Tensor, Preparation | None]:
    """Return random pixels of the size of the network's images, uint8 (N, C, H, W), and how images are prepared."""
    preparation = facts.preparation
    if preparation is None:
        raise ConfigError(
            f"{whole.file}: expected the size of its images in its metadata, found none; give the test images in place"
            f" of --without-data"
        )
    shape = (AT_ONCE, preparation.channels, preparation.height, preparation.width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), preparation


@torch.no_grad()
def _compared(
    network: nn.Module, logits_of: Callable[[Tensor], Tensor], pixels_NCHW: Tensor, images: str, out: Path
) -> Compared:
    """Compare the file's logits with the network's. Raises `WeightsError` if they differ by more than rounding."""
    # One image alone as well, because the number of images in a batch may be anything.
    batches = [pixels_NCHW[:1], *torch.split(pixels_NCHW, AT_ONCE)]
    expected_NK, found_NK = (torch.cat([one(pixels) for pixels in batches]) for one in (network, logits_of))
    changed = int((expected_NK.argmax(dim=1) != found_NK.argmax(dim=1)).sum())
    difference = float((expected_NK - found_NK).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected_NK.abs().max()))
    if not difference <= allowed:  # a NaN is neither larger nor smaller
        raise WeightsError(
            f"--out {out}: expected the network's logits for {len(pixels_NCHW)} {images} up to {allowed:.2g}, got"
            f" differences of up to {difference:.2g} and {changed} other classes, so it is not kept; write .safetensors"
            f" instead"
        )
    return Compared(images=images, samples=len(pixels_NCHW), largest_difference=difference, top1_changed=changed)
