"""What a dataset file is to hold, decided before it is made: HDF5 that any h5py reads without plugins.

`main` is (N, 2, X, Y) float32: of an image file axis 1 is source and target, of a field file the two components.
One chunk is one image (1, 1, X, Y) or one field (1, 2, X, Y), through HDF5's own shuffle and gzip filters. Beside it
stand `start`, `crc32` and a dataset for each fact known of a sample (docs/spec-and-files.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np

from .. import __version__
from ..provenance import Provenance, as_text
from .chunks import DEFLATE_LEVEL
from .facts import BOX_FACTS, PAIR_FACTS
from .seal import begun_seal, seal_begun


@dataclass(frozen=True)
class Layout:
    """What a file is to hold.

    main: its shape, (N, 2, X, Y). chunk_roles: chunks a sample, 2 in an image file and 1 in a field file.
    arrays: what is known from the beginning, with the samples along axis 0, such as `start`, (N, 2, 3). facts: the
    names of `BoxFacts` that it will hold. pair_facts: those of `PairFacts`, which are written when all boxes are there.
    provenance: what shapes the content, compared on resuming. attributes: the
    file's, beside the toolkit's own.
    """

    main: tuple[int, int, int, int]
    chunk_roles: int
    arrays: Mapping[str, np.ndarray]
    facts: tuple[str, ...]
    provenance: Provenance
    attributes: Mapping[str, Any] = field(default_factory=dict)
    pair_facts: tuple[str, ...] = ()

    @property
    def chunk(self) -> tuple[int, int, int, int]:
        """The shape of one chunk."""
        return (1, 2 // self.chunk_roles, *self.main[2:])

    @property
    def raw_bytes(self) -> int:
        """What `main` takes without compression."""
        return 4 * int(np.prod(self.main))

    def of_samples(self, samples: np.ndarray) -> "Layout":
        """The layout of a file of only some samples: (M,), their indices."""
        arrays = {name: values[samples] for name, values in self.arrays.items()}
        return replace(self, main=(len(samples), *self.main[1:]), arrays=arrays)

    def begin(self, file: h5py.File) -> None:
        """Make the datasets and attributes of a new file, and seal them; `main` and the facts are empty."""
        samples = self.main[0]
        self.create_main(file)
        for name, values in self.arrays.items():
            file.create_dataset(name, data=values, dtype=h5py.string_dtype() if values.dtype == object else None)
        for name in self.facts:
            how = BOX_FACTS[name]
            file.create_dataset(name, (samples, 2, *how.shape), how.dtype)
        for name in self.pair_facts:
            file.create_dataset(name, (samples,), PAIR_FACTS[name].dtype)
        file.create_dataset("crc32", (samples, self.chunk_roles), "<u4")
        file.create_dataset("checksum", (samples, 2), "<u8")
        self.set_attributes(file)
        seal_begun(file)

    def create_main(self, file: h5py.File) -> None:
        """Make `main`, empty."""
        file.create_dataset(
            "main",
            self.main,
            "<f4",
            chunks=self.chunk,
            shuffle=True,
            compression="gzip",
            compression_opts=DEFLATE_LEVEL,
        )

    def set_attributes(self, file: h5py.File) -> None:
        """Write the file's attributes."""
        for name, value in self.attributes.items():
            file.attrs[name] = value
        file.attrs["toolkit_version"] = __version__
        file.attrs["provenance"] = as_text(self.provenance)

    def begun_seal(self) -> str:
        """The seal of a file that was only begun."""
        with h5py.File("new", "w", driver="core", backing_store=False) as new:
            self.begin(new)
            return begun_seal(new)


def image_name(starts: np.ndarray, mip: int) -> str:
    """An image file's name; starts: (N, 2, 3)."""
    x, y, z = starts[0, 0].tolist()
    return f"x{x}_y{y}_z{z}_MIP{mip}.h5"


def any_image_name(mip: int) -> str:
    """The pattern of the names that `image_name` gives, whatever the first pair is."""
    return f"x*_y*_z*_MIP{mip}.h5"


def field_name(image: str, suffix: str | None) -> str:
    """The name of the field file beside an image file. suffix: a checkpoint's tag, as the metroem trainer wants it."""
    name = f"field_0_{image}"
    return name if suffix is None else f"{name.removesuffix('.h5')}_{suffix}.h5"
