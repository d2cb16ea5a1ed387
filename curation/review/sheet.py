"""The contact sheet: pairs as rows of labelled pictures with a scale bar, in one PNG file."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .pictures import enlarged, reduced, reduction

PICTURE_PIXELS = 256  # the longest side of a picture
_LABEL = 210  # pixels, the width of the column of labels
_GAP = 8
_LINE = 19
_TEXT = 13  # pixels, the height of letters
_INK, _PALE, _PAPER = (20, 20, 20), (95, 95, 95), (255, 255, 255)
_LEAST_COLUMN = 110  # pixels, so that headings and the scale bar have room where pictures are narrow
_BAR_SHARE = 0.4  # of a column's width that the scale bar takes at most
_STEPS = 1, 2, 5


@dataclass(frozen=True)
class SheetRow:
    """A pair. lines: its label, of which the first is its name. pictures: (X, Y, 3) uint8 each, of one size."""

    lines: tuple[str, ...]
    pictures: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Scale:
    """What a pixel of the images stands for: `size` of `unit`, such as 32 nm, or 1 px where that is not known."""

    size: float
    unit: str

    def bar(self, longest: int) -> tuple[float, str]:
        """A round length that takes at most `longest` pixels: the pixels that it takes, and its name."""
        most = longest * self.size
        power = 10.0 ** np.floor(np.log10(most))
        length = max(step * power for step in _STEPS if step * power <= most)
        return length / self.size, f"{length:g} {self.unit}"  # not in µm, as Pillow's own font has no such letter


def draw_sheet(title: str, headings: Sequence[str], rows: Sequence[SheetRow], scale: Scale) -> Image.Image:
    """The sheet. headings: of the columns of pictures. scale: of the pixels of the pictures that are given."""
    size = rows[0].pictures[0].shape[:2]
    factor, larger = reduction(size, PICTURE_PIXELS), max(1, PICTURE_PIXELS // max(size))
    small = [[enlarged(reduced(picture, factor), larger) for picture in row.pictures] for row in rows]
    wide, high = small[0][0].size
    step = max(wide, _LEAST_COLUMN) + _GAP
    text = max(high, _LINE * max(len(row.lines) for row in rows))
    top = _GAP + 2 * _LINE + _GAP
    whole = _LABEL + len(headings) * step + _GAP, top + len(rows) * (text + _GAP) + 2 * _LINE
    sheet = Image.new("RGB", whole, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT)
    draw.text((_GAP, _GAP), title, _INK, font)
    for column, heading in enumerate(headings):
        draw.text((_LABEL + column * step, _GAP + _LINE), heading, _PALE, font)
    for place, (row, pictures) in enumerate(zip(rows, small, strict=True)):
        y = top + place * (text + _GAP)
        for line, words in enumerate(row.lines):
            draw.text((_GAP, y + line * _LINE), words, _PALE if line else _INK, font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (_LABEL + column * step, y))
    pixels, name = Scale(scale.size * factor / larger, scale.unit).bar(int((step - _GAP) * _BAR_SHARE))
    x, y = _LABEL, whole[1] - _LINE
    draw.rectangle((x, y, x + round(pixels) - 1, y + 4), _INK)
    draw.text((x + round(pixels) + _GAP, y - _TEXT // 2 + 1), name, _INK, font)
    return sheet
