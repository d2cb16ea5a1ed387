"""Splits: no two parts share tissue, every pair is in one part or left out, and the file that says so."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import Command
from hypothesis import given
from hypothesis import strategies as st
from small_jobs import (
    NAME,
    Json,
    Refused,
    dataset_arguments,
    field_layer,
    image_layer,
    pair,
    put_json,
    put_main,
    spec_of,
    stretch_arguments,
)

from curation.errors import UsageError
from curation.pair_selection import read_excluded_pairs
from curation.splits import LEFT_OUT, WAYS, PairBoxes, Part, Split, divide, leaks, read_split, split_text

SIZE = (32, 16)
THREE = (0.6, 0.2, 0.2)


def random_pairs(seed: int, points: int, extent: int, sections: int) -> PairBoxes:
    """Points paired by offsets, in both directions; the boxes moved, and some of them also cut at another size."""
    rng = np.random.default_rng(seed)
    places = rng.integers(0, (extent, extent, sections), (points, 3))
    source = places.repeat(2, axis=0)
    target = source - np.array([0, 0, 1]) * rng.integers(1, 4, (len(source), 1))
    starts = np.stack([source, target], axis=1)
    starts = np.concatenate([starts, starts[rng.random(len(starts)) < 0.5][:, ::-1]])
    moved = rng.integers(-3, 4, (*starts.shape[:2], 2))
    larger = rng.random(len(starts)) < 0.2
    files = [PairBoxes.of(starts, moved, SIZE), PairBoxes.of(starts[larger], moved[larger] + 1, (40, 40))]
    return PairBoxes.joined(files)


def sharing(pairs: PairBoxes, gap: int) -> np.ndarray:
    """(N, N) bool: which pairs share tissue, by the definition."""
    low, high = pairs.corners[:, :, 0], pairs.corners[:, :, 1]
    count = len(low)
    shared = np.zeros((count, count), bool)
    for one in (0, 1):
        for other in (0, 1):
            in_plane = np.ones((count, count), bool)
            for axis in (0, 1):
                in_plane &= low[:, one, axis][:, None] < high[:, other, axis]
                in_plane &= low[:, other, axis] < high[:, one, axis][:, None]
            shared |= in_plane & (abs(low[:, one, 2][:, None] - low[:, other, 2]) <= gap)
    return shared


PAIRS = st.builds(random_pairs, st.integers(0, 2**31), st.integers(2, 60), st.integers(1, 1500), st.integers(1, 40))


@given(PAIRS, st.sampled_from(WAYS), st.integers(0, 3), st.integers(0, 5), st.sampled_from([THREE, (0.9, 0.1)]))
def test_no_two_parts_share_tissue(
    pairs: PairBoxes, by: str, gap: int, seed: int, fractions: tuple[float, ...]
) -> None:
    try:
        part_of = divide(pairs, fractions, by, gap, seed)
    except UsageError:
        return  # see below when it may say that it cannot be
    shared = sharing(pairs, gap)
    for part in range(len(fractions)):
        assert (part_of == part).any()
        assert not shared[np.ix_(part_of == part, (part_of != part) & (part_of != LEFT_OUT))].any()
    assert leaks(pairs, part_of, gap) is None
    assert (part_of == divide(pairs, fractions, by, gap, seed)).all()
    by_start = {start.tobytes(): part for start, part in zip(pairs.starts, part_of.tolist(), strict=True)}
    for start_, part in zip(pairs.starts, part_of.tolist(), strict=True):
        assert by_start.get(start_[::-1].tobytes(), part) == part  # the reverse of a pair is where the pair is
    assert by != "point" or (part_of != LEFT_OUT).all()


@given(PAIRS, st.integers(0, 3), st.integers(0, 2**31))
def test_leaks_are_found_just_where_they_are(pairs: PairBoxes, gap: int, seed: int) -> None:
    part_of = np.random.default_rng(seed).choice([LEFT_OUT, 0, 1], len(pairs.starts), p=[0.6, 0.3, 0.1])
    among_all = sharing(pairs, gap)
    among_all &= (part_of[:, None] != part_of) & (part_of[:, None] != LEFT_OUT) & (part_of != LEFT_OUT)
    found = leaks(pairs, part_of, gap)
    assert (found is not None) == among_all.any()
    assert found is None or among_all[found]


@given(PAIRS, st.integers(0, 2))
def test_by_point_gives_up_just_if_there_are_too_few_components(pairs: PairBoxes, gap: int) -> None:
    near = sharing(pairs, gap)
    while ((further := near @ near) != near).any():
        near = further
    components = len(np.unique(near.argmax(axis=1)))
    if components >= 3:
        assert set(divide(pairs, THREE, "point", gap, 0).tolist()) == {0, 1, 2}
    else:
        with pytest.raises(UsageError, match=r"too few for 3 parts: want --by section or --by block"):
            divide(pairs, THREE, "point", gap, 0)


def apart(count: int, axis: int, step: int) -> PairBoxes:
    """Pairs of neighbouring sections in a row along an axis."""
    starts = np.zeros((count, 2, 3), np.int64)
    starts[:, :, axis] = (np.arange(count) * step)[:, None]
    starts[:, 1, 2] -= 1
    return PairBoxes.of(starts, 0, SIZE)


@pytest.mark.parametrize(
    ("by", "axis", "step"), [("section", 2, 1), ("block", 0, 8), ("block", 1, 8), ("point", 0, 32)]
)
def test_the_fractions_are_met(by: str, axis: int, step: int) -> None:
    part_of = divide(apart(1000, axis, step), (0.8, 0.1, 0.1), by, 1, 0)
    counts = np.bincount(part_of[part_of != LEFT_OUT])
    assert counts.sum() >= 990
    np.testing.assert_allclose(counts / counts.sum(), (0.8, 0.1, 0.1), atol=0.002)


def test_components_of_all_sizes_come_into_all_parts() -> None:
    clusters = np.repeat(np.arange(100) * 1000, np.arange(1, 101))
    starts = np.zeros((len(clusters), 2, 3), np.int64)
    starts[:, :, 0] = (clusters + np.concatenate([np.arange(size) % 30 for size in range(1, 101)]))[:, None]
    starts[:, :, 1] = (np.concatenate([np.arange(size) // 30 for size in range(1, 101)]))[:, None]
    starts[:, 1, 2] = -1
    pairs = PairBoxes.of(starts, 0, SIZE)
    part_of = divide(pairs, (0.5, 0.5), "point", 1, 0)
    assert abs((part_of == 0).mean() - 0.5) < 0.01
    sizes = [np.unique(clusters[part_of == part], return_counts=True)[1] for part in (0, 1)]
    assert all(size.min() < 20 and size.max() > 80 for size in sizes)


@pytest.mark.parametrize("by", WAYS)
def test_another_seed_gives_another_split(by: str) -> None:
    pairs = random_pairs(0, 60, 3000, 60)
    first, again, *others = (divide(pairs, THREE, by, 1, seed).tolist() for seed in (0, 0, 1, 2, 3))
    assert first == again
    assert any(other != first for other in others)


def test_sections_at_a_border_are_left_out_as_far_as_the_gap_reaches() -> None:
    pairs = apart(30, 2, 1)
    for gap in (0, 1, 4):
        part_of = divide(pairs, (0.5, 0.5), "section", gap, 0)
        assert (part_of == LEFT_OUT).sum() == gap + 1  # each pair is of two sections
        sections = [pairs.starts[part_of == part][:, :, 2] for part in (0, 1)]
        low, high = sorted(sections, key=np.min)
        assert low.max() + gap + 1 == high.min()


def test_a_few_sections_are_enough_if_there_is_a_way() -> None:
    """The cut that meets the fraction best would leave no place for another one."""
    pairs = PairBoxes.joined([apart(3, 2, 3), PairBoxes.of(apart(3, 2, 3).starts[[0] * 1], 0, SIZE)])
    assert sorted(divide(pairs, (0.98, 0.01, 0.01), "section", 1, 0).tolist()) == [0, 1, 2]
    with pytest.raises(UsageError, match=r"3 pairs cannot be divided by section into 3 parts, .* a smaller --gap"):
        divide(pairs, THREE, "section", 2, 0)


def test_blocks_are_cut_along_both_axes() -> None:
    starts = np.zeros((3, 2, 3), np.int64)
    starts[1, :, 0] = starts[2, :, 1] = 100
    starts[:, 1, 2] = -1
    assert sorted(divide(PairBoxes.of(starts, 0, SIZE), THREE, "block", 0, 0).tolist()) == [0, 1, 2]


def test_a_box_of_several_files_is_one_that_holds_all_of_its_places() -> None:
    starts = np.array([[[0, 0, 5], [0, 0, 4]], [[64, 0, 5], [0, 0, 4]], [[0, 0, 5], [0, 0, 4]]])
    moved = np.zeros((3, 2, 2), np.int64)
    moved[2] = [[-4, 0], [0, 8]]
    joined = PairBoxes.joined([PairBoxes.of(starts[:2], moved[:2], SIZE), PairBoxes.of(starts[2:], moved[2:], (64, 8))])
    assert joined.starts.tolist() == starts[:2].tolist()
    assert joined.corners[0].tolist() == [[[-4, 0, 5], [60, 16, 6]], [[0, 0, 4], [64, 16, 5]]]
    assert joined.corners[1].tolist() == [[[64, 0, 5], [96, 16, 6]], [[0, 0, 4], [64, 16, 5]]]


# The file


def some_split() -> Split:
    pairs = random_pairs(3, 20, 500, 10).starts
    parts = (Part("train", 0.75, pairs[:9]), Part('té"st', 0.25, pairs[9:12]))
    return Split(parts, pairs[12:], "section", 1, 7, ("a.h5", "b.h5"))


def test_a_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    split = some_split()
    path = tmp_path / "split.json"
    path.write_text("".join(split_text(split)), encoding="utf-8")
    found = read_split(path)
    for one, other in zip(split.parts, found.parts, strict=True):
        assert (one.name, one.fraction, one.pairs.tolist()) == (other.name, other.fraction, other.pairs.tolist())
    assert found.left_out.tolist() == split.left_out.tolist()
    assert (found.by, found.gap, found.seed, found.made_from) == ("section", 1, 7, ("a.h5", "b.h5"))
    assert found.part("train").pairs.dtype == np.int64
    with pytest.raises(UsageError, match=r"no part tests in the split: want one of train"):
        found.part("tests")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert read_excluded_pairs(put_json(path, content["parts"][1])).tolist() == split.parts[1].pairs.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not a split, as split_pairs.py writes it: Expected `object`, got `array`"),
        ({"pairs": []}, "Object missing required field `parts`"),
        ({"parts": []}, "its parts are none"),
        ({"parts": [{"name": "a", "pairs": []}] * 2}, "its parts are a, a: want one or more, each with its own name"),
        ({"parts": [{"name": n, "pairs": [pair(0, 0, 5)]} for n in "ab"]}, "[[0, 0, 5], [0, 0, 4]] is there twice"),
    ],
)
def test_what_is_no_split_is_refused(content: object, message: str, tmp_path: Path) -> None:
    path = put_json(tmp_path / "split.json", content)
    with pytest.raises(UsageError) as error:
        read_split(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"split.json: No such file"):
        read_split(tmp_path / "split.json")


def test_a_split_written_by_hand_needs_no_more_than_names_and_pairs(tmp_path: Path) -> None:
    content: Json = {"parts": [{"name": "train", "pairs": [pair(0, 0, 5)], "why": "easy"}, {"name": "b", "pairs": []}]}
    found = read_split(put_json(tmp_path / "split.json", content))
    assert found.part("train").pairs.tolist() == [[[0, 0, 5], [0, 0, 4]]]


# The script

ROW = [pair(x, y, z) for z in (5, 3, 1) for x, y in ((0, 0), (64, 64), (64, 0))]


def arguments(folder: Path, *more: object, by: str = "point", fractions: object = "0.6 0.2 0.2") -> list[object]:
    inputs = [] if {"--image_path", "--spec_path"} & set(more) else ["--spec_path", folder / "spec.json"]
    return [*inputs, "--dst_path", folder / "split.json", "--by", by, "--fractions", *str(fractions).split(), *more]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), pairs=ROW))


def test_the_script_writes_a_split_and_says_what_it_got(spec: Path, command: Command, tmp_path: Path) -> None:
    done = command("split_pairs.py", *arguments(tmp_path, by="block", fractions="0.7 0.3"))
    assert done.code == 0, done.stderr
    content = json.loads((tmp_path / "split.json").read_text())
    assert {part["name"]: len(part["pairs"]) for part in content["parts"]} == {"train": 6, "validation": 3}
    assert all(pair_ in ROW for part in content["parts"] for pair_ in part["pairs"])
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert rows["train"] == ["train", "6", "67%", "70%", "6,", "from", "0", "to", "5", "0"]
    assert "area (µm²)" in done.stdout
    again = command("split_pairs.py", *arguments(tmp_path, by="block", fractions="0.7 0.3"))
    assert "split.json, done already" in again.stdout


def test_another_split_is_replaced_only_if_told(spec: Path, command: Command, refused: Refused, tmp_path: Path) -> None:
    assert command("split_pairs.py", *arguments(tmp_path)).code == 0
    other = arguments(tmp_path, by="block", fractions="0.7 0.3")
    assert "with other content (9 pairs there, 9 now): --update or --overwrite" in refused("split_pairs.py", *other)
    assert command("split_pairs.py", *other, "--update").code == 0
    assert read_split(tmp_path / "split.json").by == "block"


@pytest.mark.parametrize(
    ("more", "fractions", "message"),
    [
        ([], "0.6 0.3", "--fractions 0.6 0.3: want two or more numbers that are above 0 and have the sum 1"),
        ([], "1", "--fractions 1: want"),
        ([], "1 0", "--fractions 1 0: want"),
        ([], "0.25 0.25 0.25 0.25", "--fractions gives 4 parts: want as many --names"),
        (["--names", "a", "a", "b"], "0.6 0.2 0.2", "--names a a b: want 3 different names"),
        (["--names", "a"], "0.6 0.2 0.2", "--names a: want 3 different names"),
        (["--gap", "2", "--by", "section"], "0.6 0.2 0.2", "9 pairs cannot be divided by section into 3 parts"),
        (["--gap", "10"], "0.25 0.25 0.5", None),
        (["--gap", "10", "--names", *"abcd"], "0.25 0.25 0.25 0.25", "9 pairs form 3 components"),
    ],
)
def test_what_cannot_be_is_refused(
    more: list[str], fractions: str, message: str | None, spec: Path, command: Command, tmp_path: Path
) -> None:
    done = command("split_pairs.py", *arguments(tmp_path, *more, fractions=fractions))
    assert done.code == (2 if message else 0)
    assert (message or "") in done.stderr
    assert (tmp_path / "split.json").exists() == (message is None)


def test_a_split_that_leaks_is_never_written(
    spec: Path, failed: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def without_care(pairs: PairBoxes, *_: object) -> np.ndarray:
        return np.arange(len(pairs.starts)) // 3

    monkeypatch.setattr("curation.steps.split_pairs.divide", without_care)
    assert "would share tissue; report it" in failed("split_pairs.py", *arguments(tmp_path, "--gap", 2))
    assert not (tmp_path / "split.json").exists()


def test_boxes_lie_where_the_field_has_moved_them(command: Command, tmp_path: Path) -> None:
    """Two boxes that do not overlap in the spec do so in the volume, as only one of them was moved."""
    starts = np.array([[[0, 0, 5], [0, 0, 4]], [[40, 0, 5], [40, 0, 4]]])
    moved = np.zeros((2, 2, 2), np.int64)
    for shift, code in ((8, 0), (9, 2)):
        moved[0, 1, 0] = shift
        main = np.ones((2, 2, 32, 16), np.float32)
        images = put_main(tmp_path / "images.h5", main, mip=0, start=starts, translation=moved)
        given = arguments(tmp_path, "--image_path", images, "--overwrite", fractions="0.5 0.5")
        assert command("split_pairs.py", *given).code == code


def test_files_of_several_mips_are_divided_together(command: Command, tmp_path: Path) -> None:
    starts = np.array([[[x, 0, 5], [x, 0, 4]] for x in (0, 40, 80)])
    main = np.ones((3, 2, 32, 16), np.float32)
    fine = put_main(tmp_path / "fine.h5", main, mip=0, start=starts)
    coarse = put_main(tmp_path / "coarse.h5", main[:2], mip=1, start=starts[:2])
    done = command("split_pairs.py", *arguments(tmp_path, "--image_path", fine, fractions="0.3 0.3 0.4"))
    assert done.code == 0
    assert "areas are in pixels, as the size of a voxel is not known: the files do not say which" in done.stdout
    both = arguments(tmp_path, "--image_path", fine, coarse, "--overwrite", fractions="0.6 0.4")
    done = command("split_pairs.py", *both)
    assert "3 pairs form one component" in done.stderr  # the coarse boxes reach from 0 to 104


def test_a_dataset_and_its_numbers(command: Command, tmp_path: Path) -> None:
    spec = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), field_layer(tmp_path), ROW))
    assert command("make_dataset.py", *dataset_arguments(spec, tmp_path / "out", "--quality")).code == 0
    images, fields = tmp_path / "out" / NAME, tmp_path / "out" / f"field_0_{NAME}"
    done = command("split_pairs.py", *arguments(tmp_path, "--image_path", images, "--field_path", fields))
    assert done.code == 0, done.stderr
    with h5py.File(fields) as file:
        numbers = dict(zip(map(repr, file["start"][:].tolist()), file["correlation_after"][:].tolist(), strict=True))
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    for part in read_split(tmp_path / "split.json").parts:
        median = np.median([numbers[repr(start_)] for start_ in part.pairs.tolist()])
        assert rows[part.name][-3] == f"{median:.2f}"
    assert "has a field, which moves the boxes" in command("split_pairs.py", *arguments(tmp_path)).stderr


def test_a_stretch_is_divided_by_section(command: Command, tmp_path: Path) -> None:
    assert command("download_image.py", *stretch_arguments(image_layer(tmp_path), tmp_path, z_end=6)).code == 0
    (images,) = tmp_path.glob("*.h5")
    given = arguments(tmp_path, "--image_path", images, by="section", fractions="0.5 0.5")
    done = command("split_pairs.py", *given)
    assert "left out         2: they straddle a border between parts, or lie within the gap at one" in done.stdout


def test_files_that_do_not_say_enough_are_refused(refused: Refused, tmp_path: Path) -> None:
    main = np.ones((2, 2, 32, 16), np.float32)
    starts = np.zeros((2, 2, 3), np.int64)
    older = put_main(tmp_path / "older.h5", main)
    assert "does not say where its boxes start" in refused(
        "split_pairs.py", *arguments(tmp_path, "--image_path", older)
    )
    no_mip = put_main(tmp_path / "no_mip.h5", main, mip=None, start=starts)
    assert "does not say at which MIP" in refused("split_pairs.py", *arguments(tmp_path, "--image_path", no_mip))
    images = put_main(tmp_path / "images.h5", main, start=starts)
    given = arguments(tmp_path, "--image_path", images, "--field_path", no_mip)
    assert "no_mip.h5 holds no numbers of pairs" in refused("split_pairs.py", *given)
    same = ["--image_path", images, "--dst_path", images, "--by", "point", "--fractions", "0.5", "0.5", "--overwrite"]
    assert "cannot be the split too" in refused("split_pairs.py", *same)
