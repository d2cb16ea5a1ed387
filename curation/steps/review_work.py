"""What a worker does for a review: it measures pairs, and makes their pictures."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import quality
from ..annotations.coordinate_spaces import Resolution
from ..datasets.collection import Collection, open_collection
from ..errors import WorkError
from ..quality import Likeness, PairQuality
from ..review import pictures
from ..review.folder import script, write_pair
from ..review.pictures import Grey
from .pair_quality import PairMeasurer
from .review_texts import PairTexts

GRID_PIXELS = 192  # the longest side of a pair's picture in the grid
ARROWS = 24  # along the longer side of a field
FIELD_PIXELS = 512  # the longest side of a field in colours, which is smooth
COLOUR_QUALITY = 80  # of JPEG pictures in colours


@dataclass(frozen=True)
class PictureOptions:
    """longest: pixels, the longest side of a pair's pictures. quality: of their JPEG files, 1 to 95."""

    longest: int
    quality: int


@dataclass(frozen=True)
class ReviewedPair:
    """What is known of a pair. place: among the images. numbers: for each field, or only those before it if none.

    valid: the share of valid pixels, of the image that has fewer of them. bytes: of its pictures.
    """

    place: int
    numbers: tuple[PairQuality, ...]
    valid: float
    bytes: int = 0


@dataclass(frozen=True)
class ReviewWork:
    """Measures the pairs whose places among the images are its units, and makes their pictures.

    fields: files or folders of shards. folder: of the review; None to measure only. resolution: a voxel's nm, for
    links; None where it is not known.
    """

    images: Path
    fields: tuple[Path, ...]
    folder: Path | None = None
    options: PictureOptions = PictureOptions(1024, 60)
    resolution: Resolution | None = None

    def __call__(self, worker: int, pairs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, ReviewedPair | None]]:
        """The pairs as they are reviewed; None for one that cannot be read yet, as its file is still being written."""
        with ExitStack() as stack:
            images, *fields = (
                stack.enter_context(closing(open_collection(path))) for path in (self.images, *self.fields)
            )
            measurers = [PairMeasurer(images, each) for each in fields]
            texts = PairTexts(images, fields, self.resolution)
            growing = is_growing(images, *fields)
            for number, place in pairs:
                look = None
                with suppress(WorkError) if growing else nullcontext(), told_of(images, place):
                    look = look_at(images, measurers, place)
                if look is None:
                    yield number, None
                    continue
                with told_of(images, place):
                    reviewed = self._reviewed(look, texts, place)
                yield number, reviewed

    def _reviewed(self, look: "PairLook", texts: PairTexts, place: int) -> ReviewedPair:
        written = 0
        if self.folder is not None:
            described = {**look.described(), **texts.of(place)}
            files = {**look.files(self.options), "detail.js": script("detail", place, described)}
            written = write_pair(self.folder, place, files)
        return ReviewedPair(place, look.numbers, look.valid, written)


@dataclass(frozen=True)
class FieldLook:
    """A pair through one of its fields. field: (2, X, Y). pulled: the source pulled through it, (X, Y)."""

    field: np.ndarray
    pulled: np.ndarray
    after: Likeness
    numbers: PairQuality

    @property
    def sampled(self) -> np.ndarray:
        """As much of the field as is shown in colours."""
        step = pictures.reduction(self.pulled.shape, FIELD_PIXELS)
        return self.field[:, ::step, ::step]

    @cached_property
    def scale(self) -> float:
        """The length, pixels, that has the strongest colour."""
        return pictures.length_at_rim(self.sampled)

    @cached_property
    def folded(self) -> np.ndarray | None:
        """(X, Y) bool, where it folds the image; None where it does not."""
        return quality.folded_pixels(self.field) if self.numbers.folded > 0 else None


@dataclass(frozen=True)
class PairLook:
    """All that there is to see of a pair. source, target: (X, Y). fields: None for a field that is not there."""

    source: np.ndarray
    target: np.ndarray
    before: Likeness
    fields: tuple[FieldLook | None, ...]

    @property
    def numbers(self) -> tuple[PairQuality, ...]:
        """The numbers for each field; only those before it where there is none."""
        without = quality.numbers(self.before)
        return tuple(look.numbers if look else without for look in self.fields) or (without,)

    @property
    def valid(self) -> float:
        """The share of valid pixels, of the image that has fewer of them."""
        return 1 - max(float(picture.invalid.mean()) for picture in (self.grey_source, self.grey_target))

    @cached_property
    def _source_levels(self) -> tuple[float, float]:
        return pictures.levels_of(self.source)

    @cached_property
    def grey_source(self) -> Grey:
        """The source as a picture."""
        return pictures.grey(self.source, self._source_levels)

    @cached_property
    def grey_target(self) -> Grey:
        """The target as a picture."""
        return pictures.grey(self.target, pictures.levels_of(self.target))

    @cached_property
    def grey_pulled(self) -> tuple[Grey | None, ...]:
        """The source pulled through each field, as a picture of the same grey values."""
        return tuple(pictures.grey(look.pulled, self._source_levels) if look else None for look in self.fields)

    def overlay(self, longest: int, through_field: bool = True) -> np.ndarray:
        """The overlay of the source, pulled through the last field or as it is, and the target: (x, y, 3) uint8."""
        pulled = next((picture for picture in reversed(self.grey_pulled) if picture and through_field), None)
        source, target = pulled or self.grey_source, self.grey_target
        factor = pictures.reduction(self.source.shape, longest)
        small = [np.asarray(pictures.reduced(each.values, factor)).T for each in (source, target)]
        invalid = pictures.any_in_block(source.invalid | target.invalid, factor)
        return pictures.overlay(small[0], small[1], invalid)

    def files(self, options: PictureOptions) -> dict[str, bytes]:
        """The files of the pictures, by their names."""
        greys = {"source": self.grey_source, "target": self.grey_target}
        greys |= {f"pulled_{index}": each for index, each in enumerate(self.grey_pulled) if each}
        made = {}
        factor = pictures.reduction(self.source.shape, options.longest)
        for name, picture in greys.items():
            made[f"{name}.jpg"] = pictures.as_jpeg(pictures.reduced(picture.values, factor), options.quality)
            if picture.invalid.any():
                made[f"{name}_invalid.png"] = pictures.as_png(
                    pictures.mask(pictures.any_in_block(picture.invalid, factor))
                )
        for index, look in enumerate(self.fields):
            if look:
                made |= {f"{name}_{index}{end}": content for (name, end), content in _field_files(look, factor)}
        small = pictures.reduced(self.overlay(GRID_PIXELS), 1)
        made["grid.jpg"] = pictures.as_jpeg(small, options.quality)
        return made

    def bytes(self, options: PictureOptions) -> int:
        """How much its files take, apart from its texts."""
        return sum(map(len, self.files(options).values())) + len(script("detail", 0, self.described()))

    def described(self) -> dict[str, Any]:
        """What the page draws of the pair by itself."""
        return {
            "before": _windows(self.before),
            "invalid": [bool(each.invalid.any()) for each in (self.grey_source, self.grey_target)],
            "fields": [
                _described(look, pulled) if look and pulled else None
                for look, pulled in zip(self.fields, self.grey_pulled, strict=True)
            ],
        }


def is_growing(*files: Collection) -> bool:
    """Whether one of the files is still being written."""
    return not all(each.done.all() for each in files)


@contextmanager
def told_of(images: Collection, place: int) -> Iterator[None]:
    """Say which pair it was where files cannot be read, or pictures not be made."""
    try:
        yield
    except WorkError:
        raise
    except (OSError, RuntimeError) as error:
        raise WorkError(f"{images.path}: pair {place} or its field cannot be read or shown: {error}") from error


def look_at(images: Collection, measurers: Sequence[PairMeasurer], place: int) -> PairLook:
    """Read a pair and its fields, and measure what the files do not tell. measurers: one for each field file."""
    source, target = images.read(place)
    before = Likeness.of(source, target)
    looks: list[FieldLook | None] = []
    for measurer in measurers:
        field = measurer.field(place)
        if field is None:
            looks.append(None)
            continue
        pulled = quality.pulled(source, field)
        after = Likeness.of(pulled, target)
        numbers = measurer.stored(place) or quality.numbers(before, after, field)
        looks.append(FieldLook(field, pulled, after, numbers))
    return PairLook(source, target, before, tuple(looks))


def _field_files(look: FieldLook, factor: int) -> Iterator[tuple[tuple[str, str], bytes]]:
    colours = pictures.field_colours(look.sampled, look.scale)
    yield ("field", ".jpg"), pictures.as_jpeg(pictures.reduced(colours, 1), COLOUR_QUALITY)
    if look.folded is not None:
        yield ("folds", ".png"), pictures.as_png(pictures.checks(pictures.any_in_block(look.folded, factor)))


def _described(look: FieldLook, pulled: Grey) -> dict[str, Any]:
    step = max(1, -(-max(pulled.values.shape) // ARROWS))
    folds = [] if look.folded is None else np.argwhere(pictures.any_in_block(look.folded, quality.WINDOW)).tolist()
    return {
        "after": _windows(look.after),
        "scale": look.scale,
        "arrows": _arrows(look.field[:, step // 2 :: step, step // 2 :: step], step),
        "folds": folds,
        "invalid": bool(pulled.invalid.any()),
    }


def _windows(likeness: Likeness) -> dict[str, Any]:
    """The correlation of each window, x fastest."""
    nx, ny = likeness.windows.shape
    return {"nx": nx, "ny": ny, "values": _numbers(likeness.windows)}


def _arrows(vectors: np.ndarray, step: int) -> dict[str, Any]:
    """Some vectors of a field, (2, nx, ny), `step` pixels from one another, in pixels along x and y; x fastest."""
    _, nx, ny = vectors.shape
    return {"nx": nx, "ny": ny, "step": step, "x": _numbers(vectors[1]), "y": _numbers(vectors[0])}


def _numbers(values: np.ndarray) -> list[float | None]:
    """(nx, ny) values with two decimals, x fastest; None for what is no number."""
    return [round(value, 2) if math.isfinite(value) else None for value in values.T.ravel().tolist()]
