"""Annotation files: points picked in Neuroglancer, as a CSV.

Read are Neuroglancer's export (a column `Coordinate 1` holding "(x, y, z)") and a plain table with the columns
x0, y0, z0; UTF-8 with or without BOM, any line ends, other columns in any order. Coordinates are MIP-0 voxels;
fractions are floored, since a voxel holds the coordinates from its number up to the next.
"""

import csv
import math
import os
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TextIO

import numpy as np

from .errors import UsageError
from .spec import FARTHEST

NEUROGLANCER_COLUMN = "Coordinate 1"
PLAIN_COLUMNS = ("x0", "y0", "z0")

Coordinates = tuple[str, str, str]


def read_points(path: str | os.PathLike[str]) -> np.ndarray:
    """The points of a CSV in file order, (P, 3) int64: x, y, z in MIP-0 voxels."""
    try:
        # A spreadsheet's BOM is not part of the first column's name: utf-8-sig drops it.
        with open(path, newline="", encoding="utf-8-sig") as file:
            numbers = np.fromiter(chain.from_iterable(_points(file)), np.int64)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if not numbers.size:
        raise UsageError(f"{path}: no points below the header")
    return numbers.reshape(-1, 3)


def _points(file: TextIO) -> Iterator[tuple[int, int, int]]:
    rows = csv.reader(file)
    try:
        header = next(rows, None)
        if header is None:
            raise UsageError("empty: want a header, then one point a row")
        coordinates = _coordinates(header)
        for row in rows:
            if row:  # a blank line holds no point; a row of blank cells is a fault
                yield _point(coordinates, row, rows.line_num)
    except csv.Error as error:
        raise UsageError(f"row {rows.line_num}: {error}") from None


def _coordinates(header: list[str]) -> Callable[[list[str]], Coordinates]:
    """How to find a row's three coordinates under this header."""
    names = [name.strip() for name in header]
    if NEUROGLANCER_COLUMN in names:
        column = names.index(NEUROGLANCER_COLUMN)
        return lambda row: _split(row[column])
    if all(name in names for name in PLAIN_COLUMNS):
        x, y, z = (names.index(name) for name in PLAIN_COLUMNS)
        return lambda row: (row[x], row[y], row[z])
    raise UsageError(
        f"no coordinate column: want {NEUROGLANCER_COLUMN!r}, or {', '.join(PLAIN_COLUMNS)}; found {', '.join(names)}"
    )


_TRIPLE = re.compile(r"\s*\(?\s*([^\s,()]+)\s*,\s*([^\s,()]+)\s*,\s*([^\s,()]+)\s*\)?\s*")


def _split(cell: str) -> Coordinates:
    match = _TRIPLE.fullmatch(cell)
    if match is None:
        raise ValueError(f"{cell!r} is not (x, y, z)")
    return match[1], match[2], match[3]


def _point(coordinates: Callable[[list[str]], Coordinates], row: list[str], line: int) -> tuple[int, int, int]:
    try:
        x, y, z = coordinates(row)
        return _voxel(x), _voxel(y), _voxel(z)
    except IndexError:
        raise UsageError(f"row {line}: {len(row)} columns, too few for a coordinate") from None
    except ValueError as error:
        raise UsageError(f"row {line}: {error}") from None


def _voxel(text: str) -> int:
    """A coordinate floored to a whole voxel."""
    if "_" in text:  # Python reads 1_000 as 1000
        raise ValueError(f"{text!r} is not a coordinate: want a number")
    try:
        value = int(text)
    except ValueError:
        try:
            value = math.floor(float(text))
        except (ValueError, OverflowError):  # not a number; NaN; infinity
            raise ValueError(f"{text!r} is not a coordinate: want a finite number") from None
    if abs(value) > FARTHEST:
        raise ValueError(f"{text!r} is not a coordinate: beyond any volume")
    return value
