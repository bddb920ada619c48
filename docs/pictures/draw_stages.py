"""Draws stages-light.svg and stages-dark.svg: the two stages, and a key that gives the same pixels in both.

The pixels are those of the recipe `crop-flip`, drawn for the key that the picture names. To write both files again:
`python docs/pictures/draw_stages.py`.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from dhkd.data.recipes.crop_flip import CropFlip

HERE = Path(__file__).parent
WIDTH, HEIGHT = 760, 500

# A key of the recipe that moves the picture visibly and mirrors it.
SEED, VIEW, IMAGE = 2, 3, 4

PIXELS = """
ssssssssssssssssssssssss
ssssssssssssssssssssssss
ssssssssssssssmsssssssss
ssssssssssssssmrrsssssss
ssyyyysssssssrmsssssssss
syyyyyyssssssrmwssssssss
syyyyyysssssrrmwssssssss
syyyyyysssssrrmwwsssssss
syyyyyyssssrrrmwwsssssss
ssyyyyssssrrrrmwwwssssss
ssssssssssrrrrmwwwssssss
sssssssssrrrrrmwwwwsssss
sssssssssrrrrrmwwwwsssss
ssssssssrrrrrrmwwwwwssss
sssssssrrrrrrrmwwwwwssss
ssssssssssssssmsssssssss
aaaaahhhhhhhhhhhhhhhhaaa
aaaaaahhhhhhhhhhhhhhaaaa
adddaaahhhhhhhhhhhhaaaaa
aaaaaaaaaaaaaaaaaaadddaa
aaaddddaaaaaaaaaaaaaaaaa
aaaaaaaaaaaddddaaaaaadda
addaaaaaaaaaaaaaaaaaaaaa
aaaaaaddddaaaaaaadddaaaa
"""
COLOURS = {
    "s": (160, 211, 245),
    "y": (255, 205, 70),
    "r": (222, 82, 70),
    "w": (250, 250, 245),
    "m": (92, 64, 51),
    "h": (133, 88, 60),
    "a": (44, 122, 186),
    "d": (28, 92, 150),
}
LOGITS = (-14, 9, -6, 17, -20, 38, 12, -9, 22, -12)  # heights of the bars: what a teacher might say


@dataclass(frozen=True)
class Palette:
    """The colours of one version: fills are those of boxes, and the others those of lines and text."""

    ink: str
    muted: str
    line: str
    panel: str
    teacher: str
    teacher_fill: str
    student: str
    student_fill: str
    cell: str
    key: str
    key_fill: str


PALETTES = {
    "light": Palette(
        ink="#1f2328", muted="#59636e", line="#c8d1da", panel="#f6f8fa",
        teacher="#6f42c1", teacher_fill="#efe8fb", student="#0969da", student_fill="#e3f0ff",
        cell="#cfd8e3", key="#bc4c00", key_fill="#ffeddd",
    ),
    "dark": Palette(
        ink="#f0f6fc", muted="#9fa9b4", line="#3d444d", panel="#151b23",
        teacher="#b392f0", teacher_fill="#2a2142", student="#58a6ff", student_fill="#12294a",
        cell="#39424e", key="#ffa657", key_fill="#3a2512",
    ),
}  # fmt: skip


def picture() -> torch.Tensor:
    """Return the pixels above as an image, uint8 (3, 24, 24)."""
    rows = [[COLOURS[letter] for letter in row] for row in PIXELS.split()]
    return torch.tensor(rows, dtype=torch.uint8).permute(2, 0, 1)


def view_of(image: torch.Tensor) -> torch.Tensor:
    """Return the view that the picture's key names, uint8 (3, 24, 24)."""
    recipe = CropFlip(padding=4, flip=True, seed=SEED)
    draws = recipe.draws(torch.tensor([VIEW]), torch.tensor([IMAGE]))
    return recipe.gather(recipe.windows(image[None]), torch.tensor([0]), draws)[0]


def text(x: float, y: float, words: str, colour: str, classes: str = "", anchor: str = "start") -> str:
    """Draw one line of text; `y` is its base line."""
    return f'<text x="{x}" y="{y}" fill="{colour}" class="{classes}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, line: str, radius: float = 10) -> str:
    """Draw a box with round corners."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}"'
        f' stroke="{line}" stroke-width="2"/>'
    )


def arrow(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    """Draw a straight arrow, along an axis."""
    (x, y), (to_x, to_y) = start, end
    along_x, along_y = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
    back_x, back_y = to_x - 11 * along_x, to_y - 11 * along_y
    head = (
        f"M{to_x} {to_y}L{back_x - 8 * along_y} {back_y - 8 * along_x}L{back_x + 8 * along_y} {back_y + 8 * along_x}Z"
    )
    return (
        f'<path d="M{x} {y}L{back_x} {back_y}" stroke="{colour}" stroke-width="3" fill="none"/>'
        f'<path d="{head}" fill="{colour}"/>'
    )


def raster(image: torch.Tensor, name: str, scale: float) -> str:
    """Define an image's pixels as one path for each colour, of runs within a row."""
    runs: dict[str, list[str]] = {}
    for y, row in enumerate(image.permute(1, 2, 0).tolist()):
        start = 0
        for x in range(1, len(row) + 1):
            if x == len(row) or row[x] != row[start]:
                colour = "#{:02x}{:02x}{:02x}".format(*row[start])
                runs.setdefault(colour, []).append(f"M{start} {y}h{x - start}v1h{start - x}z")
                start = x
    paths = "".join(f'<path fill="{colour}" d="{"".join(parts)}"/>' for colour, parts in sorted(runs.items()))
    return f'<g id="{name}" transform="scale({scale})" shape-rendering="crispEdges">{paths}</g>'


def bars(name: str, colour: str, axis: str) -> str:
    """Define the logits: bars above and below zero, 112 wide and 84 high."""
    parts = [
        f'<rect x="{x * 11.5:g}" y="{54 - max(height, 0)}" width="8" height="{abs(height)}" rx="2" fill="{colour}"/>'
        for x, height in enumerate(LOGITS)
    ]
    zero = f'<path d="M-4 54H116" stroke="{axis}" stroke-width="2"/>'
    return f'<g id="{name}">{"".join(parts)}{zero}</g>'


def network(x: float, y: float, layers: tuple[int, ...], size: tuple[float, float], colour: str) -> str:
    """Draw layers of nodes, all connected, into a rectangle."""
    width, height = size
    columns = [
        [(x + width * i / (len(layers) - 1), y + height * (j + 0.5) / num) for j in range(num)]
        for i, num in enumerate(layers)
    ]
    lines = "".join(
        f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for left, right in pairwise(columns) for a, b in left for c, d in right
    )
    nodes = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4.5"/>' for column in columns for a, b in column)
    return f'<path d="{lines}" stroke="{colour}" stroke-opacity=".4"/><g fill="{colour}">{nodes}</g>'


def grid(x: float, y: float, colours: Palette) -> str:
    """Draw the cache: a row for each view, a column for each image, and the key's row, column and cell marked."""
    cells = []
    for view in range(7):
        for image in range(11):
            fill, opacity = colours.cell, "1"
            if (view, image) == (VIEW, IMAGE):
                fill = colours.key
            elif view == VIEW or image == IMAGE:
                fill, opacity = colours.key, ".35"
            place = f'x="{x + 16 * image}" y="{y + 16 * view}"'
            cells.append(f'<rect {place} width="13" height="13" rx="3" fill="{fill}" fill-opacity="{opacity}"/>')
    return "".join(cells)


def thumbnail(x: float, y: float, colour: str) -> str:
    """Draw the view's pixels with a frame in the key's colour."""
    return f'<use href="#pixels" x="{x}" y="{y}"/>' + box(x, y, 84, 84, "none", colour, 4)


def first_stage(colours: Palette) -> list[str]:
    """Draw the upper panel: pixels, the teacher, its logits."""
    return [
        box(4, 4, 752, 152, colours.panel, colours.line, 14),
        text(24, 39, "Stage one: the teacher runs once", colours.ink, "head"),
        text(738, 39, "dhkd cache-teacher", colours.muted, "code", "end"),
        thumbnail(36, 58, colours.key),
        arrow((128, 100), (174, 100), colours.muted),
        box(180, 58, 256, 84, colours.teacher_fill, colours.teacher),
        network(202, 64, (3, 5, 5, 4, 3), (104, 72), colours.teacher),
        text(326, 108, "teacher", colours.ink, "head"),
        arrow((442, 100), (488, 100), colours.muted),
        '<use href="#logits" x="502" y="58"/>',
        text(632, 95, "raw logits,", colours.ink),
        text(632, 122, "all classes", colours.ink),
    ]


def second_stage(colours: Palette) -> list[str]:
    """Draw the lower panel: the same pixels and the cached logits meet at students."""
    parts = [
        box(4, 344, 752, 152, colours.panel, colours.line, 14),
        text(24, 478, "Stage two: any number of students", colours.ink, "head"),
        text(738, 478, "dhkd sweep", colours.muted, "code", "end"),
        thumbnail(36, 358, colours.key),
        arrow((128, 400), (174, 400), colours.muted),
        arrow((488, 400), (442, 400), colours.muted),
        '<use href="#logits" x="502" y="358"/>',
        text(632, 395, "read, not", colours.ink),
        text(632, 422, "computed", colours.ink),
    ]
    for number, method in enumerate(("kd", "dkd", "dhkd")):
        x = 180 + 88 * number
        parts += [
            box(x, 358, 80, 84, colours.student_fill, colours.student),
            network(x + 20, 366, (2, 3, 2), (40, 38), colours.student),
            text(x + 40, 431, method, colours.ink, "code", "middle"),
        ]
    return parts


def middle(colours: Palette) -> list[str]:
    """Draw the key, and the cache between the stages."""
    return [
        arrow((78, 226), (78, 148), colours.key),
        arrow((78, 274), (78, 352), colours.key),
        box(16, 227, 318, 46, colours.key_fill, colours.key, 23),
        text(175, 258, f"seed {SEED}, view {VIEW}, image {IMAGE}", colours.ink, "code", "middle"),
        text(98, 206, "A key is all it takes:", colours.ink),
        text(98, 312, "same key, same pixels", colours.ink),
        arrow((335, 250), (383, 250), colours.key),
        arrow((558, 158), (558, 184), colours.muted),
        box(370, 186, 386, 128, "none", colours.line, 12),
        grid(386, 195, colours),
        text(578, 217, "the cache", colours.ink, "head"),
        text(578, 246, "names data,", colours.ink),
        text(578, 273, "views, teacher,", colours.ink),
        text(578, 300, "precision", colours.ink),
        arrow((558, 316), (558, 342), colours.muted),
    ]


STYLE = """text{font:21px -apple-system,"Segoe UI",Helvetica,Arial,"Liberation Sans",sans-serif}
.head{font-size:23px;font-weight:600}
.code{font-size:21px;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}"""


def draw(colours: Palette) -> str:
    """Return the picture as an SVG document."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        f"<style>{STYLE}</style>",
        f"<defs>{raster(view_of(picture()), 'pixels', 3.5)}{bars('logits', colours.teacher, colours.muted)}</defs>",
        *first_stage(colours),
        *second_stage(colours),
        *middle(colours),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def file_of(version: str) -> Path:
    """Return where a version's picture is committed."""
    return HERE / f"stages-{version}.svg"


if __name__ == "__main__":
    for version, colours in PALETTES.items():
        file_of(version).write_text(draw(colours))
