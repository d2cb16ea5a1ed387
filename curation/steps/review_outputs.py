"""What a review writes and prints: the data of its page, a table, a contact sheet, and a summary with histograms."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import __version__
from ..annotations.viewer_states import commands_to_serve
from ..datasets.collection import Collection
from ..files import PathLike, shown_name, write_bytes_whole, written_whole
from ..provenance import as_text, before_joining, parsed, sha256
from ..quality import WINDOW
from ..review import pictures
from ..review.sheet import Scale, SheetRow, draw_sheet
from .pair_quality import PairMeasurer, QualityTable
from .review_texts import SHOWN_OF_NOTE, PairTexts
from .review_work import PairLook, PictureOptions, look_at, told_of


@dataclass(frozen=True)
class Measure:
    """A number of each pair, by which pairs are sorted and filtered.

    worst: which end is bad, "low" or "high"; "" if neither is. digits: decimals to show. of_field: whether each field
    has its own. A share is shown in percent.
    """

    name: str
    label: str
    unit: str
    worst: str
    digits: int
    about: str
    of_field: bool = True

    def shown(self, values: np.ndarray) -> np.ndarray:
        """The values in the measure's unit."""
        return values * 100 if self.unit == "%" else values


MEASURES = (
    Measure("correlation_after", "correlation after", "", "low", 2, "How alike the images are after the field."),
    Measure("cpc_median_after", "windows, median after", "", "low", 2, "The same within windows; their median."),
    Measure("cpc_low_after", "windows, worst after", "", "low", 2, "The same within windows; their 5th percentile."),
    Measure("displacement_median", "displacement, median", "px", "high", 2, "How far the field is from its prior."),
    Measure("displacement_max", "displacement, largest", "px", "high", 2, "How far the field is from its prior."),
    Measure("folded", "folded area", "%", "high", 3, "The share of pixels at which the field folds the image."),
    Measure("roughness", "roughness", "px/px²", "high", 3, "How much neighbouring vectors differ."),
)
BEFORE = (
    Measure("correlation_before", "correlation before", "", "low", 2, "How alike the images are without a field."),
    Measure("cpc_median_before", "windows, median before", "", "low", 2, "The same within windows; their median."),
    Measure("cpc_low_before", "windows, worst before", "", "low", 2, "The same within windows; their 5th percentile."),
)
GENERAL = (
    Measure("valid", "valid area", "%", "low", 1, "Of the image that has less valid area.", of_field=False),
    Measure("section", "section", "", "", 0, "The z of the source.", of_field=False),
)


@dataclass(frozen=True)
class Reviewed:
    """The pairs of a review, P of them, and what was found.

    texts, measurers: of the open files. labels: of the fields. places: (P,), among the images. numbers: for each field,
    (P,) by name; where there is no field, one entry with the numbers before. general: (P,) by name. bytes: of the
    pictures. no_link: why there are no links, or "".
    """

    texts: PairTexts
    measurers: tuple[PairMeasurer, ...]
    labels: tuple[str, ...]
    places: np.ndarray
    numbers: tuple[Mapping[str, np.ndarray], ...]
    general: Mapping[str, np.ndarray]
    bytes: int
    no_link: str

    @property
    def images(self) -> Collection:
        """The image file, or folder of shards."""
        return self.texts.images

    @property
    def pairs(self) -> np.ndarray:
        """(P,), the place of each pair in the spec."""
        return np.asarray(self.images.arrays.get("pair", self.images.numbers)[self.places])

    @property
    def starts(self) -> np.ndarray | None:
        """(P, 2, 3), the starts of the boxes; None where the files do not hold them."""
        starts = self.images.arrays.get("start")
        return None if starts is None else starts[self.places]

    @property
    def missing(self) -> int:
        """How many pairs are not there yet, or not with all fields."""
        return self.images.expected - len(self.places)

    def has(self, measure: Measure) -> bool:
        """Whether any pair has this number."""
        of = self.numbers if measure.of_field else [self.general]
        return any(measure.name in each and bool(np.isfinite(each[measure.name]).any()) for each in of)

    def worst_first(self) -> np.ndarray:
        """(P,), the pairs by the correlation after the last field, or before it if there is none."""
        values = self.numbers[-1]["correlation_after" if self.has(MEASURES[0]) else "correlation_before"]
        return np.argsort(np.where(np.isfinite(values), values, -np.inf), kind="stable")


# The page


def page_data(reviewed: Reviewed, options: PictureOptions) -> dict[str, Any]:
    """What the page is told of all pairs; review/page/dataset.js says what each entry is."""
    texts, images, starts = reviewed.texts, reviewed.images, reviewed.starts
    x_size, y_size = images.shape[2:]
    factor = pictures.reduction((x_size, y_size), options.longest)
    places = reviewed.places.tolist()
    notes = [texts.note(place) for place in places]
    fields_at = np.stack([measurer.places for measurer in reviewed.measurers] or [images.numbers[:0]], axis=-1)
    measures = [each for each in (*MEASURES, *BEFORE, *GENERAL) if reviewed.has(each)]
    return {
        "name": shown_name(images.path),
        "key": _key(images),
        "version": __version__,
        "unfinished": reviewed.missing,
        "mip": images.mip,
        "size": [x_size, y_size],
        "picture": [-(-x_size // factor), -(-y_size // factor)],
        "fields": reviewed.labels,
        "window": WINDOW,
        "measures": [vars(measure) for measure in measures],
        "no_link": reviewed.no_link,
        "serve": [] if texts.spec is None or reviewed.no_link else commands_to_serve(texts.spec),
        "columns": {
            "place": places,
            "pair": reviewed.pairs.tolist(),
            "start": None if starts is None else starts.tolist(),
            "note": [note.description[:SHOWN_OF_NOTE] for note in notes],
            "tags": [note.tags for note in notes],
            "state": [texts.state(place, fields_at[place].tolist() if reviewed.measurers else ()) for place in places],
        },
        "general": {each.name: _short(each, reviewed.general) for each in measures if not each.of_field},
        "numbers": [{each.name: _short(each, some) for each in measures if each.of_field} for some in reviewed.numbers],
    }


def _short(measure: Measure, numbers: Mapping[str, np.ndarray]) -> list[float]:
    """The values of a measure without digits that nobody looks at, which would take twice the room."""
    return [float(f"{value:.6g}") for value in measure.shown(numbers[measure.name]).tolist()]


def _key(images: Collection) -> str:
    """What names the dataset in a browser: the same for the same boxes, however many of them there are yet."""
    made_of = before_joining(parsed(images.provenance))
    known = made_of.get("spec_without_pairs_sha256") or (as_text(made_of) if made_of else next(images.fingerprints()))
    return sha256(f"{known} {images.mip} {images.shape[1:]}")[:16]


# The table


def write_csv(path: PathLike, reviewed: Reviewed) -> None:
    """A row for each pair; what is not known is empty."""
    notes = [reviewed.texts.note(place) for place in reviewed.places.tolist()]
    columns: dict[str, list[Any]] = {"pair": reviewed.pairs.tolist(), "place": reviewed.places.tolist()}
    if reviewed.starts is not None:
        sides = [f"{role}_{axis}" for role in ("source", "target") for axis in "xyz"]
        columns |= dict(zip(sides, reviewed.starts.reshape(-1, 6).T.tolist(), strict=True))
    columns |= {"valid": _cells(reviewed.general["valid"])}
    columns |= {"tags": [" ".join(note.tags) for note in notes], "note": [note.description for note in notes]}
    columns |= {each.name: _cells(reviewed.numbers[0][each.name]) for each in BEFORE}
    for label, numbers in zip(reviewed.labels, reviewed.numbers, strict=False):
        end = f"_{label}" if len(reviewed.labels) > 1 else ""
        columns |= {each.name + end: _cells(numbers[each.name]) for each in MEASURES}
    with written_whole(path) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))


def _cells(values: np.ndarray) -> list[str]:
    return [f"{value:.6g}" if np.isfinite(value) else "" for value in values.tolist()]


# The contact sheet

_TITLES = {"worst": "the worst first", "best": "the best first", "spread": "from the worst to the best"}


def write_sheet(path: PathLike, reviewed: Reviewed, rows: int, order: str) -> None:
    """A PNG file with a row for each of some pairs. order: "worst", "best" or "spread"."""
    entries = _chosen(reviewed, rows, order)
    drawn = []
    for entry, place in zip(entries, reviewed.places[entries].tolist(), strict=True):
        with told_of(reviewed.images, place):
            look = look_at(reviewed.images, reviewed.measurers, place)
            drawn.append(SheetRow(tuple(_label(reviewed, entry)), _sheet_pictures(look)))
    headings = ["source", "target", "overlay before", "overlay after"][: len(drawn[0].pictures)]
    title = f"{shown_name(reviewed.images.path)}: {len(drawn)} of {len(reviewed.places)} pairs, {_TITLES[order]}"
    resolution, mip = reviewed.texts.resolution, reviewed.images.mip
    scale = Scale(1, "px") if resolution is None or mip is None else Scale(resolution[0] * 2**mip, "nm")
    write_bytes_whole(path, pictures.as_png(draw_sheet(title, headings, drawn, scale)))


def _chosen(reviewed: Reviewed, rows: int, order: str) -> list[int]:
    worst = reviewed.worst_first()
    rows = min(rows, len(worst))
    if order == "spread":
        worst = worst[np.linspace(0, len(worst) - 1, rows).astype(int)]
    elif order == "best":
        worst = worst[::-1]
    return [int(entry) for entry in worst[:rows]]


def _sheet_pictures(look: PairLook) -> tuple[np.ndarray, ...]:
    greys = (look.grey_source, look.grey_target)
    alone = (pictures.tinted(np.stack([each.values] * 3, axis=-1), each.invalid) for each in greys)
    longest = max(look.source.shape)
    overlays = [look.overlay(longest, through_field) for through_field in (False, True)]
    return (*alone, *overlays[: 1 + any(look.fields)])


def _label(reviewed: Reviewed, entry: int) -> Iterator[str]:
    numbers = {name: values[entry] for name, values in reviewed.numbers[-1].items()}
    yield f"pair {reviewed.pairs[entry]}"
    if reviewed.starts is not None:
        (x, y, z), (_, _, target_z) = reviewed.starts[entry].tolist()
        yield f"x {x}, y {y}, z {z} to {target_z}"
    yield f"correlation {numbers['correlation_before']:.2f} before"
    if reviewed.labels:
        yield f"correlation {numbers['correlation_after']:.2f} after"
        yield f"worst windows {numbers['cpc_low_after']:.2f}"
        yield f"displacement {numbers['displacement_median']:.1f} px"
        yield f"at most {numbers['displacement_max']:.1f} px"
        yield f"folded {numbers['folded']:.2%}"
    yield f"valid area {reviewed.general['valid'][entry]:.0%}"


# The terminal

_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 40


def summary(reviewed: Reviewed) -> Iterator[tuple[str, str]]:
    """The lines of the summary: how many pairs there are, and the table of quality of each field."""
    missing = f"; {reviewed.missing} more are not there yet, or lack a field" if reviewed.missing else ""
    yield "pairs", f"{len(reviewed.places)}{missing}"
    if not reviewed.labels:
        before = reviewed.numbers[0]["correlation_before"]
        known = before[np.isfinite(before)]
        yield (
            "correlation",
            f"{np.median(known):.2f} without a field (median of the pairs)" if known.size else "unknown",
        )
    for label, numbers in zip(reviewed.labels, reviewed.numbers, strict=False):
        if len(reviewed.labels) > 1:
            yield "field", label
        yield from QualityTable(numbers, reviewed.pairs).lines()


def histograms(reviewed: Reviewed) -> str:
    """A histogram of each measure, as text."""
    blocks = [[_histogram(each, reviewed.general[each.name]) for each in GENERAL if reviewed.has(each)]]
    blocks.append([_histogram(each, reviewed.numbers[0][each.name]) for each in BEFORE if reviewed.has(each)])
    for label, numbers in zip(reviewed.labels, reviewed.numbers, strict=False):
        lines = [_histogram(each, numbers[each.name]) for each in MEASURES if reviewed.has(each)]
        blocks.append([label, *lines] if len(reviewed.labels) > 1 else lines)
    return "\n".join(line for block in blocks for line in block)


def _histogram(measure: Measure, values: np.ndarray) -> str:
    known = measure.shown(values[np.isfinite(values)])
    if not known.size:
        return f"{measure.label:<24} not known of any pair"
    low, high = (f"{end:.{measure.digits}f} {measure.unit}".rstrip() for end in (known.min(), known.max()))
    if known.min() == known.max():
        return f"{measure.label:<24} {low:>11} of all pairs"
    counts, _ = np.histogram(known, _BINS)
    heights = np.ceil(counts * (len(_BARS) - 1) / counts.max()).astype(int)  # so that one pair is seen beside thousands
    return f"{measure.label:<24} {low:>11} |{''.join(_BARS[height] for height in heights)}| {high}"
