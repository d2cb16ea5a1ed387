"""What a worker does with its boxes: read each one, normalise, warp and encode it.

What needs CloudVolume is imported where it is used: it takes a second, which only those who read boxes should wait.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import fields, runner, samples
from ..datasets.chunks import encode, encode_grey
from ..datasets.facts import SOURCE, TARGET, BoxFacts
from ..samples import Sample
from ..spec import Spec
from .box_tasks import BoxResult, BoxTask

if TYPE_CHECKING:
    from ..volumes.box_reader import BoxData, BoxReader
    from ..volumes.volume import Volumes

READ_AHEAD = 8  # boxes read while one is computed, from stores worth waiting for
RETRY_FOR_S = 600.0  # that a store which is away is waited for


@dataclass(frozen=True)
class BoxWork:
    """What a worker does. `spec` is without pairs.

    normalised: whether images are, else they are stored as they are in the volume. decimals: of stored fields. layer:
    where images go when they do not come back as chunks. missing: what a missing chunk means, and retry_for: how long
    a store that is away is waited for, see `Volumes`.
    """

    spec: Spec
    normalised: bool = True
    decimals: int | None = 2
    layer: str | None = None
    missing: str = "black"
    retry_for: float = RETRY_FOR_S

    def __call__(self, number: int, tasks: Iterator[tuple[int, BoxTask]]) -> Iterator[tuple[int, BoxResult]]:
        from ..volumes.layer_writer import open_for_writing, upload_section
        from ..volumes.volume import Volumes

        with closing(Volumes(missing=self.missing, retry_for=self.retry_for, on_wait=runner.say)) as volumes:
            reader = self.reader(volumes)
            depth = 0 if all(volume.is_local for volume in reader.volumes()) else READ_AHEAD
            layer = open_for_writing(self.layer) if self.layer else None
            for (place, task), data in runner.ahead(lambda unit: reader.read(unit[1].start), tasks, depth):
                sample = _sample(data)
                if layer is None:
                    yield place, self._encoded(task, data, sample, volumes.take_retries())
                else:
                    warped = _warped(sample, data)
                    for slot in task.slots:
                        upload_section(layer, 2 * slot.pair + slot.role, warped)
                    yield place, BoxResult(None, None, None, _facts(data, sample), volumes.take_retries())

    def checked_reader(self, starts: np.ndarray) -> "BoxReader":
        """A reader of the spec's volumes, of which boxes at `starts`, (N, 2, 3), can be read; else a `UsageError`."""
        from ..stores import CHECK_FOR_S
        from ..volumes.box_reader import check_boxes, check_data, check_volumes
        from ..volumes.volume import Volumes

        reader = self.reader(Volumes(missing=self.missing, retry_for=min(self.retry_for, CHECK_FOR_S)))
        check_volumes(reader)
        check_boxes(reader, starts)
        check_data(reader, starts)
        return reader

    def reader(self, volumes: "Volumes") -> "BoxReader":
        """A reader of the spec's volumes."""
        from ..volumes.box_reader import BoxReader

        return BoxReader(self.spec, volumes, self.normalised)

    def _encoded(self, task: BoxTask, data: "BoxData", sample: Sample, retries: int) -> BoxResult:
        roles = {slot.role for slot in task.slots}
        source = target = residual = None
        if SOURCE in roles or data.residual is None:
            source = encode_grey(sample.image)
        if SOURCE in roles and data.residual is not None:
            residual = encode(fields.rounded(data.residual, self.decimals))
        if TARGET in roles:
            target = source if data.residual is None else encode(_warped(sample, data))
        return BoxResult(source, target, residual, _facts(data, sample), retries)


def _sample(data: "BoxData") -> Sample:
    if data.reference is None or data.reference_masked is None:
        return samples.as_stored(data.image, data.masked)
    return samples.normalised(data.image, data.masked, data.reference, data.reference_masked)


def _warped(sample: Sample, data: "BoxData") -> np.ndarray:
    return sample.image if data.residual is None else fields.warp(sample.image, data.residual)


def _facts(data: "BoxData", sample: Sample) -> BoxFacts:
    return BoxFacts(
        translation=(data.shift.x, data.shift.y),
        mean=sample.mean,
        std=sample.std,
        valid=sample.valid,
        masked=sample.masked,
        outside=data.outside,
        missing_chunks=len(data.missing),
        zero_variance=sample.flat,
        no_vector=not data.shift.found,
    )
