"""Holding what the scripts wrote against what `one_sample` says they should have written.

Every function gives its disagreements as texts, one each; none is agreement. The toolkit computes in float32, the judge
in float64: how far apart they may be follows from the sizes of the numbers, and is never more than 1e-4 of them for
volumes of ordinary grey values.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from commands import Outcome
from numpy.typing import NDArray
from one_sample import Box, Floats, Sample, Section, UndecidedError, WhollyOutsideError, brought_finer, sample, section
from random_jobs import Job, Stretch

EPSILON = 2.0**-24  # half the distance from 1 to the next float32
ROLES = ("source", "target")

# Datasets of whole numbers, which must be exact, and of fractions.
EXACT = ("translation", "missing_chunks", "zero_variance", "no_vector")
FRACTIONS = ("valid", "masked", "outside")


def judge_dataset(job: Job, outcome: Outcome, out: Path) -> list[str]:
    """What make_dataset.py did with a job, into the folder `out`, that it should not have."""
    try:
        boxes = {start for pair in job.starts() for start in pair}
        expected = {start: sample(job.spec, job.volumes, start) for start in sorted(boxes)}
    except UndecidedError:
        return []
    except WhollyOutsideError:
        return _judge_refusal(job, outcome, out)
    if outcome.code != 0:
        return [f"exit code {outcome.code}: {outcome.line}"]
    names = {job.name(), f"field_0_{job.name()}"} if "field" in job.spec else {job.name()}
    if names != (found := {path.name for path in out.iterdir()}):
        return [f"files {sorted(found)}, expected {sorted(names)}"]
    with h5py.File(out / job.name()) as file:
        faults = list(_judge_images(job, file, expected))
    if "field" in job.spec:
        with h5py.File(out / f"field_0_{job.name()}") as file:
            faults += _judge_fields(job, file, expected)
    return faults


def _judge_refusal(job: Job, outcome: Outcome, out: Path) -> list[str]:
    """A box is wholly outside: exit code 2 if that shows before any voxel is read, else perhaps 1; no file is done."""
    codes = {1, 2}
    for start in sorted({start for pair in job.starts() for start in pair}):
        try:
            sample(job.spec, job.volumes, start)
        except WhollyOutsideError as error:
            codes = {2} if error.before_reading else codes
        except UndecidedError:
            pass
    if outcome.code not in codes or "outside" not in outcome.line:
        return [f"exit code {outcome.code}, expected {codes} and that a box is outside: {outcome.stderr or 'nothing'}"]
    return [f"{path.name} was left" for path in out.iterdir() if not path.name.startswith(".")]


def _judge_images(job: Job, file: h5py.File, expected: dict[tuple[int, int, int], Sample]) -> Iterator[str]:
    pairs = job.starts()
    shape = (len(pairs), 2, job.spec["x_size"], job.spec["y_size"])
    yield from _judge_main(file, shape)
    yield from _differing("start", file["start"][:], np.array(pairs))
    for place, starts in enumerate(pairs):
        for role, start in enumerate(starts):
            at, box = f"pair {place} {ROLES[role]}", expected[start]
            stored = file["main"][place, role]
            yield from _differing(f"{at} image", stored, box.stored(role), image_tolerance(job, box, role))
            if role == 0 or box.residual is None:
                yield from _differing(f"{at} black and masked", stored[~box.is_valid], np.zeros((~box.is_valid).sum()))
            for name in EXACT:
                yield from _differing(f"{at} {name}", file[name][place, role], getattr(box, name))
            for name in FRACTIONS:
                yield from _differing(f"{at} {name}", file[name][place, role], getattr(box, name), 1e-6)
            resolved = 16 * EPSILON * box.largest
            yield from _differing(f"{at} mean", file["mean"][place, role], box.mean, resolved)
            yield from _differing(f"{at} std", file["std"][place, role], box.std, 1e-5 * box.std + resolved)


def _judge_fields(job: Job, file: h5py.File, expected: dict[tuple[int, int, int], Sample]) -> Iterator[str]:
    pairs = job.starts()
    yield from _judge_main(file, (len(pairs), 2, job.spec["x_size"], job.spec["y_size"]))
    yield from _differing("start", file["start"][:], np.array(pairs))
    for place, starts in enumerate(pairs):
        source = expected[starts[0]]
        if source.residual is not None:
            tolerance = field_tolerance(source, job.spec["dst_mip"]) + half_a_step(job.decimals)
            yield from _differing(f"pair {place} field", file["main"][place], source.residual, tolerance)
        for role, start in enumerate(starts):
            for name in ("translation", "no_vector"):
                at = f"pair {place} {ROLES[role]} {name} of the field file"
                yield from _differing(at, file[name][place, role], getattr(expected[start], name))


def _judge_main(file: h5py.File, shape: tuple[int, ...]) -> Iterator[str]:
    main = file["main"]
    if (main.shape, main.dtype) != (shape, np.float32):
        yield f"main is {main.dtype} {main.shape}, expected float32 {shape}"


def image_tolerance(job: Job, box: Sample, role: int) -> float:
    """How far an image's pixels may be from the judge's, in deviations."""
    extent = max(1.0, float(np.abs(box.image).max()))
    tolerance = 1e-5 * extent + 32 * EPSILON * box.largest / box.std * extent
    if role == 1 and box.residual is not None:
        # The place that a pixel is pulled from is not exact either; neighbours differ by twice the extent at most.
        place = field_tolerance(box, job.spec["dst_mip"]) + 8 * EPSILON * max(box.image.shape)
        tolerance += 4 * extent * place
    return tolerance


def field_tolerance(box: Sample, dst_mip: int) -> float:
    """How far an unrounded field may be from the judge's, in pixels."""
    reach = max(box.displaced, *(float(abs(shift)) for shift in box.translation))
    return 1e-6 + 16 * EPSILON * reach / float(2**dst_mip)


def half_a_step(decimals: int | str | None) -> float:
    """How far rounding may move a number."""
    if decimals is None:
        return 0.0
    return 1 / 512 if isinstance(decimals, str) else 0.5 / float(10**decimals)


def judge_stretch(job: Stretch, outcome: Outcome, out: Path) -> list[str]:
    """What download_image.py did with a stretch, into the folder `out`, that it should not have."""
    sections = range(job.z[0] - 1, job.z[1])
    boxes = {(level, z): Box(job.x, job.y, z, level[1], level[1], level[0]) for level in job.levels for z in sections}
    try:
        expected = {key: section(job.volumes, job.path, box, job.defects, job.mask_val) for key, box in boxes.items()}
    except WhollyOutsideError:
        return [] if outcome.code == 2 else [f"exit code {outcome.code}, expected 2: a box is outside"]
    if outcome.code != 0:
        return [f"exit code {outcome.code}: {outcome.line}"]
    faults: list[str] = []
    for level in job.levels:
        mip, size = level
        with h5py.File(out / f"x{job.x}_y{job.y}_z{job.z[0]}_MIP{mip}.h5") as file:
            count = job.z[1] - job.z[0]
            faults += _judge_main(file, (count, 2, size, size))
            for place in range(count):
                for role in range(2):
                    z = job.z[0] + place - role
                    at = f"MIP {mip}, section {z} as {ROLES[role]}"
                    faults += _differing(f"{at}: start", file["start"][place, role], np.array([job.x, job.y, z]))
                    faults += _judge_section(at, file, (place, role), expected[level, z])
    return faults


def _judge_section(at: str, file: h5py.File, place: tuple[int, int], expected: Section) -> Iterator[str]:
    yield from _differing(f"{at}: image", file["main"][place], expected.image)
    for name in FRACTIONS:
        yield from _differing(f"{at}: {name}", file[name][place], getattr(expected, name), 1e-6)
    yield from _differing(f"{at}: missing_chunks", file["missing_chunks"][place], expected.missing_chunks)
    for name, value in {"translation": 0, "mean": 0, "std": 1, "zero_variance": 0, "no_vector": 0}.items():
        yield from _differing(f"{at}: {name}", file[name][place], value)


def judge_finer(
    found: NDArray[np.float32], coarse: Floats, src_mip: int, dst_mip: int, crop: str, decimals: int | str | None
) -> list[str]:
    """Where a field, (2, X, Y), that generate_fields.py brought to `dst_mip` is not what it should be."""
    expected = brought_finer(coarse, src_mip, dst_mip, crop)
    if expected is None:
        return ["there is no whole pixel to cut it at"]
    largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
    return list(_differing("field", found, expected, half_a_step(decimals) + 1e-6 + 8 * EPSILON * largest))


def _differing(name: str, found: Any, expected: Any, tolerance: float = 0.0) -> Iterator[str]:
    """Where numbers differ by more than the tolerance; NaN and infinities must be the same."""
    found, expected = (np.asarray(numbers, np.float64) for numbers in (found, expected))
    with np.errstate(invalid="ignore"):
        same = (found == expected) | (np.isnan(found) & np.isnan(expected)) | (np.abs(found - expected) <= tolerance)
    if not same.all():
        found, expected = np.broadcast_arrays(found, expected)
        worst = tuple(int(index) for index in np.argwhere(~same)[0])
        yield (
            f"{name}: {float(found[worst])!r}, expected {float(expected[worst])!r} within {tolerance:.1e}, "
            f"at {worst}; {(~same).sum()} of {same.size} differ"
        )
