"""From a spec to a dataset: HDF5 files in a folder, or a CloudVolume layer."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..datasets.facts import BOX_FACTS, FIELD_FILE_FACTS
from ..datasets.layout import Layout, field_name, image_name
from ..errors import UsageError
from ..files import check_folder
from ..provenance import provenance, sha256
from ..spec import Spec, note_json, read_spec
from .box_job import BoxJob, OutputFile, cut_boxes, plan_box_jobs, plan_of, run_box_jobs, warm_up
from .box_tasks import BoxResult, BoxTask, box_tasks
from .box_work import RETRY_FOR_S, BoxWork
from .report import Plan, Report


@dataclass(frozen=True)
class MakeDatasetOptions:
    """make_dataset's arguments.

    decimals: of stored fields, None for all there are. missing: "black" or "fail", what a chunk is that the store does
    not have. min_valid: pairs of which either image has a smaller fraction of valid pixels are left out. retry_for:
    seconds for which a store that is away is waited for.
    """

    spec_path: str
    dst_path: str
    parallel: int
    suffix: str | None = None
    decimals: int | None = 2
    missing: str = "black"
    min_valid: float | None = None
    retry_for: float = RETRY_FOR_S
    overwrite: bool = False
    dry_run: bool = False

    @property
    def to_layer(self) -> bool:
        """Whether the destination is a cloud path."""
        return "://" in self.dst_path


def make_dataset(options: MakeDatasetOptions) -> Report | Plan:
    """Cut a spec's pairs out of its volumes; with `dry_run` only say what that would be."""
    if "/" in (options.suffix or ""):
        raise UsageError(f"--suffix {options.suffix}: want a tag of the field file's name, without /")
    spec = read_spec(options.spec_path)
    if options.to_layer:
        if options.min_valid is not None:
            raise UsageError("--min_valid leaves pairs out of files; a layer has a section for each")
        return _make_layer(spec, options)
    check_folder(options.dst_path)
    job = box_job(spec, options)
    if options.dry_run:
        return plan_box_jobs([job], options.overwrite)
    return run_box_jobs([job], options.parallel, options.overwrite)[0]


def box_job(spec: Spec, options: MakeDatasetOptions) -> BoxJob:
    """The job that makes a spec's dataset: an image file and, if the spec has a field, a field file."""
    starts = spec.starts()
    text = spec.text()
    made_of = provenance(
        spec_sha256=sha256(text),
        field_decimals=options.decimals,
        min_valid=options.min_valid,
        missing=options.missing,
    )
    attributes: dict[str, Any] = {"spec": text, "spec_sha256": sha256(text), "mip": spec.dst_mip, "anchor": "start"}
    if options.min_valid is not None:
        attributes["min_valid"] = options.min_valid
    shape = (len(starts), 2, spec.x_size, spec.y_size)
    arrays = {"start": starts, "pair": np.arange(len(starts))}
    folder = Path(options.dst_path)
    images = Layout(shape, 2, {**arrays, **_notes(spec)}, tuple(BOX_FACTS), made_of, attributes)
    residuals = None
    if spec.field is not None:
        attributes = {**attributes, "decimals": "none" if options.decimals is None else options.decimals}
        layout = Layout(shape, 1, arrays, FIELD_FILE_FACTS, made_of, attributes)
        residuals = OutputFile(folder / field_name(starts, spec.dst_mip, options.suffix), layout)
    return BoxJob(
        work=BoxWork(
            _without_pairs(spec), decimals=options.decimals, missing=options.missing, retry_for=options.retry_for
        ),
        starts=starts,
        images=OutputFile(folder / image_name(starts, spec.dst_mip), images),
        residuals=residuals,
        min_valid=options.min_valid,
    )


def _notes(spec: Spec) -> dict[str, np.ndarray]:
    """`note`, (N,): each pair's note as JSON, or ""; nothing where no pair has one."""
    notes = spec.notes()
    if not notes:
        return {}
    texts = [note_json(notes[index]) if index in notes else "" for index in range(len(spec.pairs))]
    return {"note": np.array(texts, object)}


def _without_pairs(spec: Spec) -> Spec:
    return msgspec.structs.replace(spec, pairs=())


# A layer as the destination


def _make_layer(spec: Spec, options: MakeDatasetOptions) -> Report | Plan:
    if not options.dry_run:
        warm_up(options.parallel)
    from ..volumes.layer_writer import LayerWriter

    starts = spec.starts()
    made_of = provenance(spec_sha256=sha256(spec.text()), missing=options.missing)
    layer = LayerWriter(options.dst_path, (spec.x_size, spec.y_size), 2 * len(starts))
    layer.check(made_of, options.overwrite)
    job = box_job(spec, options)
    reader = job.work.checked_reader(starts)
    if options.dry_run:
        return plan_of((options.dst_path,), [job], [reader], job.images.layout.raw_bytes, None)
    x, y, z = reader.image.resolution
    scale = 2.0 ** (spec.dst_mip - spec.image.src_mip)
    done = layer.begin(made_of, (x * scale, y * scale, z)).reshape(-1, 2)
    # Where a section came from is known only while it is made: of sections found done the report says nothing.
    facts = {name: np.zeros((len(starts), 2, *how.shape), how.dtype) for name, how in BOX_FACTS.items()}

    def put(task: BoxTask, result: BoxResult) -> None:
        for slot in task.slots:
            for name, value in result.facts.by_name().items():
                facts[name][slot.pair, slot.role] = value

    work = replace(job.work, layer=options.dst_path)
    retries = cut_boxes(work, box_tasks(starts, done), options.parallel, put)
    layer.finish(made_of)
    return Report((options.dst_path,), starts, np.arange(len(starts)), facts, int(done.sum()), retries)
