"""Tables of annotations: the CSV files that Neuroglancer's forks write, and plain ones.

The header tells what a table is:
- the Seung-lab fork's export: "(x, y, z)" under `Coordinate 1`, and `Coordinate 2` for lines and boxes
  (https://github.com/seung-lab/neuroglancer, src/neuroglancer/ui/annotations.ts; pull requests 360 and 377)
- that fork's first form: all of an annotation under `Coordinates` (its pull request 272)
- the export proposed upstream: `point[0]` to `point[2]`, `pointA[0]` to `pointB[2]`, or `center[0]` to `center[2]`
  (https://github.com/google/neuroglancer/pull/835)
- plain tables with the columns x0, y0, z0 or x, y, z
UTF-8 with or without BOM, any line ends, columns in any order, separated by commas, or tabs or semicolons where the
header has no comma. No table says how wide its voxels are.

The fork's export floors: a cell is the number of a voxel. A point is taken where the voxel begins, and so are a line's
ends and a bounding box's corners, but the box also spans the section that its higher corner was floored to. So it does
in the viewer state that was exported, where the corner lies in the middle of that section.
"""

import csv
import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import StringIO
from itertools import chain
from typing import TextIO

import numpy as np

from ..errors import UsageError
from ..spec import FARTHEST, Note
from .coordinate_spaces import plain_space
from .model import SHAPES, Annotations, Shape, gathered, shown

Triple = tuple[float, float, float]
Placed = tuple[Shape, Triple, Triple]
Columns = Mapping[str, int]  # where a column is, by its name in lower case
Reader = Callable[[list[str]], Placed | None]  # None: a row that is no annotation of its own

_SHAPES = {**SHAPES, "aabb": Shape.BOX}
_COLLECTIONS = {"collection", "line strip", "spoke"}  # a `*` after it: closed
_NO_TYPE = "two coordinates and no Type: a line or a box? Add a column Type that says Line or AABB"


def read_table(path: str) -> Annotations:
    """The annotations of a table, in file order."""
    shapes = bytearray()
    numbers = array("d")
    notes: dict[int, Note] = {}
    try:
        # A spreadsheet's BOM is not part of the first column's name: utf-8-sig drops it.
        with open(path, newline="", encoding="utf-8-sig") as file:
            for (shape, first, second), note in _rows(file):
                if note is not None:
                    notes[len(shapes)] = note
                shapes.append(shape)
                numbers.extend(first)
                numbers.extend(second)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if not shapes:
        raise UsageError(f"{path}: no points below the header")
    ends = np.frombuffer(numbers).reshape(-1, 2, 3)
    kinds = np.frombuffer(shapes, np.uint8)
    annotations = gathered(path, kinds, ends, plain_space(None), notes, lambda index: f"annotation {index}")
    return replace(annotations, may_say_units=False)


def _rows(file: TextIO) -> Iterator[tuple[Placed, Note | None]]:
    first = file.readline()
    rows = csv.reader(chain([first], file), delimiter=_delimiter(first))
    try:
        header = next(rows) if first else None
        if header is None:
            raise UsageError("empty: want a header, then one point a row")
        layout = _layout(header)
        for row in rows:
            if row:  # a blank line holds no annotation; a row of blank cells is a fault
                placed = _placed(layout, row, rows.line_num)
                if placed is not None:
                    yield placed, layout.note(row)
    except csv.Error as error:
        raise UsageError(f"row {rows.line_num}: {error}") from None


def _delimiter(header: str) -> str:
    if "," in header:
        return ","
    return next((mark for mark in "\t;" if mark in header), ",")


def _placed(layout: "_Layout", row: list[str], line: int) -> Placed | None:
    try:
        if not layout.least <= len(row) <= layout.most:
            raise ValueError(f"{len(row)} cells under {layout.most} columns: is a comma not quoted?")
        return layout.read(row)
    except IndexError:
        raise UsageError(f"row {line}: {len(row)} columns, too few for a coordinate") from None
    except ValueError as error:
        raise UsageError(f"row {line}: {error}") from None


@dataclass(frozen=True)
class _Layout:
    """What a header says of the rows below it: how to read one, and how many cells it may have."""

    read: Reader
    columns: Columns
    least: int
    most: int

    def note(self, row: list[str]) -> Note | None:
        """What a row says beside where its annotation is."""
        id, description, tags = (_cell(row, self.columns.get(name)) for name in ("id", "description", "tags"))
        if not (id or description or tags):
            return None
        return Note(id, description, tuple(chain.from_iterable(csv.reader(StringIO(tags, newline="")))))


def _layout(header: list[str]) -> _Layout:
    names = [name.strip() for name in header]
    columns = {_plain(name): index for index, name in reversed(list(enumerate(names)))}
    most = len(header)
    if "coordinate 1" in columns:
        return _Layout(_fork(columns), columns, 0, most)
    if "coordinates" in columns:
        return _Layout(_first_fork(columns), columns, 0, most)
    if "point[0]" in columns or "pointa[0]" in columns or "center[0]" in columns:
        # That export quotes nothing, and a comma in a description shifts the cells after it: a row must be whole.
        return _Layout(_upstream(columns), columns, most, most)
    for end in ("0", ""):
        if all(axis + end in columns for axis in "xyz"):
            return _Layout(
                _one_place(Shape.POINT, _triple_of(columns, f"x{end}", f"y{end}", f"z{end}")), columns, 0, most
            )
    raise UsageError(f"no coordinate column: want 'Coordinate 1', or x0, y0, z0; found {shown(', '.join(names))}")


def _plain(name: str) -> str:
    return name.lower().removesuffix(" (if applicable)")


# How a row is read, by its kind of table


def _fork(columns: Columns) -> Reader:
    first, second = columns["coordinate 1"], columns.get("coordinate 2")
    dimensions, kind = columns.get("ellipsoid dimensions"), columns.get("type")

    def read(row: list[str]) -> Placed | None:
        named = _cell(row, kind)
        if named.rstrip("*").lower() in _COLLECTIONS:
            return None  # its members have rows of their own
        if named:
            shape = _shape(named)
        elif _cell(row, dimensions):
            shape = Shape.ELLIPSOID
        elif _cell(row, second):
            raise ValueError(_NO_TYPE)
        else:
            shape = Shape.POINT
        place = _triple(row[first])
        if shape in (Shape.POINT, Shape.ELLIPSOID):
            return shape, place, place
        ends = place, _triple(_cell(row, second))
        return shape, *(_touching(*ends) if shape == Shape.BOX else ends)

    return read


def _touching(first: Triple, second: Triple) -> tuple[Triple, Triple]:
    """A box's corners, so that it reaches into the section of the one that lies higher."""
    low, (x, y, z) = sorted((first, second), key=lambda corner: corner[2])
    return low, (x, y, z + 0.5 if z.is_integer() else z)


def _first_fork(columns: Columns) -> Reader:
    column = columns["coordinates"]

    def read(row: list[str]) -> Placed:
        cell = row[column].strip()
        if _TWO_PLACES.fullmatch(cell):
            raise ValueError(_NO_TYPE)
        centre, has_radii, _ = cell.partition("±")
        place = _triple(centre)
        return (Shape.ELLIPSOID if has_radii else Shape.POINT), place, place

    return read


def _upstream(columns: Columns) -> Reader:
    if "pointa[0]" not in columns:
        shape, name = (Shape.POINT, "point") if "point[0]" in columns else (Shape.ELLIPSOID, "center")
        return _one_place(shape, _triple_of(columns, *_indexed(name)))
    first, second = (_triple_of(columns, *_indexed(name)) for name in ("pointa", "pointb"))
    kind = columns.get("type")

    def read(row: list[str]) -> Placed:
        named = _cell(row, kind)
        if not named:
            raise ValueError(_NO_TYPE)
        shape = _shape(named)
        if shape not in (Shape.LINE, Shape.BOX):
            raise ValueError(f"{named!r} has no two ends: want line or axis_aligned_bounding_box")
        return shape, first(row), second(row)

    return read


def _indexed(name: str) -> list[str]:
    return [f"{name}[{axis}]" for axis in range(3)]


def _one_place(shape: Shape, place_of: Callable[[list[str]], Triple]) -> Reader:
    def read(row: list[str]) -> Placed:
        place = place_of(row)
        return shape, place, place

    return read


def _triple_of(columns: Columns, *names: str) -> Callable[[list[str]], Triple]:
    """How to get x, y, z from a row that has a column for each."""
    missing = [name for name in names if name not in columns]
    if missing:
        raise UsageError(f"no column {missing[0]}: want {', '.join(names)}")
    x, y, z = (columns[name] for name in names)
    return lambda row: (_number(row[x]), _number(row[y]), _number(row[z]))


# Cells

_TRIPLE = re.compile(r"\s*\(?\s*([^\s,()]+)\s*,\s*([^\s,()]+)\s*,\s*([^\s,()]+)\s*\)?\s*")
_TWO_PLACES = re.compile(r"\([^()]*\)\s*-\s*\([^()]*\)")


def _cell(row: list[str], column: int | None) -> str:
    """A cell that may be missing."""
    return row[column].strip() if column is not None and column < len(row) else ""


def _shape(named: str) -> Shape:
    try:
        return _SHAPES[named.lower()]
    except KeyError:
        raise ValueError(f"{named!r} is no type of annotation: want Point, Line, AABB or Ellipsoid") from None


def _triple(cell: str) -> Triple:
    match = _TRIPLE.fullmatch(cell)
    if match is None:
        raise ValueError(f"{cell!r} is not (x, y, z)")
    return _number(match[1]), _number(match[2]), _number(match[3])


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if -FARTHEST <= value <= FARTHEST and "_" not in text:  # Python reads 1_000 as 1000
        return value
    if "_" in text:
        raise ValueError(f"{text!r} is not a coordinate: want a number")
    if math.isfinite(value):
        raise ValueError(f"{text!r} is not a coordinate: beyond any volume")
    raise ValueError(f"{text!r} is not a coordinate: want a finite number")
