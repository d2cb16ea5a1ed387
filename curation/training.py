"""Datasets as a training program reads them: pairs, their fields and what is known of them, as tensors."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing import get_sharing_strategy
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from .datasets.collection import Collection, open_collection
from .datasets.facts import BOX_FACTS, PAIR_FACTS, Stored
from .datasets.matching import check_same_mip, places_of
from .datasets.opened import stamp_of
from .datasets.seal import DamageError
from .errors import UsageError, WorkError, numbered
from .files import PathLike
from .machine import usable_cores
from .splits import read_split

Item = dict[str, torch.Tensor]
Paths = PathLike | Sequence[PathLike]

_START = Stored("<i8", (3,))
_PAIR = Stored("<i8")


class PairDataset(Dataset[Item]):
    """The pairs of one or several image files, with their fields, as tensors.

    An item is a dict. X and Y are the size of the images in pixels, or that of the crop; x is the first axis.

    - `source`, `target`: (1, X, Y) float32, as they are stored.
    - `prior`: (2, X, Y) float32, the field of the pair, in pixels: component 0 is the displacement along y, component 1
      along x. It is there if `fields` is given.
    - `source_valid`, `target_valid`: (1, X, Y) bool, False where a pixel is exactly 0 or not a finite number.
    - `pair`: () int64, the number of the pair in the spec. `index`: () int64, that of the item in this dataset.
    - `start`: (2, 3) int64, x, y and z in MIP-0 voxels of the source box and of the target box. `translation`: (2, 2)
      int64, x and y in MIP-0 voxels. `mean`, `std`, `valid`, `masked`, `outside`: (2,) float32. All other facts of
      boxes, (2, ...), and of pairs, (), that the files hold; those of 0 and 1 are bool.
    - `crop_start`: (2,) int64, x and y of the crop in pixels of the whole image. It is there if `crop` is given.

    images: an image file, a folder of shards, or several of them. fields: None, or as many field files or folders; the
    fields belong to the pairs by their starts. Files of older tools have fewer keys. All items of a dataset have the
    same keys, so the default `collate_fn` of a DataLoader makes batches of them.

    split, part: a split file, and the name of one of its parts: only pairs of this part are items. Pairs of the part
    that are in no file are passed over.

    crop: (w, h), the size of a random crop in pixels, which is the same for source, target and prior. It depends on the
    seed, the epoch (`set_epoch`) and the index alone. The vectors keep their values, as they are displacements. A
    vector near the border of the crop may say that its pixel is found outside of the crop, although it lies within the
    whole source: a warp of the cropped source gives 0 there.

    transform: is called with each item, and gives what is to be the item.

    Files are checked here and closed again. Each process opens them when it reads its first item, and keeps them open
    for reading; `close` closes them. A `UsageError` if the files do not belong together, if a pair has no field, or if
    there is no pair. A `WorkError` that names file and pair if an item cannot be read.

    >>> from curation.training import PairDataset
    >>> pairs = PairDataset("images.h5", "fields.h5", crop=(16, 8))
    >>> item = pairs[0]
    >>> item["source"].shape, item["prior"].shape, item["start"].tolist()
    (torch.Size([1, 16, 8]), torch.Size([2, 16, 8]), [[0, 0, 5], [0, 0, 4]])
    """

    def __init__(
        self,
        images: Paths,
        fields: Paths | None = None,
        *,
        split: PathLike | None = None,
        part: str | None = None,
        transform: Callable[[Item], Any] | None = None,
        crop: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        image_paths = _paths(images)
        field_paths: Sequence[Path | None] = [None] * len(image_paths) if fields is None else _paths(fields)
        if not image_paths or len(field_paths) != len(image_paths):
            raise UsageError(f"{len(image_paths)} image files and {len(field_paths)} field files: want one for each")
        if (split is None) != (part is None):
            raise UsageError("split and part go together: want the path of a split file, and the name of a part")
        if seed < 0:
            raise UsageError(f"seed is {seed}: want 0 or more")
        wanted = None if split is None or part is None else _pairs_of(split, part)
        sources = [
            _checked(image_path, field_path, wanted)
            for image_path, field_path in zip(image_paths, field_paths, strict=True)
        ]
        _check_alike(sources)
        if not any(len(source.rows) for source in sources):
            raise UsageError(f"{split}: no pair of part {part} is in {', '.join(map(str, image_paths))}")
        self._files = [source.files for source in sources]
        self._rows = np.concatenate([source.rows for source in sources])
        self._file_of = np.repeat(np.arange(len(sources)), [len(source.rows) for source in sources])
        self._facts = {name: np.concatenate([each.facts[name] for each in sources]) for name in sources[0].facts}
        self._size = sources[0].size
        if crop is not None:
            _check_crop(crop, self._size, image_paths[0])
        self._crop = crop
        self._transform = transform
        self._seed = seed
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))  # so that workers see the next one too
        self._opened: _Opened | None = None
        self._inherited: list[_Opened] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]  # an IndexError beyond the end
        item = self._item(index)
        if self._transform is None:
            return item
        try:
            return self._transform(item)
        except Exception as error:
            error.add_note(f"in the transform of {self.name_of(index)}")
            raise

    def name_of(self, index: int) -> str:
        """The file and the pair of an item, for messages: "images.h5: pair 7"."""
        return f"{self._files[self._file_of[index]].images}: pair {self._facts['pair'][index]}"

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops from now on, also in workers that are running. epoch: 0 or more, 0 at first."""
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}: want 0 or more")
        self._epoch.fill_(epoch)

    def close(self) -> None:
        """Close the files that this process has opened; they are opened again when an item is read."""
        opened, self._opened = self._opened, None
        if opened is not None and opened.process == os.getpid():
            opened.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None, "_inherited": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._epoch = _shared(self._epoch)

    def _item(self, index: int) -> Item:
        images, fields = self._open().collections[self._file_of[index]]
        row, place = self._rows[index].tolist()
        pair = int(self._facts["pair"][index])
        arrays = {"images": _read(images, row, pair)}
        if fields is not None:
            arrays["prior"] = _read(fields, place, pair)
        facts = {name: torch.from_numpy(np.array(values[index])) for name, values in self._facts.items()}
        facts["index"] = torch.tensor(index)
        if self._crop is not None:
            x, y = self._crop_start(index)
            width, height = self._crop
            cut = np.s_[:, x : x + width, y : y + height]
            arrays = {name: np.ascontiguousarray(values[cut]) for name, values in arrays.items()}
            facts["crop_start"] = torch.tensor([x, y])
        pixels = arrays.pop("images")
        for kind, values in (("", pixels), ("_valid", np.isfinite(pixels) & (pixels != 0))):
            arrays[f"source{kind}"], arrays[f"target{kind}"] = values[:1], values[1:]
        return {**{name: torch.from_numpy(values) for name, values in arrays.items()}, **facts}

    def _crop_start(self, index: int) -> tuple[int, int]:
        random = np.random.default_rng((self._seed, int(self._epoch), index))
        x, y = (
            int(random.integers(whole - part + 1)) for whole, part in zip(self._size, self._crop or (0, 0), strict=True)
        )
        return x, y

    def _open(self) -> "_Opened":
        """The files as this process has opened them.

        What a forked process inherits is kept but never used, and never closed: HDF5 would give up the parent's lock.
        """
        opened = self._opened
        if opened is None or opened.process != os.getpid():
            if opened is not None:
                self._inherited.append(opened)
            self._opened = opened = _Opened.of(self._files)
        return opened


def _shared(number: torch.Tensor) -> torch.Tensor:
    """The same, in memory that is shared with worker processes."""
    shared: torch.Tensor = number.share_memory_()  # type: ignore[no-untyped-call]
    return shared


# Loading


def collate(items: Sequence[Any]) -> Any:
    """The batch that the default `collate_fn` makes of items, at less cost.

    A worker hands each tensor over in memory that it shares with the training. To make such memory and to tell the
    training of it takes long, so all tensors of a batch lie in one piece of it, which is written like a file. Elsewhere
    an item that is a batch alone is not copied.
    """
    if not _are_alike(items):
        return default_collate(list(items))
    if get_worker_info() is None:
        alone = len(items) == 1
        return {name: values[None] for name, values in items[0].items()} if alone else default_collate(list(items))
    if get_sharing_strategy() != "file_descriptor":  # type: ignore[no-untyped-call]
        return default_collate(list(items))
    return _in_one_piece(items)


def _are_alike(items: Sequence[Any]) -> bool:
    """Whether items are plain tensors of the same names, shapes and types."""
    if not all(isinstance(item, dict) and all(map(_is_plain, item.values())) for item in items):
        return False
    forms = [{name: (values.shape, values.dtype) for name, values in item.items()} for item in items]
    return all(form == forms[0] for form in forms)


def _is_plain(values: Any) -> bool:
    return isinstance(values, torch.Tensor) and values.device.type == "cpu" and not values.requires_grad


def _in_one_piece(items: Sequence[Item]) -> Item:
    """A batch whose tensors lie in one piece of shared memory, which is a file here."""
    sizes = [-(-values.nbytes * len(items) // _ALIGNED) * _ALIGNED for values in items[0].values()]
    shared: Any = torch.UntypedStorage  # as the default does, but torch has no types for it
    piece = shared._new_shared(sum(sizes))
    descriptor, _ = piece._share_fd_cpu_()
    flat: Any = torch.empty(0, dtype=torch.uint8).set_(piece)
    batch = {}
    for (name, first), part in zip(items[0].items(), flat.split(sizes), strict=True):
        for place, item in enumerate(items):
            _write(descriptor, item[name], part.storage_offset() + place * first.nbytes)
        batch[name] = part[: first.nbytes * len(items)].view(first.dtype).view(len(items), *first.shape)
    return batch


_ALIGNED = 64  # bytes


def _write(descriptor: int, values: torch.Tensor, begin: int) -> None:
    left = memoryview(values.contiguous().view(-1).view(torch.uint8).numpy().data)
    while left:
        written = os.pwrite(descriptor, left, begin)
        left, begin = left[written:], begin + written


def in_threads(loader: DataLoader[Any], threads: int | None = None) -> Iterator[Any]:
    """The batches of a DataLoader without workers, in its order, read ahead in threads of this process.

    Files are read and inflated outside of Python's lock, so that threads do the work of worker processes. They need not
    hand anything over, which takes a worker process about as long as the reading. At most 2 batches for each thread are
    ready or being read at a time. A transform is called in the threads.

    threads: how many; None is one for each usable core. A `UsageError` if the loader has workers or pins memory.

    >>> loader = DataLoader(PairDataset("images.h5"), batch_size=2, shuffle=True)
    >>> sum(len(batch["pair"]) for batch in in_threads(loader, 2))
    5
    """
    if loader.num_workers or loader.pin_memory:
        raise UsageError("in_threads wants a DataLoader with num_workers=0 and pin_memory=False")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: want 1 or more")
    return _read_ahead(loader, threads or usable_cores())


def _read_ahead(loader: DataLoader[Any], threads: int) -> Iterator[Any]:
    pool = ThreadPoolExecutor(threads)
    ahead: deque[Future[Any]] = deque()
    try:
        for indices in loader.sampler if loader.batch_sampler is None else loader.batch_sampler:
            ahead.append(pool.submit(_loaded, loader, indices))
            if len(ahead) >= 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _loaded(loader: DataLoader[Any], indices: Any) -> Any:
    """A batch, or an item if the loader makes no batches."""
    if loader.batch_sampler is None:
        return loader.collate_fn(loader.dataset[indices])
    return loader.collate_fn([loader.dataset[index] for index in indices])


# Files


@dataclass(frozen=True)
class _Files:
    """An image file, or a folder of shards, and that of its fields. stamps: of all files, as they were checked."""

    images: Path
    fields: Path | None
    stamps: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class _Source:
    """What is known of an image file and its fields.

    rows: (N, 2) int64, the places of each item's images and of its field, -1 without fields. facts: (N, ...) by name.
    size: X and Y in pixels.
    """

    files: _Files
    rows: np.ndarray
    facts: Mapping[str, np.ndarray]
    size: tuple[int, int]
    mip: int | None


@dataclass(frozen=True)
class _Opened:
    """The files as one process has opened them."""

    process: int
    collections: tuple[tuple[Collection, Collection | None], ...]

    @classmethod
    def of(cls, files: Sequence[_Files]) -> "_Opened":
        with ExitStack() as stack:
            opened = []
            for each in files:
                images, fields = _open_both(each.images, each.fields, stack)
                if _stamps(images, fields) != each.stamps:
                    raise UsageError(
                        f"{each.images} or its fields have changed since the PairDataset was made: make it anew"
                    )
                opened.append((images, fields))
            stack.pop_all()
        return cls(os.getpid(), tuple(opened))

    def close(self) -> None:
        for images, fields in self.collections:
            images.close()
            if fields is not None:
                fields.close()


def _paths(given: Paths) -> list[Path]:
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(path) for path in given]


def _open_both(image_path: Path, field_path: Path | None, stack: ExitStack) -> tuple[Collection, Collection | None]:
    images = stack.enter_context(closing(open_collection(image_path)))
    fields = None if field_path is None else stack.enter_context(closing(open_collection(field_path)))
    return images, fields


def _stamps(images: Collection, fields: Collection | None) -> tuple[tuple[str, int, int], ...]:
    """What tells whether files are still the same: their names, sizes and times."""
    paths = [*images.paths, *(fields.paths if fields is not None else ())]
    return tuple((str(path), *stamp_of(path)) for path in paths)


def _checked(image_path: Path, field_path: Path | None, wanted: np.ndarray | None) -> _Source:
    """What is known of an image file and its fields. wanted: starts, (M, 2, 3), of the only pairs that are taken."""
    with ExitStack() as stack:
        images, fields = _open_both(image_path, field_path, stack)
        _check_is(images, "image")
        with _refusing_damage(images):
            facts = {**_facts(images, {"start": _START, **BOX_FACTS}, (2,)), **_facts(images, {"pair": _PAIR}, ())}
        facts.setdefault("pair", images.numbers.astype(np.int64))
        chosen = np.arange(images.shape[0]) if wanted is None else _chosen(images, wanted)
        places = np.full(len(chosen), -1)
        facts = {name: values[chosen] for name, values in facts.items()}
        if fields is not None:
            _check_is(fields, "field")
            check_same_mip(images, fields)
            places = places_of(images, fields)[chosen]
            _check_all_have_fields(images, fields, facts["pair"], places)
            with _refusing_damage(fields):
                of_pairs = _facts(fields, PAIR_FACTS, ())
            facts |= {name: values[places] for name, values in of_pairs.items()}
        files = _Files(image_path, field_path, _stamps(images, fields))
        x_size, y_size = images.shape[2:]
        return _Source(files, np.stack([chosen, places], axis=1), facts, (x_size, y_size), images.mip)


def _check_is(collection: Collection, kind: str) -> None:
    """Refuse what is not of a kind, or not finished: its numbers and its pairs may still change."""
    if collection.kind not in (kind, None):
        raise UsageError(f"{collection.path}: {collection.kind} file, where {kind} file is wanted")
    if any(".partial." in path.name for path in collection.paths):
        left, count = int((~collection.done).sum()), len(collection.done)
        raise UsageError(
            f"{collection.path}: still being made, {left} of {count} pairs are missing: want a finished file"
        )


def _check_all_have_fields(images: Collection, fields: Collection, pairs: np.ndarray, places: np.ndarray) -> None:
    missing = pairs[places < 0]
    if len(missing):
        raise UsageError(
            f"{fields.path} has no field of {len(missing)} of {len(pairs)} pairs of {images.path}, "
            f"{numbered(missing)}: want a field for each"
        )


@contextmanager
def _refusing_damage(collection: Collection) -> Iterator[None]:
    try:
        yield
    except DamageError as error:
        raise UsageError(f"{collection.path}: damaged: {error}") from None


def _facts(collection: Collection, wanted: Mapping[str, Stored], axes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Of some facts those that the files hold, (N, *axes, ...) each; those of 0 and 1 are bool."""
    return {
        name: values.astype(bool if wanted[name].dtype == "|u1" else wanted[name].dtype)
        for name, values in collection.columns(wanted).items()
        if values.shape[1:] == (*axes, *wanted[name].shape)
    }


def _check_alike(sources: Sequence[_Source]) -> None:
    first, *others = sources
    for other in others:
        names = f"{first.files.images} and {other.files.images}"
        if other.size != first.size:
            raise UsageError(f"{names} are of {first.size} and {other.size} pixels: want the same size")
        if None not in (first.mip, other.mip) and first.mip != other.mip:
            raise UsageError(f"{names} are of MIP {first.mip} and MIP {other.mip}: want the same MIP")
        if differ := sorted(set(first.facts) ^ set(other.facts)):
            raise UsageError(
                f"{names}, or their fields: only one holds {', '.join(differ)}: want files that hold the same"
            )


def _check_crop(crop: tuple[int, int], size: tuple[int, int], path: Path) -> None:
    if not all(1 <= part <= whole for part, whole in zip(crop, size, strict=True)):
        raise UsageError(
            f"crop is {crop}, and the images of {path} are {size}: want a crop of 1 x 1 pixel to that size"
        )


def _read(collection: Collection, place: int, pair: int) -> np.ndarray:
    try:
        return collection.read(place)
    except (OSError, RuntimeError, ValueError) as error:
        raise WorkError(f"{collection.path}: pair {pair} cannot be read: {error}") from error


# Splits


def _pairs_of(split: PathLike, part: str) -> np.ndarray:
    """The pairs of a part, (M, 2, 3)."""
    found = read_split(split)
    try:
        return found.part(part).pairs
    except UsageError as error:
        raise UsageError(f"{split}: {error}") from None


def _chosen(images: Collection, wanted: np.ndarray) -> np.ndarray:
    """The places of the pairs whose starts are among `wanted`, (M, 2, 3)."""
    if "start" not in images.arrays:
        raise UsageError(f"{images.path}: it holds no starts, by which its pairs are found in a split")
    known = {start.tobytes() for start in wanted}
    starts = images.arrays["start"].astype(np.int64)
    return np.flatnonzero([start.tobytes() in known for start in starts])
