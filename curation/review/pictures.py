"""Arrays as pictures: grey images, overlays, fields in colours, and what in them is invalid or folded.

Arrays are (X, Y), fields (2, X, Y), as everywhere; pictures are (X, Y) or (X, Y, 3) uint8. Pillow's pictures
have them turned round: x goes to the right and y goes down.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

CONTRAST = 1, 99  # percentiles of the grey values that become black and white
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_SAMPLED = 1 << 16  # pixels from which they are taken

# A field's colours differ in lightness along x and from blue to orange along y, which everybody can tell apart.
_MIDDLE = np.array([128, 128, 128], np.float32)
_ALONG_X = np.array([105, 105, 105], np.float32)
_ALONG_Y = np.array([95, 5, -110], np.float32)
_STEPS = 1, 2, 5  # times a power of ten: round lengths for the rim of the legend
_SCALED_TO = 99.5  # percent of the vectors are no longer than that

INVALID = 74, 99, 168, 150  # RGBA of the tint over what is black, masked or pulled from outside
_CHECKS = 4  # pixels, the side of the squares that mark what is folded


@dataclass(frozen=True)
class Grey:
    """An image to be shown. values: (X, Y) uint8. invalid: (X, Y) bool, where there is no tissue to see."""

    values: np.ndarray
    invalid: np.ndarray


def levels_of(image: np.ndarray) -> tuple[float, float]:
    """The grey values of an image (X, Y) that are shown black and white: percentiles of its valid pixels."""
    step = max(1, int(np.sqrt(image.size / _SAMPLED)))
    some = image[::step, ::step]
    some = some[np.isfinite(some) & (some != 0)].astype(np.float64)  # in which no difference overflows
    if not some.size:
        return 0.0, 1.0
    low, high = np.percentile(some, CONTRAST)
    return float(low), float(max(high, np.nextafter(np.float32(low), np.float32(np.inf))))


def grey(image: np.ndarray, levels: tuple[float, float]) -> Grey:
    """An image (X, Y) between its levels, see `levels_of`; a pixel is invalid if it is exactly 0, or not finite."""
    invalid = ~np.isfinite(image) | (image == 0)
    scale = np.float32(min(255 / (levels[1] - levels[0]), _MOST))
    values = np.where(invalid, np.float32(levels[0]), image)
    with np.errstate(over="ignore"):
        values -= np.float32(levels[0])
        values *= scale
    return Grey(np.clip(values, 0, 255, out=values).astype(np.uint8), invalid)


def overlay(source: np.ndarray, target: np.ndarray, invalid: np.ndarray) -> np.ndarray:
    """Two grey pictures (X, Y) in one, (X, Y, 3): source in magenta, target in green, grey where they agree.

    What is invalid in either, (X, Y) bool, is shown in grey under the tint.
    """
    either = np.where(invalid, np.maximum(source, target), 0)
    magenta, green = np.where(invalid, either, source), np.where(invalid, either, target)
    return tinted(np.stack([magenta, green, magenta], axis=-1), invalid)


def tinted(picture: np.ndarray, invalid: np.ndarray) -> np.ndarray:
    """A picture (X, Y, 3) with the tint over what is invalid, (X, Y) bool."""
    *colour, alpha = INVALID
    mixed = picture[invalid] * np.float32(1 - alpha / 255) + np.array(colour, np.float32) * np.float32(alpha / 255)
    made = picture.copy()
    made[invalid] = mixed.astype(np.uint8)
    return made


# Fields


def length_at_rim(field: np.ndarray) -> float:
    """A round length, pixels, that few vectors of a field (2, X, Y) exceed; it has the strongest colour."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.hypot(*field)
    lengths = lengths[np.isfinite(lengths)]
    longest = float(np.percentile(lengths, _SCALED_TO)) if lengths.size else 0.0
    if longest <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(longest))
    return float(next((step * power for step in _STEPS if step * power >= longest), 10 * power))


def field_colours(field: np.ndarray, rim: float) -> np.ndarray:
    """A field (2, X, Y) in colours, (X, Y, 3): grey for 0, the strongest for vectors of `rim` pixels and longer.

    To the right is light and to the left is dark; down is orange and up is blue. What is no vector is black.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.hypot(*field)
        finite = np.isfinite(length)
        strength = 1 / np.maximum(np.where(finite, length, 1), np.float32(min(max(rim, _LEAST), _MOST)))
        along_y, along_x = (np.where(finite, component, 0) * strength for component in field)
    colours = _MIDDLE + along_x[..., None] * _ALONG_X + along_y[..., None] * _ALONG_Y
    colours[~finite] = 0
    return np.clip(colours, 0, 255).astype(np.uint8)


def wheel(size: int) -> Image.Image:
    """The legend of `field_colours`: a disc of `size` pixels, transparent around it."""
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * 2 / size - 1
    vectors = np.stack(np.broadcast_arrays(place[None, :], place[:, None]))
    inside = np.hypot(*vectors) <= 1
    colours = field_colours(vectors, 1.0)
    return Image.fromarray(np.dstack([colours, inside * np.uint8(255)]).swapaxes(0, 1).copy(), "RGBA")


def checks(folded: np.ndarray) -> Image.Image:
    """A picture that marks what is folded, (X, Y) bool, by black and white squares, and is transparent elsewhere."""
    x, y = (np.arange(size, dtype=np.uint16) // _CHECKS for size in folded.shape)
    squares = (x[:, None] + y) % 2
    values = np.where(folded, 1 + squares, 0).astype(np.uint8)
    return _with_palette(values, [0, 0, 0, 0, 0, 0, 255, 255, 255])


def mask(invalid: np.ndarray) -> Image.Image:
    """A picture that is black where something is invalid, (X, Y) bool, and transparent elsewhere."""
    return _with_palette(invalid.astype(np.uint8), [0, 0, 0, 0, 0, 0])


def _with_palette(values: np.ndarray, colours: list[int]) -> Image.Image:
    """A picture of numbered colours, of which number 0 is transparent."""
    picture = Image.fromarray(np.ascontiguousarray(values.T), "P")
    picture.putpalette(colours)
    picture.info["transparency"] = 0
    return picture


# Sizes and files


def reduction(size: tuple[int, int], longest: int) -> int:
    """By which whole number images of `size` (X, Y) are made smaller, so that no side is longer than `longest`."""
    return -(-max(size) // longest)


def reduced(picture: np.ndarray, factor: int) -> Image.Image:
    """A picture (X, Y) or (X, Y, 3) for Pillow, made smaller by a whole number."""
    image = Image.fromarray(np.ascontiguousarray(picture.swapaxes(0, 1)))
    return image if factor == 1 else image.reduce(factor)


def enlarged(picture: Image.Image, factor: int) -> Image.Image:
    """A picture made larger by a whole number, so that its pixels are seen."""
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def any_in_block(mask: np.ndarray, factor: int) -> np.ndarray:
    """A mask (X, Y) bool made smaller as `reduced` does: where any pixel is."""
    if factor == 1:
        return mask
    x_size, y_size = mask.shape
    padded = np.pad(mask, ((0, -x_size % factor), (0, -y_size % factor)))
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor)
    return np.asarray(blocks.any(axis=(1, 3)))


def as_jpeg(picture: Image.Image, quality: int) -> bytes:
    """The bytes of a JPEG file. EM images are noise: WebP is no smaller, and takes fifteen times as long."""
    return _encoded(picture, "JPEG", quality=quality)


def as_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file, transparent where `picture` is."""
    return _encoded(picture, "PNG", compress_level=1)


def _encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()
