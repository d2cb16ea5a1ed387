"""What a worker does with its boxes: read each one, normalise, warp and encode it.

Modules that need CloudVolume are imported inside functions. The import takes a second, and only a run that reads boxes
should wait for it.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import fields, runner, samples
from ..datasets.chunks import Chunk, encode, encode_grey
from ..datasets.facts import SOURCE, TARGET, VOLUMES, BoxFacts
from ..fields import BINARY, Decimals
from ..samples import Sample
from ..spec import Mask, Reference, Spec, VolumeSpec, field_reference, image_reference
from .box_tasks import BoxResult, BoxTask

if TYPE_CHECKING:
    from cloudvolume import CloudVolume

    from ..volumes.box_reader import BoxData, BoxReader
    from ..volumes.volume import Volumes

READ_AHEAD = 8  # boxes read while one is computed; from local stores none, where waiting for several gains nothing
RETRY_FOR_S = 600.0  # how long a store that is away is waited for

Cut = Callable[[Iterable[tuple[int, BoxTask]]], Iterator[tuple[int, BoxResult]]]
_Chunks = tuple[Chunk | None, Chunk | None, Chunk | None]


@dataclass(frozen=True)
class BoxWork:
    """What a worker does. `spec` is without pairs.

    normalised: whether images are normalised; otherwise they keep the volume's values. decimals: what stored
    fields are rounded to. image_step: what warped targets are rounded to. layer: the CloudVolume layer that the worker
    uploads images to; if it is None, the worker returns chunks. missing: what a missing chunk means, and retry_for: how
    long a store that is away is waited for, see `Volumes`. expects_data: whether a volume of which no chunk is there is
    refused before the work begins.
    """

    spec: Spec
    normalised: bool = True
    decimals: Decimals = BINARY
    image_step: float | None = None
    layer: str | None = None
    missing: str = "black"
    retry_for: float = RETRY_FOR_S
    expects_data: bool = True

    def __call__(self, worker: int, tasks: Iterator[tuple[int, BoxTask]]) -> Iterator[tuple[int, BoxResult]]:
        with self.opened() as cut:
            yield from cut(tasks)

    @contextmanager
    def opened(self) -> Iterator["Cut"]:
        """What cuts boxes, with the volumes open: numbered tasks in, numbered results out."""
        from ..volumes.layer_writer import open_for_writing
        from ..volumes.volume import Volumes

        with closing(Volumes(missing=self.missing, retry_for=self.retry_for, on_wait=runner.say)) as volumes:
            reader = self.reader(volumes)
            depth = 0 if all(volume.is_local for volume in reader.volumes()) else READ_AHEAD
            layer = open_for_writing(self.layer) if self.layer else None

            def cut(tasks: Iterable[tuple[int, BoxTask]]) -> Iterator[tuple[int, BoxResult]]:
                for (number, task), data in runner.ahead(lambda unit: reader.read(unit[1].start), tasks, depth):
                    sample = _sample(data)
                    chunks = self._chunks(task, data, sample) if layer is None else _upload(layer, task, data, sample)
                    yield number, BoxResult(*chunks, _facts(data, sample), volumes.take_retries())

            yield cut

    @property
    def result_bytes(self) -> int:
        """What the chunks of a box take at most: two images and the two components of a field, which hardly grow."""
        return 0 if self.layer else 4 * 4 * self.spec.x_size * self.spec.y_size

    def checked_reader(self, starts: np.ndarray, kept: np.ndarray | None = None) -> "BoxReader":
        """A reader of the spec's volumes; a `UsageError` if boxes cannot be read.

        starts: (N, 2, 3). kept: (N, 2) bool, the boxes that will not be read.
        """
        from ..stores import CHECK_FOR_S
        from ..volumes.box_reader import check_boxes, check_data, check_volumes
        from ..volumes.volume import Volumes

        reader = self.reader(Volumes(missing=self.missing, retry_for=min(self.retry_for, CHECK_FOR_S)))
        check_volumes(reader)
        check_boxes(reader, starts)
        if self.expects_data:
            check_data(reader, starts.reshape(-1, 3) if kept is None else starts[~kept])
        return reader

    def reader(self, volumes: "Volumes") -> "BoxReader":
        """A reader of the spec's volumes."""
        from ..volumes.box_reader import BoxReader

        return BoxReader(self.spec, volumes, self.normalised)

    def _chunks(self, task: BoxTask, data: "BoxData", sample: Sample) -> _Chunks:
        """The source, the target and the residual field, as far as the task's slots want them."""
        roles = {slot.role for slot in task.slots}
        if data.residual is None:
            image = encode_grey(sample.image)
            return image, image, None
        source = encode_grey(sample.image) if SOURCE in roles else None
        target = None
        if TARGET in roles:
            target = encode(fields.rounded_image(_warped(sample, data), self.image_step))
        residual = encode(fields.rounded(data.residual, self.decimals)) if SOURCE in roles else None
        return source, target, residual


def volumes_text(spec: Spec) -> str:
    """What each of `VOLUMES` is in a spec, for people, as a JSON object."""
    image, field = image_reference(spec), None if spec.field is None else field_reference(spec)
    texts = {
        "image": _volume_text(spec.image),
        "image.reference": _volume_text(image),
        "masks": ", ".join(map(_volume_text, spec.masks)),
        "field": "" if spec.field is None else _volume_text(spec.field),
        "field.reference": "" if field is None else _volume_text(field),
    }
    return json.dumps({name: texts[name] for name in VOLUMES})


def _volume_text(volume: VolumeSpec | Reference | Mask) -> str:
    return f"{volume.path} at MIP {volume.src_mip}"


def _upload(layer: "CloudVolume", task: BoxTask, data: "BoxData", sample: Sample) -> _Chunks:
    """Store the warped image as the sections of the task's slots; no chunks are left to store."""
    from ..volumes.layer_writer import upload_section

    warped = _warped(sample, data)
    for slot in task.slots:
        upload_section(layer, 2 * slot.pair + slot.role, warped)
    return None, None, None


def _sample(data: "BoxData") -> Sample:
    if data.reference is None:
        return samples.as_stored(data.image, data.black, data.masked)
    return samples.normalised(data.image, data.black, data.masked, data.reference)


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
        missing_chunks=sum(data.missing.values()),
        chunks_by_volume=tuple(data.asked.get(name, 0) for name in VOLUMES),
        missing_by_volume=tuple(data.missing.get(name, 0) for name in VOLUMES),
        zero_variance=sample.flat,
        no_vector=not data.shift.found,
    )
