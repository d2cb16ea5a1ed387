"""From a dataset or a spec to a split: parts of its pairs that share no tissue."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..annotations.coordinate_spaces import Resolution
from ..datasets.collection import Collection, open_collection
from ..errors import UsageError, WorkError
from ..files import Existing, PathLike
from ..pair_selection import first_alike, narrow, pairs_text
from ..spec import read_spec
from ..splits import LEFT_OUT, WAYS, PairBoxes, Part, Split, divide, leaks, read_split, split_text
from ..tissue import HIGH, LOW
from .pair_files import PairFile, check_paths, write_pair_files
from .pair_quality import stored_numbers
from .report import table
from .review_texts import spec_of

NAMES = ("train", "validation", "test")
_NUMBERS = {"correlation_after": "correlation", "cpc_median_after": "by windows", "displacement_median": "moved (px)"}
_TOLERATED = 0.02  # by which a part's share may differ from what was asked for before the summary says why


@dataclass(frozen=True)
class SplitOptions:
    """split_pairs's arguments.

    image_paths: image files or folders of shards, or none and a spec_path. fractions: of the pairs, one for each part,
    1 in all. names: of the parts; None for the first of `NAMES`. by: one of `splits.WAYS`. gap: sections that are no
    farther apart count as the same tissue. field_paths: field files or folders of shards that hold the numbers of
    pairs, for the summary.
    """

    dst_path: PathLike
    fractions: tuple[float, ...]
    by: str
    image_paths: tuple[str, ...] = ()
    spec_path: str | None = None
    names: tuple[str, ...] | None = None
    gap: int = 1
    seed: int = 0
    field_paths: tuple[str, ...] = ()
    existing: Existing = Existing.REFUSED


@dataclass(frozen=True)
class SplitMade:
    """A split that was written, for its summary.

    done: whether it was there already. rows: of the table of parts, the headings first.
    """

    path: PathLike
    split: Split
    done: bool
    rows: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        split = self.split
        divided = sum(len(part.pairs) for part in split.parts)
        lines = [
            ("output", f"{self.path}{', done already' if self.done else ''}"),
            ("divided", f"{pairs_text(divided)} by {split.by}, with a gap of {split.gap} and the seed {split.seed}"),
            ("left out", _left_out(split)),
            *(("remark", each) for each in self.remarks),
        ]
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        rows = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in self.rows]
        return "\n".join([table(lines), "", *rows])


def split_pairs(options: SplitOptions) -> SplitMade:
    """Divide the pairs of a dataset into parts that share no tissue, and write which pairs are in which part."""
    names = _names(options)
    check_paths(options.dst_path)
    _check_is_no_input(options)
    found = _read(options)
    numbers = _numbers(options.field_paths, found.pairs.starts)
    part_of = divide(found.pairs, options.fractions, options.by, options.gap, options.seed)
    leak = leaks(found.pairs, part_of, options.gap)
    if leak is not None:  # a bug of this toolkit
        one, other = (found.pairs.starts[pair].tolist() for pair in leak)
        raise WorkError(
            f"{options.dst_path} was not written: the pairs {one} and {other} would share tissue; report it"
        )
    split = Split(
        parts=tuple(
            Part(name, fraction, found.pairs.starts[part_of == number])
            for number, (name, fraction) in enumerate(zip(names, options.fractions, strict=True))
        ),
        left_out=found.pairs.starts[part_of == LEFT_OUT],
        by=options.by,
        gap=options.gap,
        seed=options.seed,
        made_from=(options.spec_path,) if options.spec_path is not None else options.image_paths,
    )
    file = PairFile(Path(options.dst_path), lambda: split_text(split), len(part_of), _pairs_in_split)
    (done,) = write_pair_files([file], options.existing)
    rows = _rows(split, part_of, found, numbers)
    return SplitMade(options.dst_path, split, done, tuple(rows), tuple(_remarks(split, part_of, found)))


def _names(options: SplitOptions) -> tuple[str, ...]:
    fractions, names = options.fractions, options.names
    if len(fractions) < 2 or not all(0 < each < 1 for each in fractions) or not math.isclose(sum(fractions), 1):
        text = " ".join(f"{each:g}" for each in fractions)
        raise UsageError(f"--fractions {text}: want two or more numbers that are above 0 and have the sum 1")
    if names is None:
        if len(fractions) > len(NAMES):
            raise UsageError(f"--fractions gives {len(fractions)} parts: want as many --names")
        names = NAMES[: len(fractions)]
    if len(names) != len(fractions) or len(set(names)) < len(names) or not all(names):
        raise UsageError(f"--names {' '.join(names)}: want {len(fractions)} different names, one for each fraction")
    if options.by not in WAYS:
        raise UsageError(f"--by {options.by}: want one of {', '.join(WAYS)}")
    return names


def _check_is_no_input(options: SplitOptions) -> None:
    inputs = [*options.image_paths, *options.field_paths, *([options.spec_path] if options.spec_path else [])]
    for path in inputs:
        if Path(path).resolve() == Path(options.dst_path).resolve():
            raise UsageError(f"{path} is to be read, and cannot be the split too: want another --dst_path")


def _pairs_in_split(path: Path) -> int:
    split = read_split(path)
    return sum(len(part.pairs) for part in split.parts) + len(split.left_out)


# What is read


@dataclass(frozen=True)
class _Found:
    """resolution: a voxel's nm at MIP 0; None where it is not known, and why_not says why."""

    pairs: PairBoxes
    resolution: Resolution | None
    why_not: str = ""


def _read(options: SplitOptions) -> _Found:
    if options.spec_path is not None:
        return _of_spec(options.spec_path)
    several = []
    volume = None
    for path in options.image_paths:
        with closing(open_collection(path)) as images:
            several.append(_boxes_of(images))
            spec = spec_of(images)
            volume = volume or (None if spec is None else spec.image.path)
    return _Found(PairBoxes.joined(several), *_resolution(volume))


def _of_spec(path: str) -> _Found:
    spec = read_spec(path)
    if spec.field is not None:
        raise UsageError(
            f"{path} has a field, which moves the boxes, and only image files say where to: want --image_path with the "
            "dataset that was made of it"
        )
    return _Found(PairBoxes.joined([PairBoxes.of(spec.starts(), 0, spec.box_size())]), *_resolution(spec.image.path))


def _boxes_of(images: Collection) -> PairBoxes:
    if images.kind == "field":
        raise UsageError(f"{images.path}: field file, where image file is wanted: --field_path takes field files")
    if not images.done.all():
        raise UsageError(f"{images.path} is not finished: want it whole, so that all of its pairs are divided")
    images.check_whole()
    starts = images.arrays.get("start")
    if starts is None or starts.shape[1:] != (2, 3) or images.mip is None:
        lacking = (
            "at which MIP its images are" if images.mip is None and starts is not None else "where its boxes start"
        )
        raise UsageError(
            f"{images.path} does not say {lacking}, as files of older tools do not: want files of make_dataset.py or "
            "download_image.py, or the spec with --spec_path"
        )
    x_size, y_size = images.shape[2:]
    translations = images.arrays.get("translation", 0)
    return PairBoxes.of(starts, translations, (x_size << images.mip, y_size << images.mip))


def _resolution(volume: str | None) -> tuple[Resolution | None, str]:
    from ..volumes.extent import read_extent

    if volume is None:
        return None, "the files do not say which volume they are from"
    try:
        return read_extent(volume).resolution, ""
    except (UsageError, WorkError) as error:
        return None, str(error)


def _numbers(paths: Sequence[str], starts: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of pairs that field files hold, (N,) by name, NaN where they do not; those of the first file win."""
    numbers: dict[str, np.ndarray] = {name: np.full(len(starts), np.nan) for name in (_NUMBERS if paths else ())}
    for path in reversed(paths):
        with closing(open_collection(path)) as fields:
            stored, theirs = stored_numbers(fields), fields.arrays.get("start")
        if stored is None or theirs is None:
            raise UsageError(
                f"{path} holds no numbers of pairs with their starts: want a field file of generate_fields.py, of "
                "concat_fields.py, or of make_dataset.py --quality"
            )
        first = first_alike(narrow(np.concatenate([theirs, starts])))[len(theirs) :]
        known = first < len(theirs)
        for name, values in numbers.items():
            values[known] = stored[name][first[known]]
    return numbers


# The summary


def _left_out(split: Split) -> str:
    count = len(split.left_out)
    why = {
        "section": "they straddle a border between parts, or lie within the gap at one",
        "block": "they straddle a border between parts",
    }
    return str(count) + (f": {why[split.by]}" if count else "")


def _remarks(split: Split, part_of: np.ndarray, found: _Found) -> Iterator[str]:
    divided = int((part_of != LEFT_OUT).sum())
    off = max(abs(len(part.pairs) / divided - part.fraction) for part in split.parts)
    if off > max(_TOLERATED, 1 / divided):
        why = (
            "pairs that hang together by shared tissue stay together" if split.by == "point" else _why_cuts_miss(split)
        )
        yield f"the shares of the parts differ from --fractions by up to {off:.0%}, because {why}"
    if found.resolution is None:
        yield f"areas are in pixels, as the size of a voxel is not known: {found.why_not}"


def _why_cuts_miss(split: Split) -> str:
    return f"a border lies between {'sections' if split.by == 'section' else 'boxes'}, and pairs at it are left out"


def _rows(
    split: Split, part_of: np.ndarray, found: _Found, numbers: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, ...]]:
    unit = "Mpx at MIP 0" if found.resolution is None else "µm²"
    headings = (_NUMBERS[name] for name in numbers)
    yield ("part", "pairs", "share", "wanted", "sections", f"area ({unit})", *headings)
    x_width, y_width, _ = found.resolution or (1, 1, 1)
    for number, part in enumerate(split.parts):
        own = part_of == number
        boxes = np.unique(found.pairs.corners[own].reshape(-1, 6), axis=0).reshape(-1, 2, 3)
        x_size, y_size = (boxes[:, HIGH, :2] - boxes[:, LOW, :2]).T
        sections = np.unique(boxes[:, LOW, 2])
        yield (
            part.name,
            str(len(part.pairs)),
            f"{own.sum() / (part_of != LEFT_OUT).sum():.0%}",
            f"{part.fraction:.0%}",
            f"{len(sections)}, from {sections[0]} to {sections[-1]}",
            f"{float((x_size * x_width * (y_size * y_width)).sum()) / 1e6:,.0f}",
            *(_median(values[own]) for values in numbers.values()),
        )


def _median(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return f"{np.median(known):.2f}" if len(known) else "none"
