"""What a review says of a pair: where its boxes are, what is known of them, its note, and a link to the place."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from ..annotations.coordinate_spaces import Resolution
from ..annotations.viewer_states import link_to
from ..datasets.collection import Collection
from ..datasets.facts import BOX_FACTS
from ..errors import UsageError
from ..spec import Note, Spec, VolumeSpec, parse_spec

SHOWN_OF_NOTE = 300  # characters that are searched and listed; a pair in full shows all of its note

_PLACES = {"start": "start (MIP-0 voxels)", "translation": "translation (MIP-0 voxels)"}
_FORMATS: Mapping[str, tuple[str, str]] = {
    "mean": ("mean", "{:.4g}"),
    "std": ("deviation", "{:.4g}"),
    "valid": ("valid area", "{:.1%}"),
    "masked": ("masked area", "{:.1%}"),
    "outside": ("outside of the volume", "{:.1%}"),
    "missing_chunks": ("missing chunks", "{}"),
}
_STATES: Mapping[str, str] = {
    "failed": "the aligner failed",
    "not_run": "the aligner was not run, because an image is black",
    "zero_variance": "an image has no variance",
    "no_vector": "the field volume has no vector here",
}


@dataclass(frozen=True)
class PairTexts:
    """The texts of the pairs of an image file. resolution: a voxel's nm, for links; None where it is not known."""

    images: Collection
    fields: Sequence[Collection]
    resolution: Resolution | None

    def of(self, place: int) -> dict[str, Any]:
        """All texts of a pair in full, for the page."""
        note = self.note(place)
        return {"rows": self.rows(place), "note": _whole(note), "link": self.link(place)}

    def rows(self, place: int) -> list[tuple[str, ...]]:
        """Names, and what the source and the target are: `("start (MIP-0 voxels)", "144, 176, 5", "144, 176, 4")`."""
        rows = []
        for name, label in _PLACES.items():
            if name in self.images.arrays:
                rows.append((label, *(", ".join(map(str, each)) for each in self.images.arrays[name][place].tolist())))
        for name, (label, how) in _FORMATS.items():
            if name in self._facts:
                rows.append((label, *map(how.format, self._facts[name][place].tolist())))
        return rows

    def note(self, place: int) -> Note:
        """The note of a pair in the spec; an empty one where there is none."""
        if self._notes is None or not (text := _text(self._notes[place])):
            return Note()
        try:
            return msgspec.json.decode(text, type=Note)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Note(description=text)

    def state(self, place: int, places: Sequence[int]) -> str:
        """What is not as it should be with a pair, or "". places: of its fields, -1 where there is none."""
        found = []
        for name, said in _STATES.items():
            flags = [self._facts[name][place].any()] if name in self._facts else []
            flags += [field[name][at] for field, at in zip(self._field_flags, places, strict=True) if name in field]
            if any(flags):
                found.append(said)
        return "; ".join(found)

    def link(self, place: int) -> str | None:
        """A link that shows the pair in Neuroglancer; None where the files do not say enough."""
        if self.spec is None or self.resolution is None or "start" not in self.images.arrays:
            return None
        starts = self.images.arrays["start"][place : place + 1]
        return link_to(self.spec, starts, {0: self.note(place)}, self.resolution)

    @cached_property
    def spec(self) -> Spec | None:
        """The spec of the images without its pairs; None where they have none."""
        return spec_of(self.images)

    @cached_property
    def _facts(self) -> Mapping[str, np.ndarray]:
        return self.images.columns(BOX_FACTS)

    @cached_property
    def _field_flags(self) -> list[dict[str, np.ndarray]]:
        return [field.columns(("failed", "not_run")) for field in self.fields]

    @cached_property
    def _notes(self) -> np.ndarray | None:
        return self.images.column("note")


def spec_of(images: Collection) -> Spec | None:
    """The spec that image files were made from, without its pairs; None where they say neither it nor a volume."""
    x_size, y_size = images.shape[2:]
    path = images.attributes.get("cv_path")
    with suppress(UsageError):
        if (text := images.spec_text) is not None:
            return msgspec.structs.replace(parse_spec(text.encode()), pairs=())
        if path is not None and (mip := images.mip) is not None:
            volume = VolumeSpec(path=str(path), src_mip=mip)
            return Spec(image=volume, max_mip=mip, dst_mip=mip, x_size=x_size, y_size=y_size, pairs=())
    return None


def _whole(note: Note) -> str:
    """A note as one text."""
    return "\n".join(part for part in (note.description, note.id and f"id {note.id}") if part)


def _text(stored: Any) -> str:
    """A text of HDF5, whatever its bytes are."""
    return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)
