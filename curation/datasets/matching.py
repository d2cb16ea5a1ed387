"""Which field belongs to which pair: told by their starts, or by their numbers where a file holds no starts."""

from collections import deque

import numpy as np

from ..errors import UsageError
from .collection import Collection


def places_of(images: Collection, prior: Collection) -> np.ndarray:
    """The place of each pair's prior, or other field, (N,), -1 where there is none: by `start` if both have it.

    Otherwise pairs and fields belong together by their numbers in the dataset. A `UsageError` if they cannot.
    """
    shapes = [each.shape for each in (images, prior)]
    by_start = all("start" in each.arrays for each in (images, prior))
    if shapes[0][1:] != shapes[1][1:] or (not by_start and images.expected != prior.expected):
        raise UsageError(f"{images.path} is {shapes[0]}, {prior.path} is {shapes[1]}: want the same shape")
    if by_start:
        places = _places(images.arrays["start"], prior.arrays["start"])
    else:
        place_of = {number: place for place, number in enumerate(prior.numbers.tolist())}
        places = np.array([place_of.get(number, -1) for number in images.numbers.tolist()], np.int64)
    # What was chosen by its start may have another number among the pairs of another spec.
    names = {"translation"} if by_start else {"translation", "pair"}
    matched = np.flatnonzero((places >= 0) & images.done & prior.done[places])
    for name in names & set(images.arrays) & set(prior.arrays):
        ours, theirs = images.arrays[name][matched], prior.arrays[name][places[matched]]
        differs = (ours != theirs).any(axis=tuple(range(1, ours.ndim)))
        if differs.any():
            first = int(differs.argmax())
            raise UsageError(
                f"pair {matched[first]}: {name} is {ours[first].tolist()} in {images.path} but "
                f"{theirs[first].tolist()} in {prior.path}: these fields are not of these images"
            )
    return places


def _places(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Where among `theirs`, (M, 2, 3), each of `ours`, (N, 2, 3), is: (N,), -1 where it is not.

    Of those that are there several times, the first stands for the first, and so on.
    """
    left: dict[bytes, deque[int]] = {}
    for place, start in enumerate(theirs.astype(np.int64)):
        left.setdefault(start.tobytes(), deque()).append(place)
    found = (left.get(start.tobytes()) for start in ours.astype(np.int64))
    return np.array([places.popleft() if places else -1 for places in found], np.int64)


def check_same_mip(images: Collection, fields: Collection) -> None:
    """Refuse fields that are not of the images' pixels, as far as the files say."""
    if None not in (mips := (images.mip, fields.mip)) and mips[0] != mips[1]:
        raise UsageError(f"{fields.path} is of MIP {mips[1]}, {images.path} of MIP {mips[0]}: want the same MIP")
