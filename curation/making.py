"""From a spec to a dataset: HDF5 files in a folder, or a CloudVolume layer."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from . import runner
from .datasets import FACTS, FIELD_FACTS, Layout, field_name, image_name, open_dataset
from .errors import UsageError, WorkError
from .files import check_folder, locked
from .plans import CutBox, Plan, distinct_boxes, free_bytes, repeats
from .report import Report, report_of
from .spec import Spec, read_spec, sha256
from .writing import Writer, is_finished, partial_path

if TYPE_CHECKING:
    from .cutting import Cut
    from .reading import Reader

_WORKERS_NEED = ("cloudvolume", "h5py", "isal", "msgspec")

# What needs CloudVolume is imported where it is used: it takes a second, and a fault of the spec is told before.


@dataclass(frozen=True)
class Options:
    """make_dataset's arguments.

    missing: "black" or "fail", what a chunk is that the store does not have. min_valid: pairs of which either image
    has a smaller fraction of valid pixels are left out.
    """

    spec_path: str
    dst_path: str
    parallel: int
    suffix: str | None = None
    decimals: int | None = 2
    missing: str = "black"
    min_valid: float | None = None
    overwrite: bool = False
    dry_run: bool = False

    @property
    def to_layer(self) -> bool:
        """Whether the destination is a cloud path."""
        return "://" in self.dst_path


def make_dataset(options: Options) -> Report | Plan:
    """Cut a spec's pairs out of its volumes; with `dry_run` only say what that would be."""
    spec = read_spec(options.spec_path)
    if options.to_layer:
        if options.min_valid is not None:
            raise UsageError("--min_valid leaves pairs out of files; a layer has a section for each")
        return _make_layer(spec, options)
    check_folder(options.dst_path)
    return _make_files(spec, options)


def _make_files(spec: Spec, options: Options) -> Report | Plan:
    starts = spec.starts()
    targets = _targets(spec, starts, options)
    layouts = _layouts(spec, starts, options)
    with ExitStack() as stack:
        if not options.dry_run:
            stack.enter_context(locked(targets[0]))
        pairs = list(zip(targets, layouts, strict=True))
        finished = [is_finished(target, layout.identity, options.overwrite) for target, layout in pairs]
        for target in (target for target, is_done in zip(targets, finished, strict=True) if is_done):
            if not options.dry_run:  # a run that was killed right after it finished leaves its partial file
                partial_path(target).unlink(missing_ok=True)
        if all(finished):
            raise UsageError(f"{targets[0]} is there already, finished: --overwrite replaces it")
        if options.parallel > 1 and not options.dry_run:
            runner.warm_up(*_WORKERS_NEED)
        reader = _checked_reader(spec, starts, options)
        if options.dry_run:
            return _plan(tuple(map(str, targets)), starts, reader, sum(_raw_bytes(layout) for layout in layouts))
        writers = [
            None if is_done else stack.enter_context(Writer(target, layout))
            for (target, layout), is_done in zip(pairs, finished, strict=True)
        ]
        from .cutting import CutWork, Sink, drive

        sink = Sink(len(starts), writers[0], writers[1] if len(writers) > 1 else None)
        done = sink.done()
        work = CutWork(_without_pairs(spec), options.decimals, missing=options.missing)
        retries = drive(work, distinct_boxes(starts, done), options.parallel, sink.put)
        keep = _kept(writers[0], targets[0], len(starts), options.min_valid)
        for writer in writers:
            if writer is not None:
                writer.finish(keep)
    return report_of(targets[0], targets, int(done.sum()), retries)


def _targets(spec: Spec, starts: np.ndarray, options: Options) -> list[Path]:
    folder = Path(options.dst_path)
    targets = [folder / image_name(starts, spec.dst_mip)]
    if spec.field is not None:
        targets.append(folder / field_name(starts, spec.dst_mip, options.suffix))
    return targets


def _layouts(spec: Spec, starts: np.ndarray, options: Options) -> list[Layout]:
    """Of the image file and, if the spec has a field, of the field file."""
    text = spec.text()
    identity = {
        "spec_sha256": sha256(text),
        "field_decimals": options.decimals,
        "min_valid": options.min_valid,
        "missing": options.missing,
    }
    attributes: dict[str, Any] = {"spec": text, "spec_sha256": sha256(text), "mip": spec.dst_mip, "anchor": "start"}
    if options.min_valid is not None:
        attributes["min_valid"] = options.min_valid
    shape = (len(starts), 2, spec.x_size, spec.y_size)
    arrays = {"start": starts, "pair": np.arange(len(starts))}
    images = {**arrays, **_notes(spec)}
    layouts = [Layout(shape, 2, images, tuple(FACTS), identity, attributes)]
    if spec.field is not None:
        attributes = {**attributes, "decimals": "none" if options.decimals is None else options.decimals}
        layouts.append(Layout(shape, 1, arrays, FIELD_FACTS, identity, attributes))
    return layouts


def _notes(spec: Spec) -> dict[str, np.ndarray]:
    """`note`, (N,): what the spec says of each pair, as JSON; "" where it says nothing. Left out if it says nothing."""
    notes = spec.notes()
    if not notes:
        return {}
    texts = [msgspec.json.encode(notes[index]).decode() if index in notes else "" for index in range(len(spec.pairs))]
    return {"note": np.array(texts, object)}


def _checked_reader(spec: Spec, starts: np.ndarray, options: Options) -> "Reader":
    from .reading import Reader, check_boxes, check_volumes
    from .volumes import Volumes

    reader = Reader(spec, Volumes(missing=options.missing))
    check_volumes(reader)
    check_boxes(reader, starts)
    return reader


def _plan(outputs: tuple[str, ...], starts: np.ndarray, reader: "Reader", output_bytes: int) -> Plan:
    boxes = distinct_boxes(starts, np.zeros(starts.shape[:2], bool))
    chunks = set()
    leaving = 0
    for box in boxes:
        windows = [(volume, window) for _, volume, window in reader.windows(box.start)]
        chunks |= {(volume.path, volume.mip, start) for volume, window in windows for start in volume.chunks(window)}
        leaving += any(volume.overlap(window) < 1 for volume, window in windows)
    free = None if "://" in outputs[0] else free_bytes(Path(outputs[0]).parent)
    return Plan(outputs, len(starts), len(boxes), repeats(starts), len(chunks), leaving, output_bytes, free)


def _raw_bytes(layout: Layout) -> int:
    return 4 * int(np.prod(layout.main))


def _kept(images: Writer | None, target: Path, pairs: int, min_valid: float | None) -> np.ndarray:
    """(N,) bool: the pairs that go into the files. An image file finished before the field file has decided it."""
    keep = np.ones(pairs, bool)
    if images is None:
        data = open_dataset(target)
        with data.file:
            return np.isin(np.arange(pairs), data.file["pair"][:])
    if min_valid is not None:
        keep = (images.facts["valid"] >= min_valid).all(axis=1)
    if not keep.any():
        raise WorkError(f"no pair has a valid area of {min_valid:g} in both images; the same with a lower --min_valid?")
    return keep


def _make_layer(spec: Spec, options: Options) -> Report | Plan:
    if options.parallel > 1 and not options.dry_run:
        runner.warm_up(*_WORKERS_NEED)
    from .cutting import CutWork, drive
    from .layers import LayerInTheMaking

    starts = spec.starts()
    identity = {"spec_sha256": sha256(spec.text()), "missing": options.missing}
    layer = LayerInTheMaking(options.dst_path, (spec.x_size, spec.y_size), starts.shape[0] * 2)
    layer.check(identity, options.overwrite)
    reader = _checked_reader(spec, starts, options)
    if options.dry_run:
        return _plan((options.dst_path,), starts, reader, 8 * len(starts) * spec.x_size * spec.y_size)
    x, y, z = reader.image.resolution
    scale = 2.0 ** (spec.dst_mip - spec.image.src_mip)
    done = layer.begin(identity, (x * scale, y * scale, z)).reshape(-1, 2)
    # Where a section came from is known only while it is made: of sections found done the report says nothing.
    facts = {name: np.zeros((len(starts), 2, *shape), dtype) for name, (dtype, shape) in FACTS.items()}

    def put(box: CutBox, cut: "Cut") -> None:
        for place in box.places:
            for name, values in facts.items():
                values[place.pair, place.role] = cut.facts[name]

    work = CutWork(_without_pairs(spec), options.decimals, options.dst_path, options.missing)
    retries = drive(work, distinct_boxes(starts, done), options.parallel, put)
    layer.finish(identity)
    return Report((options.dst_path,), starts, np.arange(len(starts)), facts, int(done.sum()), retries)


def _without_pairs(spec: Spec) -> Spec:
    return msgspec.structs.replace(spec, pairs=())
