#!/usr/bin/env python3
"""Judge the aligners of a pyramid on a volume of your own, without knowing the true fields.

    python examples/evaluate_aligner.py examples/pyramid file:///data/volume/image --mip 2 --size 512 --png fields.png

Two real sections are aligned. Then a smooth displacement d, which is known, is put onto the target, and they are
aligned again. With f0 the field of the first run and f that of the second, the error at a pixel x is

    f(x) - (d(x) + f0(x + d(x)))

which is 0 for an aligner that is right both times. The displacement is Gaussian noise, smoothed by SIGMA pixels and
scaled to a largest component. The table has a line for each aligner and each such amplitude: the median of the error
over the pixels that are MARGIN or more from the border (the median of all pairs), the largest median of a pair, the
share of folded pixels, and the seconds that a pair takes. TV-L1 and iterative Lucas-Kanade (ILK) of scikit-image run on
the same pairs. Further lines say how robust the pyramid is: what happens to its error if one section is damaged.

The stages run as generate_fields.py runs them. The module of the last stage gets the images at --mip, and earlier
stages get coarser ones, by the MIPs that the names of the modules say.

Conventions are those of curation/fields.py: arrays are x first, component 0 of a field is along y, in pixels.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from curation import fields, quality, samples
from curation.aligners.pyramid import Module, find_module, find_modules
from curation.errors import UsageError, WorkError

Array = NDArray[np.float32]
AlignFunction = Callable[[Array, Array], Array]

SIGMA = 60.0  # pixels
AMPLITUDES = (4, 12, 24)  # pixels, of the largest component
MARGIN = 40  # pixels
DAMAGED_AT = 12  # the amplitude of the lines about damage
FOLD_WIDTH = 30  # pixels
MISSING_SHARE = 0.2
TRIES = 20  # boxes tried for a pair that is all tissue


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pyramid_path", help="folder of <STAGE>_mip<IN_MIP>in_<SUFFIX> modules")
    parser.add_argument("cloudpath", help="image volume, such as file:///data/volume/image or gs://bucket/volume")
    parser.add_argument("--mip", type=int, default=0, help="of the images that the last stage gets (0)")
    parser.add_argument("--size", type=int, default=512, help="of a box, in pixels at that MIP (512)")
    parser.add_argument("--pairs", type=int, default=12, help="how many pairs of sections (12)")
    parser.add_argument("--checkpoint_name", default="none", help="of the modules, as for generate_fields.py (none)")
    parser.add_argument("--device", default="cpu", help="where the modules run, such as cuda:0 (cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of the boxes and displacements (0)")
    parser.add_argument("--png", help="a picture of the fields of the first pair, to be written there")
    args = parser.parse_args(argv)
    try:
        evaluate(args)
    except ModuleNotFoundError as error:
        print(f"error: no module {error.name}: want pip install scikit-image scipy pillow", file=sys.stderr)
        return 2
    except (UsageError, WorkError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@dataclass(frozen=True)
class Pair:
    """Two sections, (X, Y) grey values as float32, 0 being black; and the displacement that is put onto the target."""

    source: Array
    target: Array
    noise_seed: int

    def displacement(self, amplitude: float) -> Array:
        """A smooth field (2, X, Y) whose largest component is `amplitude` pixels."""
        from scipy.ndimage import gaussian_filter

        noise = np.random.default_rng(self.noise_seed).normal(size=(2, *self.target.shape))
        smooth = np.stack([gaussian_filter(each, SIGMA) for each in noise])
        return np.asarray(smooth * (amplitude / np.abs(smooth).max()), np.float32)

    def displaced(self, displacement: Array) -> Pair:
        """The pair with its target pulled through a field; cubic, so that little is lost."""
        from scipy.ndimage import map_coordinates

        x, y = positions(displacement)
        pulled = map_coordinates(self.target, [x, y], order=3, mode="mirror")
        # Only what is black is 0, although a spline swings beyond the values that it goes through.
        black = map_coordinates((self.target == 0).astype(np.float32), [x, y], order=1, mode="mirror") > 0
        lowest = np.min(self.target, where=self.target != 0, initial=np.inf)
        return replace(self, target=np.where(black, 0, np.maximum(pulled, lowest)).astype(np.float32))


@dataclass(frozen=True)
class Line:
    """A line of the table. errors: (pairs,) median errors in pixels; folded: the mean share of folded pixels."""

    name: str
    amplitude: float
    errors: Array
    folded: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.name:<32} {self.amplitude:9g}  {np.median(self.errors):11.2f}  {self.errors.max():10.2f}"
            f"  {self.folded:7.3%}  {self.seconds:8.2f}"
        )


HEADER = f"{'aligner':<32} amplitude   error (px)  worst (px)   folded  s a pair"


def evaluate(args: argparse.Namespace) -> None:
    """Print the table, and write the picture if one is wanted."""
    if args.size <= 2 * MARGIN:
        raise UsageError(f"--size {args.size}: nothing is left {MARGIN} pixels from the border: want more")
    pyramid = PyramidAligner(args.pyramid_path, args.checkpoint_name, args.device)
    if args.size % (1 << pyramid.coarsest):
        raise UsageError(f"--size {args.size}: want a multiple of {1 << pyramid.coarsest}, for the coarsest stage")
    pairs, across = read_pairs(args)
    aligners: dict[str, AlignFunction] = {"pyramid": pyramid, "TV-L1": tvl1, "ILK": ilk}
    tqdm.write(HEADER)
    steps = len(pairs) * (len(aligners) * (1 + len(AMPLITUDES)) + 1 + len(DAMAGES) + 2)
    with tqdm(total=steps, unit="run", file=sys.stderr, disable=None) as bar:
        undisturbed = {name: [run(align, pair, bar) for pair in pairs] for name, align in aligners.items()}
        for amplitude in AMPLITUDES:
            for name, align in aligners.items():
                tqdm.write(str(judged(name, align, pairs, undisturbed[name], amplitude, bar)))
        tqdm.write(str(judged("pyramid", pyramid, pairs, undisturbed["pyramid"], DAMAGED_AT, bar)))
        for name, damage in DAMAGES.items():
            tqdm.write(str(judged(name, pyramid, pairs, undisturbed["pyramid"], DAMAGED_AT, bar, damage)))
        before = [run(pyramid, pair, bar) for pair in across]
        tqdm.write(str(judged("the section between is missing", pyramid, across, before, DAMAGED_AT, bar)))
    if args.png:
        draw(Path(args.png), pairs[0], pyramid)
        print(f"picture: {args.png}")


def run(align: AlignFunction, pair: Pair, bar: Any) -> Array:
    bar.update()
    return align(pair.source, pair.target)


def judged(
    name: str,
    align: AlignFunction,
    pairs: Sequence[Pair],
    undisturbed: Sequence[Array],
    amplitude: float,
    bar: Any,
    damage: Callable[[Array], Array] | None = None,
) -> Line:
    """An aligner's line. undisturbed: its fields of the pairs as they are. damage: what happens to the source."""
    errors, folded, seconds = [], [], []
    for pair, before in zip(pairs, undisturbed, strict=True):
        known = pair.displacement(amplitude)
        moved = pair.displaced(known)
        if damage is not None:
            moved = replace(moved, source=damage(moved.source))
        begun = time.perf_counter()
        found = run(align, moved, bar)
        seconds.append(time.perf_counter() - begun)
        errors.append(np.median(error(found, known, before)))
        folded.append(quality.soundness(found)[0])
    return Line(name, amplitude, np.array(errors, np.float32), float(np.mean(folded)), float(np.median(seconds)))


def error(found: Array, known: Array, before: Array) -> Array:
    """The length of the error of each pixel that is MARGIN or more from the border."""
    from scipy.ndimage import map_coordinates

    x, y = positions(known)
    composed = known + np.stack([map_coordinates(each, [x, y], order=1, mode="nearest") for each in before])
    return np.asarray(np.linalg.norm(found - composed, axis=0)[MARGIN:-MARGIN, MARGIN:-MARGIN], np.float32)


def positions(field: Array) -> tuple[Array, Array]:
    """Where each pixel of a field (2, X, Y) points to: x and y."""
    x_size, y_size = field.shape[1:]
    return (
        np.arange(x_size, dtype=np.float32)[:, None] + field[1],
        np.arange(y_size, dtype=np.float32)[None, :] + field[0],
    )


# --- aligners


class PyramidAligner:
    """All stages of a pyramid, one after the other."""

    def __init__(self, pyramid_path: str, checkpoint_name: str, device: str) -> None:
        from curation.aligners.aligner import Aligner

        modules = find_stages(pyramid_path, checkpoint_name)
        self.stages = [
            (module.in_mip - modules[-1].in_mip, Aligner(module, checkpoint_name, {}, device)) for module in modules
        ]

    @property
    def coarsest(self) -> int:
        """How many MIPs the images of the first stage are coarser than those of the last."""
        return self.stages[0][0]

    def __call__(self, source: Array, target: Array) -> Array:
        """The field (2, X, Y) that pulls the source onto the target, both (X, Y) grey values."""
        field = None
        level = self.coarsest
        for mip, align in self.stages:
            factor = 1 << (level - mip)
            prior = None if field is None else fields.upsample(field, factor) * np.float32(factor)
            field = align(normalised(coarser(source, mip)), normalised(coarser(target, mip)), prior)
            level = mip
        return np.asarray(field, np.float32)


def find_stages(pyramid_path: str, checkpoint_name: str) -> list[Module]:
    """The modules of all stages, which go from coarse to fine."""
    found = find_modules(pyramid_path)
    if not found:
        raise UsageError(f"{pyramid_path}: want a folder of <STAGE>_mip<IN_MIP>in_<SUFFIX> modules")
    mips = [module.in_mip for module in found]
    if mips != sorted(mips, reverse=True):
        raise UsageError(f"{pyramid_path}: its stages take images of MIPs {mips}: want them from coarse to fine")
    return [find_module(pyramid_path, module.stage, module.in_mip, checkpoint_name) for module in found]


def coarser(image: Array, mips: int) -> Array:
    """An image (X, Y) so many MIPs coarser; black pixels take no part."""
    shape = (image.shape[0] >> mips, image.shape[1] >> mips)
    made, black = fields.image_to_level(image, 0, mips, shape, (0, 0))
    return np.where(black, 0, made).astype(np.float32)


def normalised(image: Array) -> Array:
    """An image as make_dataset.py stores it: mean 0 and deviation 1; black stays 0."""
    nothing = np.zeros(image.shape, bool)
    return samples.normalised(image, image == 0, nothing, image[image != 0]).image


def tvl1(source: Array, target: Array) -> Array:
    """TV-L1 of scikit-image, with the attachment 5."""
    registration: Any = importlib.import_module("skimage.registration")
    return with_y_first(registration.optical_flow_tvl1(*for_flow(source, target), attachment=5))


def ilk(source: Array, target: Array) -> Array:
    """Iterative Lucas-Kanade of scikit-image, with the radius 15."""
    registration: Any = importlib.import_module("skimage.registration")
    return with_y_first(registration.optical_flow_ilk(*for_flow(source, target), radius=15))


def for_flow(source: Array, target: Array) -> Iterator[Array]:
    """The target and the source, normalised and smoothed by 2 pixels: the reference comes first."""
    from scipy.ndimage import gaussian_filter

    return (gaussian_filter(normalised(image), 2) for image in (target, source))


def with_y_first(flow: Any) -> Array:
    """scikit-image gives the displacement along the first axis first."""
    return np.stack([flow[1], flow[0]]).astype(np.float32)


# --- damage


def inverted(image: Array) -> Array:
    tissue = image[image != 0]
    return np.where(image == 0, 0, tissue.min() + tissue.max() - image).astype(np.float32)


def halved(image: Array) -> Array:
    middle = image[image != 0].mean()
    return np.where(image == 0, 0, middle + (image - middle) / 2).astype(np.float32)


def partly_missing(image: Array) -> Array:
    left = image.copy()
    left[: round(MISSING_SHARE * len(image))] = 0
    return left


def folded(image: Array) -> Array:
    left = image.copy()
    middle = image.shape[1] // 2
    left[:, middle : middle + FOLD_WIDTH] = 0
    return left


DAMAGES: dict[str, Callable[[Array], Array]] = {
    "contrast inverted": inverted,
    "contrast halved": halved,
    f"{MISSING_SHARE:.0%} of a section missing": partly_missing,
    f"a fold {FOLD_WIDTH} px wide": folded,
}


# --- the volume


def read_pairs(args: argparse.Namespace) -> tuple[list[Pair], list[Pair]]:
    """Pairs of neighbouring sections, spread over the volume, and pairs with a section between them."""
    from cloudvolume import CloudVolume
    from cloudvolume.exceptions import InfoUnavailableError

    try:
        volume = CloudVolume(args.cloudpath, progress=False, fill_missing=True, bounded=False)
    except InfoUnavailableError:
        raise UsageError(f"{args.cloudpath}: no volume there: want one with an info file") from None
    if args.mip not in volume.available_mips:
        raise UsageError(f"{args.cloudpath} has no MIP {args.mip}: it has {list(volume.available_mips)}")
    volume.mip = args.mip
    bounds = volume.bounds
    low, high = np.array(bounds.minpt), np.array(bounds.maxpt)
    if (high[:2] - low[:2] < args.size).any():
        raise UsageError(
            f"{args.cloudpath} is {high[0] - low[0]} x {high[1] - low[1]} pixels at MIP {args.mip}: "
            f"want at least --size {args.size}"
        )
    if high[2] - low[2] < 3:
        raise UsageError(f"{args.cloudpath} has {high[2] - low[2]} sections: want at least 3")
    random = np.random.default_rng(args.seed)
    neighbours, across = [], []
    for number, z in enumerate(np.linspace(low[2], high[2] - 3, args.pairs).round().astype(int).tolist()):
        for _ in range(TRIES):
            x, y = (int(random.integers(low[axis], high[axis] - args.size + 1)) for axis in (0, 1))
            window = np.asarray(volume[x : x + args.size, y : y + args.size, z : z + 3])[..., 0].astype(np.float32)
            if (window != 0).mean() > 0.95:
                break
        else:
            raise UsageError(f"{args.cloudpath}: section {z} is black in {TRIES} boxes of {args.size} pixels")
        neighbours.append(Pair(window[..., 0], window[..., 1], args.seed + number))
        across.append(Pair(window[..., 0], window[..., 2], args.seed + number))
    return neighbours, across


# --- the picture


def draw(path: Path, pair: Pair, align: AlignFunction) -> None:
    """A row for each amplitude: the overlay before and after, the field that was put on, and what was found of it.

    The latter is the field found, less the field of the pair as it was. Overlays show the source in magenta and the
    target in green, so that what agrees is grey. Colours of fields say the direction, and their strength the length, up
    to the amplitude.
    """
    from PIL import Image

    before = align(pair.source, pair.target)
    rows = []
    for amplitude in AMPLITUDES:
        known = pair.displacement(amplitude)
        moved = pair.displaced(known)
        found = align(moved.source, moved.target)
        panels = [
            overlay(moved.source, moved.target),
            overlay(fields.warp(moved.source, found), moved.target),
            colours(known, amplitude),
            colours(found - before, amplitude),
        ]
        rows.append(np.concatenate([np.pad(each, ((2, 2), (2, 2), (0, 0))) for each in panels], axis=1))
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)


def overlay(source: Array, target: Array) -> NDArray[np.uint8]:
    """(Y, X, 3): rows are y, as pictures have them."""
    red, green = (np.clip(128 + 48 * normalised(image), 0, 255).T for image in (source, target))
    return np.stack([red, green, red], axis=-1).astype(np.uint8)


def colours(field: Array, longest: float) -> NDArray[np.uint8]:
    """A field (2, X, Y) as a picture (Y, X, 3): the hue is the direction, the saturation the length."""
    angle = np.arctan2(field[0], field[1]).T
    length = np.clip(np.linalg.norm(field, axis=0).T / longest, 0, 1)
    wheel = np.stack([np.cos(angle - shift) for shift in (0, 2 * np.pi / 3, 4 * np.pi / 3)], axis=-1)
    return np.asarray(255 * (1 - length[..., None] * (1 - wheel) / 2), np.uint8)


if __name__ == "__main__":
    sys.exit(main())
