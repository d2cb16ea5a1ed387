"""Writing a CloudVolume layer of images, section by section."""

import re
from typing import Any

import cloudfiles
import numpy as np
from cloudvolume import CloudVolume

from ..errors import UsageError
from ..files import Existing
from ..provenance import Provenance, differences
from ..stores import DamagedError
from .volume import Volume, Volumes

_BEING_REPLACED: dict[str, Any] = {"provenance": {}, "finished": False}
_SECTION = re.compile(r"[^/]+/\d+-\d+_\d+-\d+_\d+-\d+")


class LayerWriter:
    """A new float32 layer of `sections` images of `shape` (X, Y), each one chunk.

    What made it, and whether it is finished, stands in `curation.json` beside its `info`. Its sections are objects of
    their own, so those that are there and can be read back are the work that is done.
    """

    def __init__(self, path: str, shape: tuple[int, int], sections: int) -> None:
        self._path = path
        self._shape = shape
        self._sections = sections
        try:
            self._files = cloudfiles.CloudFiles(path)
        except (ValueError, cloudfiles.exceptions.UnsupportedProtocolError) as error:
            raise UsageError(f"{path}: {error}") from None

    def is_finished(self, provenance: Provenance, existing: Existing) -> bool:
        """Whether the layer is there, whole, and the one that would be made.

        Refuses to touch another layer unless told to, and at all what something else wrote. With `Existing.REPLACED` no
        layer is finished.
        """
        state = self._state()
        if state is None:
            if next(iter(self._files.list()), None) is not None:
                raise UsageError(f"{self._path}: something is there that make_dataset did not write; take another path")
            return False
        if state["provenance"] == dict(provenance):
            return bool(state["finished"]) and existing is not Existing.REPLACED
        if existing is Existing.REFUSED:
            changed = differences(provenance, state["provenance"])
            if state["finished"]:
                raise UsageError(
                    f"{self._path} is there already, made with another {changed}: --update makes it anew, or take "
                    "another path"
                )
            raise UsageError(
                f"{self._path}: begun with another {changed}; give the same, or --update to give up what was begun"
            )
        return False

    def begin(self, provenance: Provenance, resolution: tuple[float, ...]) -> np.ndarray:
        """Make the layer, or go on with it; (sections,) bool: those that are done."""
        begun = {"provenance": dict(provenance), "finished": False}
        state = self._state()
        if state not in (None, begun):  # `is_finished` has seen that this is a layer made here, and to be replaced
            # Said first, and kept: a run killed while it deletes leaves a layer that is known to be one of ours.
            self._files.put_json("curation.json", _BEING_REPLACED)
            self._files.delete([name for name in self._files.list() if name == "info" or _SECTION.fullmatch(name)])
        if state != begun:
            self._files.put_json("curation.json", begun)
        info = CloudVolume.create_new_info(
            num_channels=1,
            layer_type="image",
            data_type="float32",
            encoding="raw",
            resolution=list(resolution),
            voxel_offset=[0, 0, 0],
            chunk_size=[*self._shape, 1],
            volume_size=[*self._shape, self._sections],
        )
        CloudVolume(self._path, info=info, cache=False).commit_info()
        volume = Volumes().open(self._path, 0)
        return np.array([self._is_there(volume, section) for section in range(self._sections)])

    def finish(self, provenance: Provenance) -> None:
        """Say that it is whole."""
        self._files.put_json("curation.json", {"provenance": dict(provenance), "finished": True})

    def _state(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] | None = self._files.get_json("curation.json")
            return state
        except (ValueError, DamagedError):  # torn when the run that wrote it was killed
            return _BEING_REPLACED

    def _is_there(self, volume: Volume, section: int) -> bool:
        try:
            return volume.download((0, 0, section)) is not None
        except Exception:  # torn when the run that wrote it was killed: whatever a decoder says of that
            return False


def open_for_writing(path: str) -> CloudVolume:
    """A layer made by `LayerWriter`."""
    return CloudVolume(path, progress=False, parallel=1, cache=False, compress="gzip", non_aligned_writes=False)


def upload_section(layer: CloudVolume, section: int, image: np.ndarray) -> None:
    """Store an image (X, Y) as one section of a layer made by `LayerWriter`."""
    x_size, y_size = image.shape
    layer[0:x_size, 0:y_size, section : section + 1] = image[:, :, None, None]
