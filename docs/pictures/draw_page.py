"""Draws page-light.png and page-dark.png: the page of results of a small real sweep, photographed by chromium.

`python docs/pictures/draw_page.py` runs the README's three commands (some minutes) in a temporary folder; with the
folder of a sweep as argument it photographs that sweep instead.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
FRAMES = {"light": "#c8d1da", "dark": "#3d444d"}
COLOURS = 256  # a palette halves the files, and nobody sees the difference


def dhkd(*words: str) -> None:
    """Run one command of the program."""
    subprocess.run([sys.executable, "-m", "dhkd.pipeline.cli", *words], check=True)


def sweep(folder: Path) -> Path:
    """Train the demo's teacher, cache it and train students with three methods and three seeds."""
    teacher, cache, out = folder / "teacher", folder / "cache.zarr", folder / "sweep"
    dhkd("train-teacher", "demo", "--out", str(teacher))
    dhkd("cache-teacher", "demo", "--teacher", str(teacher), "--views", "4", "--out", str(cache))
    dhkd("sweep", "demo", "--cache", str(cache), "--out", str(out), "--grid", "objective=ce,kd,dhkd", "--seeds", "3")
    return out


def photograph(page: Path, scheme: str, file: Path) -> None:
    """Write the top of the page, down to the curves, as it looks on a desktop, in a thin frame."""
    browser = next(path for name in ("chromium", "chromium-browser") if (path := shutil.which(name)))
    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        view = launched.new_page(color_scheme=scheme, viewport={"width": 1100, "height": 1310}, device_scale_factor=1.5)
        view.goto(page.as_uri())
        view.wait_for_selector(".chart .main-svg")
        view.wait_for_timeout(1000)
        view.screenshot(path=file)
        launched.close()
    framed = ImageOps.expand(Image.open(file).convert("RGB"), border=2, fill=FRAMES[scheme])
    framed.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(sys.argv[1]) if len(sys.argv) > 1 else sweep(Path(temporary))
        page = Path(temporary) / "page.html"
        dhkd("report", str(runs), "--html", str(page))
        for scheme in ("light", "dark"):
            photograph(page, scheme, HERE / f"page-{scheme}.png")
