"""How many pairs a second a DataLoader gives to a training program, by dataset class and number of workers.

    python benchmarks/loading.py [--size 1024] [--pairs 64] [--workers 0 2 4] [--rounds 3] [--images FOLDER]

The classes take turns in each round, and the median of the rounds is shown. An epoch is timed, with the start of its
workers. The processor time is that of all processes; it varies less than the pairs a second where others use the
machine. All classes read the same files, which are made in a temporary folder as make_dataset.py stores them. FOLDER
holds real sections as PNG files; without it, the images are smoothed noise. A batch is one pair. It is copied once when
it arrives, as a training program copies it to a GPU.

    in_threads      as collate, with as many threads as the others have workers
    collate         curation.training.PairDataset, with the collate_fn that stands beside it
    PairDataset     curation.training.PairDataset, with the default collate_fn
    plain           a class that opens the files with h5py in each worker, and reads main[i]
    opened at once  the class of the original trainer: it opens the files as it is made, and makes masks of black pixels
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from curation import fields
from curation.datasets.chunks import encode
from curation.datasets.layout import Layout
from curation.training import Item, PairDataset, collate, in_threads

GRID = 32  # pixels between the vectors of a field, which is smooth between them
KINDS = 8  # pairs that differ; the others repeat them


class Plain(Dataset[Item]):
    """Opens the files in each worker."""

    def __init__(self, images: Path, priors: Path) -> None:
        self._paths = images, priors
        self._files: list[h5py.File] = []
        with h5py.File(images) as file:
            self._count = len(file["main"])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Item:
        if not self._files:
            self._files = [h5py.File(path) for path in self._paths]
        images, prior = (torch.from_numpy(file["main"][index]) for file in self._files)
        return {"source": images[:1], "target": images[1:], "prior": prior}


class OpenedAtOnce(Dataset[Item]):
    """Opens the files as it is made, as the original trainer does; forked workers inherit them."""

    def __init__(self, images: Path, priors: Path) -> None:
        self._images, self._priors = (h5py.File(path)["main"] for path in (images, priors))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Item:
        pair = self._images[index]
        source, target = torch.FloatTensor(pair[:1]), torch.FloatTensor(pair[1:])
        for image in (source, target):
            image[image < -4] = 0
        prior = torch.FloatTensor(self._priors[index])
        return {"src": source, "tgt": target, "src_zeros": source == 0, "tgt_zeros": target == 0, "src_field": prior}


@dataclass(frozen=True)
class Way:
    """A way to load. threads: the workers are threads."""

    make: Callable[[Path, Path], Dataset[Item]]
    collate_fn: Callable[[list[Item]], Item] | None = None
    threads: bool = False

    def batches(self, loader: DataLoader[Item], workers: int) -> Iterable[Item]:
        """The batches of an epoch."""
        return in_threads(loader, workers) if self.threads and workers else loader


WAYS = {
    "in_threads": Way(PairDataset, collate, threads=True),
    "collate": Way(PairDataset, collate),
    "PairDataset": Way(PairDataset),
    "plain": Way(Plain),
    "opened at once": Way(OpenedAtOnce),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="pixels along a side")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=Path, help="folder of sections as PNG files")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        paths = made(Path(name), args.size, args.pairs, args.images)
        for _ in range(args.rounds):
            for workers in args.workers:
                for called, way in WAYS.items():
                    found.setdefault((called, workers), []).append(timed(way, paths, workers))
    for title, column in (("pairs per second", 0), ("processor ms a pair", 1)):
        print(f"{title:20}" + "".join(f"{f'{workers} workers':>12}" for workers in args.workers))
        for called in WAYS:
            shown = (statistics.median(each[column] for each in found[called, workers]) for workers in args.workers)
            print(f"{called:20}" + "".join(f"{each:12.1f}" for each in shown))


def timed(way: Way, paths: tuple[Path, Path], workers: int) -> tuple[float, float]:
    """Pairs per second in an epoch, and the milliseconds of processor time for each."""
    how: dict[str, Any] = {"collate_fn": way.collate_fn}
    if workers and not way.threads:
        how |= {"num_workers": workers, "multiprocessing_context": "fork"}
    loader = DataLoader(way.make(*paths), batch_size=1, shuffle=True, **how)
    copies: dict[str, torch.Tensor] = {}
    began, used = time.perf_counter(), processor_time()
    for batch in way.batches(loader, workers):
        for key, values in batch.items():
            copies.setdefault(key, torch.empty_like(values)).copy_(values)
    return len(loader) / (time.perf_counter() - began), 1000 * (processor_time() - used) / len(loader)


def processor_time() -> float:
    """Seconds, of this process and of those of its children that have ended."""
    return sum(os.times()[:4])


def made(folder: Path, size: int, pairs: int, sections: Path | None) -> tuple[Path, Path]:
    """An image file and its field file."""
    random = np.random.default_rng(0)
    images, priors = [], []
    for kind in range(min(KINDS, pairs)):
        prior = fields.rounded(
            fields.upsample(random.normal(0, 3, (2, size // GRID, size // GRID)).astype("f4"), GRID), 2
        )
        source, target = (section(2 * kind + role, size, sections) for role in range(2))
        images += [encode(source), encode(fields.warp(target, prior))]
        priors.append(encode(prior))
    for path, roles, chunks in ((folder / "images.h5", 2, images), (folder / "fields.h5", 1, priors)):
        layout = Layout((pairs, 2, size, size), roles, {}, (), {})
        with h5py.File(path, "w") as file:
            layout.create_main(file)
            for number in range(pairs * roles):
                chunk = chunks[number % len(chunks)]
                file["main"].id.write_direct_chunk((number // roles, number % roles, 0, 0), chunk.data, chunk.skipped)
            file["start"] = np.arange(pairs * 6).reshape(pairs, 2, 3)
            file.attrs["mip"] = 2
    return folder / "images.h5", folder / "fields.h5"


def section(number: int, size: int, sections: Path | None) -> np.ndarray:
    """A section of whole grey values, normalised, (size, size) float32: a real one, mirrored until it is so large."""
    if sections is None:
        noise = np.random.default_rng(number).normal(size=(size // 2, size // 2)).astype(np.float32)
        grey = np.clip(np.round(fields.upsample(noise, 2) * 40 + 128), 1, 255)
    else:
        from PIL import Image

        files = sorted(sections.glob("*.png"))
        grey = np.asarray(Image.open(files[number % len(files)]).convert("L"), np.float32).T
        grey = np.pad(grey, [(0, max(0, size - length)) for length in grey.shape], "symmetric")[:size, :size]
    return np.asarray((grey - grey.mean()) / grey.std(), np.float32)


if __name__ == "__main__":
    main()
