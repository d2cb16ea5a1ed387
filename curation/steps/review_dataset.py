"""From a finished or growing dataset to what people look at: a page, a contact sheet, a table and a summary."""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from .. import runner
from ..annotations.coordinate_spaces import Resolution
from ..datasets.collection import Collection, open_collection
from ..datasets.facts import QUALITY_FACTS
from ..datasets.matching import check_same_mip
from ..errors import UsageError, WorkError
from ..files import check_destination, check_name, make_folder, shown, shown_name
from ..progress import progress, say
from ..review.folder import begin_review, check_review_folder, finish_review
from .pair_quality import PairMeasurer
from .report import size_text, table
from .review_outputs import Reviewed, histograms, page_data, summary, write_csv, write_sheet
from .review_texts import PairTexts, spec_of
from .review_work import PictureOptions, ReviewedPair, ReviewWork, is_growing, look_at, told_of

LONGEST_RUN = 8  # pairs given to a worker at a time
_TRIED = 4  # pairs from whose pictures the size of all is estimated


@dataclass(frozen=True)
class ReviewOptions:
    """review_dataset's arguments.

    field_paths: field files or folders of shards, in the order of their stages. dst_path: the folder of the page; None
    for none. size: pixels, the longest side of a pair's pictures. quality: of their JPEG files. csv, sheet: files to
    write. rows, order: of the sheet: how many pairs, and which: "worst", "best" or "spread".
    """

    image_path: str
    field_paths: tuple[str, ...] = ()
    dst_path: str | None = None
    size: int = 1024
    quality: int = 60
    csv: str | None = None
    sheet: str | None = None
    rows: int = 8
    order: str = "worst"
    parallel: int = 1
    overwrite: bool = False


@dataclass(frozen=True)
class Review:
    """What a review found and made, for its summary. histograms: text, or ""."""

    lines: tuple[tuple[str, str], ...]
    histograms: str

    def __str__(self) -> str:
        return table(self.lines) + (f"\n\n{self.histograms}" if self.histograms else "")


def review_dataset(options: ReviewOptions) -> Review:
    """Look at the pairs of a dataset, and write what was asked for."""
    folder = None if options.dst_path is None else Path(options.dst_path)
    _check_outputs(options, folder)
    with ExitStack() as stack:
        opened = _open(options, stack)
        work = ReviewWork(
            images=Path(options.image_path),
            fields=tuple(map(Path, options.field_paths)),
            folder=folder,
            options=PictureOptions(options.size, options.quality),
            resolution=opened.resolution,
        )
        if folder is not None:
            _announce(folder, work.options, opened)
            begin_review(folder)
        reviewed = _run(work, opened, options)
        if folder is not None:
            finish_review(folder, page_data(reviewed, work.options), set(reviewed.places.tolist()))
        for path in (options.csv, options.sheet):
            if path is not None:
                make_folder(Path(path).parent)
        if options.csv is not None:
            write_csv(options.csv, reviewed)
        if options.sheet is not None:
            write_sheet(options.sheet, reviewed, options.rows, options.order)
        return Review(tuple(_lines(options, reviewed)), histograms(reviewed) if folder is None else "")


def _check_outputs(options: ReviewOptions, folder: Path | None) -> None:
    if folder is not None:
        check_review_folder(folder, options.overwrite)
    for path in (options.csv, options.sheet):
        if path is not None:
            check_destination(Path(path).parent)
            check_name(path)
            if h5py.is_hdf5(path):
                raise UsageError(f"{path} is an HDF5 file, which would be replaced: want another name")
    if options.csv and options.sheet and os.path.abspath(options.csv) == os.path.abspath(options.sheet):
        raise UsageError(f"{options.csv} is the table and the sheet: want two names")


def _lines(options: ReviewOptions, reviewed: Reviewed) -> list[tuple[str, str]]:
    lines = []
    if options.dst_path is not None:
        lines.append(("output", f"{Path(options.dst_path) / 'index.html'}, which any browser opens"))
        lines.append(("size", f"{size_text(reviewed.bytes)} of pictures"))
        if reviewed.no_link:
            lines.append(("no links", reviewed.no_link))
    lines += [(name, path) for name, path in (("table", options.csv), ("sheet", options.sheet)) if path is not None]
    return [*lines, *summary(reviewed)]


# What is read


@dataclass(frozen=True)
class _Opened:
    """The open files. pairs: (P,), the places of the pairs that have all that is asked for.

    resolution: a voxel's nm, for links and scale bars; None where it is not known, and no_link says why.
    """

    images: Collection
    fields: tuple[Collection, ...]
    measurers: tuple[PairMeasurer, ...]
    pairs: np.ndarray
    resolution: Resolution | None
    no_link: str

    @property
    def is_growing(self) -> bool:
        """Whether a file is still being written."""
        return is_growing(self.images, *self.fields)


def _open(options: ReviewOptions, stack: ExitStack) -> _Opened:
    images = stack.enter_context(closing(open_collection(options.image_path)))
    if images.kind == "field":
        raise UsageError(f"{images.path}: field file, where image file is wanted: --field_path takes field files")
    fields = tuple(stack.enter_context(closing(open_collection(path))) for path in options.field_paths)
    for field in fields:
        if field.kind == "image":
            raise UsageError(f"{field.path}: image file, where field file is wanted")
        check_same_mip(images, field)
    measurers = tuple(PairMeasurer(images, field) for field in fields)
    there = images.done.copy()
    for measurer in measurers:
        there &= measurer.places >= 0
    if not there.any():
        paths = ", ".join(map(str, (images.path, *(field.path for field in fields))))
        raise UsageError(f"{paths}: no pair is there yet with {'all of its fields' if fields else 'both images'}")
    return _Opened(images, fields, measurers, np.flatnonzero(there), *_resolution(images))


def _resolution(images: Collection) -> tuple[Resolution | None, str]:
    """A voxel's nm, from the volume of the images; or None, and why links cannot be made."""
    from ..volumes.extent import read_extent

    spec = spec_of(images)
    if spec is None or "start" not in images.arrays:
        return None, f"{shown(images.path)} does not say which volume its images are from"
    try:
        return read_extent(spec.image.path).resolution, ""
    except (UsageError, WorkError) as error:
        return None, f"the voxel size of the volume cannot be read ({shown(str(error))})"


def _announce(folder: Path, options: PictureOptions, opened: _Opened) -> None:
    """Say how large the review will be, by that of some of its pairs, before any of it is written."""
    tried = opened.pairs[np.linspace(0, len(opened.pairs) - 1, min(_TRIED, len(opened.pairs))).astype(int)]
    sizes = []
    for place in tried.tolist():
        with suppress(WorkError) if opened.is_growing else nullcontext(), told_of(opened.images, place):
            sizes.append(look_at(opened.images, opened.measurers, place).bytes(options))
    size = int(np.mean(sizes or 0) * len(opened.pairs))
    free = shutil.disk_usage(folder if folder.exists() else folder.absolute().parent).free
    if size > free:
        raise UsageError(
            f"{folder}: the review will take about {size_text(size)}, and {size_text(free)} are free there: "
            "want more room, or smaller pictures with --size or --quality"
        )
    say(f"{folder} will take about {size_text(size)}; --size and --quality make it smaller")


def _run(work: ReviewWork, opened: _Opened, options: ReviewOptions) -> Reviewed:
    pairs = opened.pairs.tolist()
    runs = [pairs[first : first + LONGEST_RUN] for first in range(0, len(pairs), LONGEST_RUN)]
    if options.parallel > 1 and len(runs) > 1:
        runner.warm_up("h5py", "isal", "msgspec", "PIL.Image", threads=1)
    found: dict[int, ReviewedPair] = {}
    with (
        progress(len(pairs), "pairs looked at", "pair") as bar,
        closing(runner.run(work, runs, options.parallel)) as results,
    ):
        for number, pair in results:
            if pair is not None:
                found[number] = pair
            bar.update()
    if not found:
        raise UsageError(f"{opened.images.path}: no pair of it can be read yet; try again later")
    kept = [pair for _, pair in sorted(found.items())]
    places = np.array([pair.place for pair in kept])
    numbers = tuple(
        {name: np.array([getattr(pair.numbers[field], name) for pair in kept]) for name in QUALITY_FACTS}
        for field in range(max(1, len(opened.fields)))
    )
    general = {"valid": np.array([pair.valid for pair in kept])}
    if "start" in opened.images.arrays:
        general["section"] = opened.images.arrays["start"][places, 0, 2]
    return Reviewed(
        texts=PairTexts(opened.images, opened.fields, opened.resolution),
        measurers=opened.measurers,
        labels=_labels(options.field_paths),
        places=places,
        numbers=numbers,
        general=general,
        bytes=sum(pair.bytes for pair in kept),
        no_link=opened.no_link,
    )


def _labels(paths: Sequence[str]) -> tuple[str, ...]:
    """Short names for field files, which differ from one another."""
    names = tuple(shown_name(path).removesuffix(".h5") for path in paths)
    return names if len(set(names)) == len(names) else tuple(map(shown, paths))
