"""From a spec to a dataset: HDF5 files in a folder, or a CloudVolume layer."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..array_task import array_task
from ..datasets.facts import BOX_FACTS, FIELD_FILE_FACTS, QUALITY_FACTS
from ..datasets.layout import Layout, any_image_name, field_name, image_name
from ..datasets.shard_store import shard_store
from ..datasets.shards import BESIDE_SHARDS, JOB_FILE, SHARD_PAIRS, SPEC_FILE, shard_named
from ..errors import UsageError
from ..fields import BINARY, Decimals
from ..files import Existing, PathLike
from ..pair_selection import Exclusion, read_exclusion
from ..provenance import EXCLUSION, WITH_QUALITY, Provenance, differences, provenance, sha256
from ..spec import Spec, note_json, parse_spec, read_spec
from .box_job import BoxJob, OutputFile, cut_boxes, plan_box_jobs, plan_of, run_box_jobs, warm_up
from .box_shards import BoxShardWork, ShardedBoxes, run_shards, without_spec
from .box_tasks import BoxResult, BoxTask, box_tasks
from .box_work import RETRY_FOR_S, BoxWork, volumes_text
from .report import Plan, Report, free_bytes, table
from .shard_job import FAILED, ShardJob, ShardsMade, ShardStatus, check_claim, found_job
from .units import Queued, fill_queue


@dataclass(frozen=True)
class MakeDatasetOptions:
    """make_dataset's arguments.

    name: of the files, without `.h5`; None: after the first pair's source. decimals: what stored fields are rounded to.
    image_step: what warped targets are rounded to, a power of two, in deviations; None for nothing.
    missing: "black" or "fail", what a chunk is that the store does not have; None is black too, but volumes without any
    chunk are refused. min_valid: pairs are left out of which either image has a smaller fraction of valid pixels.
    retry_for: seconds for which a store that is away is waited for. quality: whether the field file holds the numbers
    of the pairs too. exclude: exclusion files; their pairs are left out, in either direction. shard_pairs: how many
    pairs a shard has, if folders of shards are to be made instead of files; 0: as many as in those that are there, or
    else `SHARD_PAIRS`. task: which part of the shards, as
    `array_task` takes it. queue: where the shards that are missing are queued instead of being made. status: whether
    only to say how far the shards are.
    """

    spec_path: str
    dst_path: str
    parallel: int
    name: str | None = None
    suffix: str | None = None
    decimals: Decimals = BINARY
    image_step: float | None = None
    missing: str | None = None
    min_valid: float | None = None
    retry_for: float = RETRY_FOR_S
    quality: bool = False
    exclude: tuple[PathLike, ...] = ()
    existing: Existing = Existing.REFUSED
    dry_run: bool = False
    shard_pairs: int | None = None
    task: str | None = None
    queue: str | None = None
    status: bool = False

    @property
    def in_shards(self) -> bool:
        """Whether shards are made, which all that is about a part of the work needs."""
        return self.status or any(each is not None for each in (self.shard_pairs, self.task, self.queue))

    @property
    def to_layer(self) -> bool:
        """Whether the destination is a cloud path, and images go there as a layer."""
        return "://" in self.dst_path and not self.in_shards


@dataclass(frozen=True)
class DoneLayer:
    """A layer that was finished before."""

    path: str
    pairs: int

    def __str__(self) -> str:
        return table([("output", self.path), ("pairs", f"{self.pairs}, done already")])


def make_dataset(options: MakeDatasetOptions) -> Report | DoneLayer | Plan | ShardsMade | ShardStatus | Queued:
    """Cut a spec's pairs out of its volumes; with `dry_run` only say what that would be.

    If the output is there already, just as it would be made, it is not touched, and the report says so.
    """
    if "/" in (options.suffix or ""):
        raise UsageError(f"--suffix {options.suffix}: want a tag of the field file's name, without /")
    spec = read_spec(options.spec_path)
    if options.to_layer:
        if options.min_valid is not None:
            raise UsageError("--min_valid leaves pairs out of files; a layer has a section for each")
        if options.exclude:
            raise UsageError("--exclude leaves pairs out of files; a layer has a section for each")
        if options.name is not None:
            raise UsageError("--name is of files; a layer has the name of its --dst_path")
        if options.quality:
            raise UsageError("--quality measures pairs for the field file; with a layer there is none")
        if options.image_step is not None:
            raise UsageError("--image_step rounds the warped targets of an image file; a layer is not rounded")
        return _make_layer(spec, options)
    if options.in_shards:
        return _make_shards(spec, options)
    job = box_job(spec, options)
    if options.dry_run:
        planned = plan_box_jobs([job], options.existing)
        return planned if isinstance(planned, Plan) else planned[0]
    return run_box_jobs([job], options.parallel, options.existing)[0]


def box_job(spec: Spec, options: MakeDatasetOptions, exclusion: Exclusion | None = None) -> BoxJob:
    """The job that makes a spec's dataset: an image file and, if the spec has a field, a field file.

    The first pair of the spec names the files, and every pair keeps its place in the spec, whether pairs are excluded
    or not: a dataset keeps its name when a review has left pairs out of it. exclusion: what the options' files leave
    out, if that is known.
    """
    of_all = spec.starts()
    if exclusion is None and options.exclude:
        exclusion = read_exclusion(options.exclude, of_all)
    places = _kept_places(of_all, exclusion, options)
    starts = of_all[places]
    text = spec.text()
    of_spec = _of_spec(spec, text)
    missing = options.missing or "black"
    if options.quality and spec.field is None:
        raise UsageError("--quality measures what the field makes of each pair, and this spec has no field")
    if options.image_step is not None and spec.field is None:
        raise UsageError("--image_step rounds targets that the field has warped, and this spec has no field")
    parts: dict[str, Any] = {
        **of_spec,
        "field_decimals": options.decimals,
        "min_valid": options.min_valid,
        "missing": missing,
    }
    if options.image_step is not None:  # named only where it is given: without it the images are as ever
        parts["image_step"] = options.image_step
    if exclusion is not None and exclusion.mask.any():
        parts[EXCLUSION] = sha256(json.dumps(np.flatnonzero(exclusion.mask).tolist()))
    made_of = provenance(**parts)
    attributes: dict[str, Any] = {
        "spec": text,
        "spec_sha256": of_spec["spec_sha256"],
        "mip": spec.dst_mip,
        "anchor": "start",
        "volumes": volumes_text(spec),
    }
    if options.min_valid is not None:
        attributes["min_valid"] = options.min_valid
    shape = (len(starts), 2, spec.x_size, spec.y_size)
    arrays = {"start": starts, "pair": places}
    folder = Path(options.dst_path)
    name = image_name(of_all, spec.dst_mip) if options.name is None else _checked_name(options.name)
    earlier = any_image_name(spec.dst_mip) if options.name is None else None
    of_images = {} if options.image_step is None else {"image_step": options.image_step}
    images = Layout(
        shape, 2, {**arrays, **_notes(spec, places)}, tuple(BOX_FACTS), made_of, {**attributes, **of_images}
    )
    residuals = None
    if spec.field is not None:
        attributes = {**attributes, "decimals": "none" if options.decimals is None else options.decimals}
        layout = Layout(shape, 1, arrays, FIELD_FILE_FACTS, made_of, attributes)
        if options.quality:
            with_quality = provenance(**parts, **{WITH_QUALITY: True})
            layout = replace(layout, provenance=with_quality, pair_facts=tuple(QUALITY_FACTS))
        earlier_field = None if earlier is None else field_name(earlier, options.suffix)
        residuals = OutputFile(folder / field_name(name, options.suffix), layout, earlier_field)
    return BoxJob(
        work=BoxWork(
            _without_pairs(spec),
            decimals=options.decimals,
            image_step=options.image_step,
            missing=missing,
            retry_for=options.retry_for,
            expects_data=options.missing != "black",
        ),
        starts=starts,
        images=OutputFile(folder / name, images, earlier),
        residuals=residuals,
        min_valid=options.min_valid,
        exclusion=exclusion,
    )


def _kept_places(starts: np.ndarray, exclusion: Exclusion | None, options: MakeDatasetOptions) -> np.ndarray:
    """(N,): the places in the spec of the pairs that are not excluded. starts: of all pairs."""
    if exclusion is None:
        return np.arange(len(starts))
    if exclusion.mask.all():
        raise UsageError(f"--exclude {' '.join(exclusion.files)}: no pair of {options.spec_path} is left")
    return np.flatnonzero(~exclusion.mask)


def _checked_name(name: str) -> str:
    """The file name that --name stands for."""
    if not name or name.startswith(".") or "/" in name or name.endswith(".h5"):
        raise UsageError(f"--name {name}: want a file's name without a folder, a leading dot and .h5")
    return f"{name}.h5"


def _notes(spec: Spec, places: np.ndarray) -> dict[str, np.ndarray]:
    """`note`, (N,): the note of each pair at some places of the spec as JSON, or ""; nothing where none has one."""
    notes = spec.notes()
    texts = [note_json(notes[index]) if index in notes else "" for index in places.tolist()] if notes else []
    return {"note": np.array(texts, object)} if any(texts) else {}


def _of_spec(spec: Spec, text: str) -> dict[str, str]:
    """The parts of a provenance that tell one spec from another, and whether they differ in their pairs alone.

    text: of the spec, which is long where it has many pairs.
    """
    return {"spec_sha256": sha256(text), "spec_without_pairs_sha256": sha256(_without_pairs(spec).text())}


def _without_pairs(spec: Spec) -> Spec:
    return msgspec.structs.replace(spec, pairs=())


# Shards


# The options by which a worker elsewhere makes the same shards.
_OF_SHARDS = ("suffix", "decimals", "image_step", "missing", "retry_for", "quality")


def _make_shards(spec: Spec, options: MakeDatasetOptions) -> ShardsMade | ShardStatus | Queued | Plan:
    if options.min_valid is not None:
        raise UsageError(
            "--min_valid is known once all is cut, and a shard is named by its pairs: leave one of them out"
        )
    if options.existing is Existing.UPDATED:
        raise UsageError("--update keeps boxes of a file; shards that are there are kept anyhow, without it")
    if options.queue is not None and options.task is not None:
        raise UsageError("--shard makes a part of the shards here, and --queue makes none: leave one of them out")
    if options.existing is Existing.REPLACED and options.task is not None:
        raise UsageError("--overwrite would remove the shards of the other tasks too: give it once, without --shard")
    if options.existing is Existing.REPLACED and options.status:
        raise UsageError("--overwrite makes all shards anew, and --status only looks at them: leave one of them out")
    boxes = _sharded(spec, options)
    if options.existing is not Existing.REPLACED:
        for store in boxes.work.stores():
            check_claim(store, boxes.job)
    if options.status:
        return boxes.status()
    if options.dry_run:
        return _plan_of_shards(boxes, options)
    if options.existing is Existing.REPLACED:
        boxes.check(boxes.job.missing([]))  # before anything is removed
        _empty(boxes)
    task = None if options.task is None else array_task(options.task)
    if options.queue is None:
        return run_shards(boxes, options.parallel, task)
    shards = boxes.missing()
    boxes.begin(shards)
    return fill_queue(options.queue, boxes.job, boxes.work.folders[0], shards)


def _plan_of_shards(boxes: ShardedBoxes, options: MakeDatasetOptions) -> Plan:
    job = boxes.work.job
    needless = boxes.needless(boxes.missing())
    reader = None if needless.all() else job.work.checked_reader(job.starts, needless)
    size = sum(file.layout.raw_bytes for file in job.files())
    free = None if "://" in options.dst_path else free_bytes(options.dst_path)
    plan = plan_of(boxes.work.folders, [job], [needless], [reader], size, free)
    return replace(plan, kept=int(needless.sum()))


def _sharded(spec: Spec, options: MakeDatasetOptions) -> ShardedBoxes:
    whole = box_job(spec, options)
    exclusion = whole.exclusion
    job = without_spec(whole)
    parent = options.dst_path.rstrip("/") if options.dst_path else "."
    folders = tuple(f"{parent}/{file.path.stem}" for file in job.files())
    shard_pairs = options.shard_pairs
    if not shard_pairs:
        found = found_job(shard_store(folders[0]))
        shard_pairs = SHARD_PAIRS if found is None else found.shard_pairs
    of_workers: dict[str, Any] = {name: getattr(options, name) for name in _OF_SHARDS}
    if exclusion is not None:
        of_workers["excluded"] = np.flatnonzero(exclusion.mask).tolist()
    shard_job = ShardJob("make_dataset", len(job.starts), shard_pairs, of_workers, _provenance_of(job))
    return ShardedBoxes(BoxShardWork(job, folders, shard_job.origin), shard_job, spec)


def _provenance_of(job: BoxJob) -> Provenance:
    """That of the last of a job's files, which says all that those of the others do."""
    return job.files()[-1].layout.provenance


def _empty(boxes: ShardedBoxes) -> None:
    """Remove all that an earlier job has left in the folders.

    The claims go first, so that nobody who is still at work on that job puts shards into the folders any more.
    """
    for store in boxes.work.stores():
        store.delete(JOB_FILE)
    for store in boxes.work.stores():
        for name in store.names():
            if name in BESIDE_SHARDS or name.endswith(FAILED) or shard_named(name):
                store.delete(name)


def shard_work(folder: str, job: ShardJob) -> BoxShardWork:
    """What makes the shards of a job that was begun elsewhere. folder: of its image shards."""
    text = shard_store(folder).text(SPEC_FILE)
    if text is None:
        raise UsageError(f"{folder}: no {SPEC_FILE} there, which make_dataset.py writes as it begins shards")
    spec = parse_spec(text.encode())
    given = dict(job.options)
    exclusion = None
    if excluded := given.pop("excluded", []):
        mask = np.zeros(len(spec.pairs), bool)
        mask[excluded] = True
        exclusion = Exclusion((), mask, 0)
    parent, _, name = folder.rpartition("/")
    options = MakeDatasetOptions(SPEC_FILE, parent, parallel=1, name=name, **given)
    cut = box_job(spec, options, exclusion)
    if dict(_provenance_of(cut)) != dict(job.provenance):
        differ = differences(_provenance_of(cut), job.provenance)
        raise UsageError(f"{folder}: its shards are made with another {differ}, which this worker cannot make")
    folders = tuple(f"{parent}/{file.path.stem}" for file in cut.files())
    return BoxShardWork(without_spec(cut), folders, job.origin)


# A layer as the destination


def _make_layer(spec: Spec, options: MakeDatasetOptions) -> Report | DoneLayer | Plan:
    if not options.dry_run:
        warm_up(options.parallel)
    from ..volumes.layer_writer import LayerWriter

    starts = spec.starts()
    made_of = provenance(**_of_spec(spec, spec.text()), missing=options.missing or "black")
    layer = LayerWriter(options.dst_path, (spec.x_size, spec.y_size), 2 * len(starts))
    if layer.is_finished(made_of, options.existing):
        return DoneLayer(options.dst_path, len(starts))
    job = box_job(spec, options)
    reader = job.work.checked_reader(starts)
    if options.dry_run:
        return plan_of(
            (options.dst_path,), [job], [np.zeros(starts.shape[:2], bool)], [reader], job.images.layout.raw_bytes, None
        )
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
    return Report(
        outputs=(options.dst_path,),
        starts=starts,
        pairs=np.arange(len(starts)),
        facts=facts,
        volumes=json.loads(volumes_text(spec)),
        resumed=int(done.sum()),
        retries=retries,
    )
