"""Inputs that nobody has thought of end in success or in one line and exit code 2: never in a traceback, or in dirt."""

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_jobs import (
    Json,
    dataset_arguments,
    field_layer,
    image_layer,
    made_folder,
    pair,
    spec_arguments,
    spec_of,
    tree,
)

from curation.errors import UsageError
from curation.spec import Spec, parse_spec, read_spec

Runner = Callable[..., Any]


def tries(count: int) -> Any:
    """The same examples each time, and no time limit on one."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture
def ended(command: Runner) -> Runner:
    """Run a script that must succeed, or find its input wrong and say so in one line; gives whether it succeeded."""

    def run(name: str, *arguments: object) -> bool:
        done = command(name, *arguments)
        assert done.code in (0, 2), done.stderr
        if done.code == 2:
            assert done.stdout == ""
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"{Path(name).stem}: error: ")
        return done.code == 0

    return run


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Folders of which each example has one of its own."""
    made: list[Path] = []

    def make() -> Path:
        if made:
            shutil.rmtree(made.pop())
        made.append(Path(tempfile.mkdtemp(dir=tmp_path)))
        return made[0]

    yield make


# Specs

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.sampled_from([0, -1, 1, 2, 3, 16, 30, 31, 2**20, 2**48, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["file:///nowhere", "gs://", "://", "precomputed://file://", "mem://x", "\0", "file://\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)


# Most of them where a start, a size or a level could be.
NUMBERS = st.integers(0, 6) | st.integers(-2, 9).map(lambda k: 16 * k) | st.integers(-40, 2**20) | st.just(2**48)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all there is in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def changes(draw: st.DrawFn, spec: Json) -> Json:
    """The spec with up to three things in it replaced, removed, doubled or added, or rewritten in an older form."""
    spec = copy.deepcopy(spec)
    for _ in range(draw(st.integers(0, 3))):
        there = list(places(spec))
        if not there:
            break
        *way, last = draw(st.sampled_from(there))
        holder: Any = spec
        for key in way:
            holder = holder[key]
        kind = draw(st.sampled_from(["replace", "number", "remove", "double", "add", "older"]))
        if kind == "replace":
            holder[last] = draw(JSON_VALUES)
        elif kind == "number":
            holder[last] = draw(NUMBERS)
        elif kind == "remove":
            del holder[last]
        elif kind == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif kind == "add" and isinstance(holder[last], dict):
            holder[last][draw(st.text(max_size=5))] = draw(JSON_VALUES)
        elif kind == "older" and isinstance(spec.get("pairs"), list):
            spec["pairs"] = [older(boxes) for boxes in spec["pairs"]]
    return spec


def older(boxes: Any) -> Any:
    """A pair as a list of two, its boxes by their centres."""
    if not isinstance(boxes, dict):
        return boxes
    half = {"x_start": 16, "y_start": 8}  # of 32 x 16 pixels at MIP 0
    return [
        {
            key.removesuffix("_start"): value + half.get(key, 0) if isinstance(value, int) else value
            for key, value in box.items()
        }
        if isinstance(box, dict)
        else box
        for box in boxes.values()
    ]


def as_bytes(draw: st.DrawFn, spec: Json) -> bytes:
    """The spec as JSON, now and then cut off or garbled."""
    content = bytearray(json.dumps(spec, indent=draw(st.sampled_from([None, 1]))).encode())
    damage = draw(st.sampled_from(["none"] * 12 + ["cut", "garble", "bom", "utf-16"]))
    if damage == "cut":
        del content[draw(st.integers(0, len(content))) :]
    elif damage == "garble" and content:
        for _ in range(draw(st.integers(1, 3))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    elif damage == "bom":
        content[:0] = b"\xef\xbb\xbf"
    return content.decode().encode("utf-16") if damage == "utf-16" else bytes(content)


TEMPLATE = spec_of("file:///IMAGE", "file:///FIELD", [pair(0, 0, 5), pair(16, 32, 4)]) | {
    "masks": [{"path": "file:///IMAGE", "src_mip": 0, "threshold": 250.5}]
}
TEMPLATE["image"]["reference"] = {"path": "file:///IMAGE", "src_mip": 0, "dst_mip": 1, "x_size": 32, "y_size": 16}


@st.composite
def specs(draw: st.DrawFn) -> bytes:
    return as_bytes(draw, draw(changes(TEMPLATE)))


@tries(1500)
@given(specs())
def test_any_spec_is_read_or_refused(content: bytes) -> None:
    try:
        spec = parse_spec(content)
    except UsageError:
        return
    assert isinstance(spec, Spec)
    assert parse_spec(spec.text().encode()) == spec  # what is written reads back the same


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    image_layer(folder)
    field_layer(folder)
    return folder


@tries(700)
@given(content=specs())
def test_any_spec_is_planned_or_refused(content: bytes, layers: Path, ended: Runner, tmp_path: Path) -> None:
    for name in ("IMAGE", "FIELD"):
        content = content.replace(f"file:///{name}".encode(), f"file://{layers}/{name.lower()}".encode())
    (tmp_path / "spec.json").write_bytes(content)
    out = made_folder(tmp_path / "out")
    if ended("make_dataset.py", *dataset_arguments(tmp_path / "spec.json", out, "--dry_run")):
        assert read_spec(tmp_path / "spec.json").pairs
    assert list(out.iterdir()) == []


# Points

CELLS = (
    st.text(max_size=12)
    | st.sampled_from(["(1, 2, 3)", "1", "-0.5", "1e3", "", '"', "nan", "1e400", "9" * 5000, "0x10", "1_0", "١", "\0"])
    | st.tuples(*[st.floats(-1e5, 1e5)] * 3).map(str)
    | st.integers(-(10**16), 10**16).map(str)
)
HEADERS = st.sampled_from(["", "x0,y0", "a,b", "Coordinate 2", '"'])


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Points as a CSV: most of them good, now and then a header or a row that is not."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=60))
    plain = draw(st.booleans())
    header = draw(st.sampled_from(["x0,y0,z0", "x0,y0,z0,id", "\ufeffx0,y0,z0"] if plain else ["Coordinate 1,Type"]))
    header = draw(HEADERS) if draw(st.integers(0, 9)) == 0 else header
    number = st.integers(-100, 5000) | st.floats(-1e5, 1e5)
    points = draw(st.lists(st.tuples(number, number, number), min_size=1, max_size=5))
    rows = [f"{x},{y},{z}" if plain else f'"({x}, {y}, {z})",Point,7' for x, y, z in points]
    if draw(st.integers(0, 2)) == 0:
        quoted = CELLS.map(lambda cell: '"' + cell.replace('"', '""') + '"')
        rows.append(",".join(draw(st.lists(CELLS | quoted, min_size=1, max_size=4))))
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join([header, *draw(st.permutations(rows))])
    return text.encode(draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "utf-16"])), "surrogatepass")


@tries(600)
@given(table=tables(), offsets=st.lists(st.integers(-3, 3), max_size=3), permute=st.booleans())
def test_any_points_make_a_spec_or_are_refused(
    table: bytes, offsets: list[int], permute: bool, ended: Runner, fresh: Callable[[], Path]
) -> None:
    folder = fresh()
    (folder / "template.json").write_text(json.dumps(spec_of("file:///image", pairs=[pair(0, 0, 5)])))
    (folder / "points.csv").write_bytes(table)
    more = ["--permute_pairs"] if permute else []
    made = ended("create_spec.py", *spec_arguments(folder, "--offsets", *offsets, *more))
    assert sorted(tree(folder)) == sorted(["points.csv", "template.json", *(["spec.json"] if made else [])])
    if made:
        starts = read_spec(folder / "spec.json").starts()
        assert starts[0].tolist() == [[0, 0, 5], [0, 0, 4]]  # the template's stays, and stays first
        assert (starts[..., :2] % 16 == 0).all()
        assert set((starts[1:, 1, 2] - starts[1:, 0, 2]).tolist()) <= {*offsets, *(-offset for offset in offsets)}
        assert len(np.unique(starts.reshape(-1, 6), axis=0)) == len(starts)


# Shards

FIELDS = np.random.default_rng(0).normal(size=(12, 2, 5, 4)).astype(np.float32)


@st.composite
def shards(draw: st.DrawFn) -> list[tuple[str, int, int, str]]:
    """A folder's entries: name, the range in it, and what is wrong with it."""
    cuts = sorted(draw(st.sets(st.integers(1, 11), max_size=4)))
    ranges = list(zip([0, *cuts], [*cuts, 12], strict=True))
    entries = [(f"{first}_{last}.h5", first, last, "") for first, last in ranges]
    wrong = st.sampled_from(
        ["away", "cut", "empty", "shape", "float64", "int", "short", "folder", "img", "nan", "text"]
    )
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(entries) - 1))
        name, first, last, _ = entries[at]
        entries[at] = (name, first, last, draw(wrong))
    extra = st.sampled_from(["0_3.h5", "3_3.h5", "5_2.h5", "0_99999999999999999999.h5", "notes.txt", "x.h5", ".hidden"])
    for name in draw(st.sets(extra, max_size=1)):
        entries.append((name, 0, 3, draw(wrong | st.just(""))))
    return entries


def put_shard(path: Path, main: np.ndarray, wrong: str) -> None:
    if wrong == "folder":
        path.mkdir()
    elif wrong == "empty":
        path.write_bytes(b"")
    elif wrong == "text":
        path.write_text("no shard")
    elif wrong != "away":
        with h5py.File(path, "w") as file:
            file["img" if wrong == "img" else "main"] = main
        if wrong == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged(main: np.ndarray, wrong: str) -> np.ndarray:
    if wrong == "nan":
        main = main.copy()
        main[0, :, 2] = np.nan
    whole = {"shape": main[..., 1:], "short": main[1:], "float64": main.astype(np.float64), "int": main.view(np.int32)}
    return whole.get(wrong, main)


@tries(250)
@given(entries=shards())
def test_any_folder_of_shards_is_joined_or_refused(
    entries: list[tuple[str, int, int, str]], ended: Runner, fresh: Callable[[], Path]
) -> None:
    folder = fresh()
    temp, out = made_folder(folder / "shards"), made_folder(folder / "out")
    held = {}
    for name, first, last, wrong in entries:
        path = temp / name
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        held[name] = damaged(FIELDS[first:last], wrong)
        put_shard(path, held[name], wrong)
    before = tree(temp)
    made = ended("concat_fields.py", "--temp_dir", temp, "--dst_path", out / "joined.h5")
    assert tree(temp) == before
    assert [path.name for path in out.iterdir()] == (["joined.h5"] if made else [])
    if made:
        names = sorted((name for name in before if name[0].isdigit()), key=lambda name: int(name.split("_")[0]))
        with h5py.File(out / "joined.h5") as file:
            assert file["main"][:].tobytes() == b"".join(held[name].tobytes() for name in names)
