"""make_dataset.py --exclude: a dataset without the pairs that somebody rejected after looking at it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import Command
from small_jobs import (
    NAME,
    Json,
    Refused,
    contents,
    dataset_arguments,
    differing,
    field_layer,
    fields_arguments,
    image_layer,
    leftovers,
    pair,
    put_json,
    pyramid_of,
    spec_of,
    tree,
)

from curation.datasets.writer import Writer
from curation.pair_selection import are_listed
from curation.quality import PairQuality, measure
from curation.steps.verify_dataset import faults

FIELD = f"field_0_{NAME}"
FIRST, SECOND, THIRD, FOURTH = pair(0, 0, 5), pair(16, 32, 4), pair(64, 64, 3), pair(80, 16, 2)
BACK = pair(16, 32, 3, 4)  # the reverse of SECOND
PAIRS = [FIRST, SECOND, THIRD, FOURTH, BACK, THIRD]  # one of them twice
NOTED = (1, 3, 5)
ELSEWHERE = pair(96, 96, 3)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec with a field, of PAIRS; those of NOTED have notes."""
    noted = [{**each, "note": {"id": str(place)}} if place in NOTED else each for place, each in enumerate(PAIRS)]
    return put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), field_layer(tmp_path), noted))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


Make = Callable[..., str]


@pytest.fixture
def make(command: Command, spec: Path, out: Path) -> Make:
    """Run make_dataset into `out` unless a folder is given; what it prints."""

    def run(*more: object, folder: Path = out) -> str:
        done = command("make_dataset.py", *dataset_arguments(spec, folder, *more))
        assert done.code == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def rejected(tmp_path: Path) -> Callable[..., Path]:
    """An exclusion file of some pairs."""
    return lambda *pairs, name="rejected.json": put_json(tmp_path / name, {"pairs": pairs})


def remove_volumes(spec: Path) -> None:
    for name in ("image", "field"):
        shutil.rmtree(spec.parent / name)


def pairs_in(path: Path) -> list[int]:
    with h5py.File(path) as file:
        return list(file["pair"][:])


def chunks(path: Path) -> dict[tuple[int, int], tuple[int, bytes]]:
    """The stored chunks of a file, by the pairs' places in the spec and what of the pair they hold."""
    with h5py.File(path) as file:
        main, places = file["main"].id, file["pair"][:].tolist()
        offsets = [main.get_chunk_info(index).chunk_offset for index in range(main.get_num_chunks())]
        return {(places[offset[0]], offset[1]): main.read_direct_chunk(offset) for offset in offsets}


# What is left out


@pytest.mark.parametrize(
    ("excluded", "left"),
    [
        ([THIRD], [0, 1, 3, 4]),
        ([SECOND], [0, 2, 3, 5]),
        ([BACK, FOURTH], [0, 2, 5]),
        ([FIRST], [1, 2, 3, 4, 5]),
        ([pair(0, 0, 4, 5)], [1, 2, 3, 4, 5]),
        ([pair(0, 0, 5, 3)], [0, 1, 2, 3, 4, 5]),
    ],
    ids=["twice", "both ways", "by its reverse", "the first", "the first by its reverse", "another with its source"],
)
def test_exactly_the_listed_pairs_are_left_out_in_either_direction(
    excluded: list[Json], left: list[int], make: Make, rejected: Callable[..., Path], out: Path, tmp_path: Path
) -> None:
    text = make("--exclude", rejected(*excluded))
    assert f"excluded         {len(PAIRS) - len(left)} pair" in text
    make(folder=tmp_path / "whole")
    assert sorted(path.name for path in out.iterdir()) == [FIELD, NAME]
    for name in (NAME, FIELD):
        whole = tmp_path / "whole" / name
        assert pairs_in(out / name) == left
        assert chunks(out / name) == {at: chunk for at, chunk in chunks(whole).items() if at[0] in left}
        assert list(faults(out / name)) == []
        with h5py.File(out / name) as some, h5py.File(whole) as every:
            for fact in set(every) - {"main", "pair", "note"}:
                assert np.array_equal(some[fact], every[fact][:][left]), fact
            assert some.attrs["spec"] == every.attrs["spec"]
    with h5py.File(out / NAME) as file:
        notes = [json.loads(note)["id"] if note else None for note in file["note"].asstr()[:]]
    assert notes == [str(place) if place in NOTED else None for place in left]


def test_where_no_note_is_left_there_is_none(make: Make, rejected: Callable[..., Path], out: Path) -> None:
    make("--exclude", rejected(SECOND, THIRD, FOURTH))
    with h5py.File(out / NAME) as file:
        assert "note" not in file


def test_several_files_are_taken_together_and_pairs_of_other_specs_are_counted(
    make: Make, rejected: Callable[..., Path], out: Path, tmp_path: Path
) -> None:
    files = rejected(FIRST, ELSEWHERE, name="a.json"), rejected(ELSEWHERE, SECOND, name="b.json")
    text = make("--exclude", *files)
    said = f"excluded         3 pairs, by {files[0]}, {files[1]}; 1 pair listed there is not in the spec\n"
    assert said in text
    assert pairs_in(out / NAME) == [2, 3, 5]
    make("--exclude", files[0], "--exclude", files[1], folder=tmp_path / "again")
    assert differing(out / NAME, tmp_path / "again" / NAME) == []
    more = rejected(ELSEWHERE, pair(96, 96, 4), FOURTH, name="c.json")
    assert f"1 pair, by {more}; 2 pairs listed there are not" in make("--exclude", more, folder=tmp_path / "more")


def test_a_list_is_compared_in_both_directions_and_at_any_distance() -> None:
    pairs = np.array([[[0, 0, 1], [0, 0, 2]], [[0, 0, 2], [0, 0, 1]], [[2**40, 0, 1], [-(2**40), 0, 2]]])
    assert are_listed(pairs, pairs[:1]).tolist() == [True, True, False]
    assert are_listed(pairs, pairs[2:, ::-1]).tolist() == [False, False, True]
    assert are_listed(pairs, pairs[:0]).tolist() == [False] * 3
    assert are_listed(pairs[:0], pairs).tolist() == []


# Refusals


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "not a list of pairs to leave out"),
        (b"{}", "missing required field `pairs`"),
        (b'[{"src": {}}]', "$[0].src"),
        (b'["\x80"]', "not a list of pairs to leave out"),
        (b"[" * 100_000, "not a list of pairs to leave out"),
        (b'[{"src": {"x_start": 1e999, "y_start": 0, "z_start": 0}, "tgt": {}}]', "not a list of pairs to leave out"),
    ],
)
def test_what_is_no_exclusion_file_is_refused_in_one_line(
    content: bytes | None, said: str, refused: Refused, spec: Path, rejected: Callable[..., Path], out: Path
) -> None:
    good, bad = rejected(FIRST), spec.parent / "bad.json"
    if content is not None:
        bad.write_bytes(content)
    line = refused("make_dataset.py", *dataset_arguments(spec, out, "--exclude", good, bad))
    assert f"{bad}: " in line
    assert said in line
    assert not out.exists()


def test_a_list_of_all_pairs_is_refused(refused: Refused, spec: Path, out: Path) -> None:
    line = refused("make_dataset.py", *dataset_arguments(spec, out, "--exclude", spec))
    assert line == f"make_dataset: error: --exclude {spec}: no pair of {spec} is left"
    assert not out.exists()


def test_no_pair_is_left_out_of_a_layer(refused: Refused, spec: Path, rejected: Callable[..., Path], out: Path) -> None:
    arguments = ["--spec_path", spec, "--dst_path", f"file://{out}", "--exclude", rejected(FIRST)]
    assert "--exclude leaves pairs out of files; a layer has a section for each" in refused(
        "make_dataset.py", *arguments
    )
    assert not out.exists()


# What a finished dataset is made of


def test_what_is_left_out_counts_and_not_how_it_is_said(
    make: Make, rejected: Callable[..., Path], out: Path, tmp_path: Path
) -> None:
    make("--exclude", rejected(SECOND))
    before = tree(out)
    reasons = put_json(tmp_path / "other.json", [{**BACK, "reason": "a fold"}, ELSEWHERE])
    text = make("--exclude", reasons)
    assert "4, done already\n" in text
    assert f"excluded         2 pairs, by {reasons}; 1 pair listed there is not in the spec\n" in text
    assert tree(out) == before


def test_a_list_that_leaves_nothing_out_is_as_none(make: Make, rejected: Callable[..., Path], out: Path) -> None:
    make()
    before = tree(out)
    text = make("--exclude", rejected(ELSEWHERE))
    assert "6, done already\nexcluded         0 pairs, by " in text
    assert "excluded" not in make()
    assert tree(out) == before
    with h5py.File(out / NAME) as file:
        assert "exclusion" not in json.loads(file.attrs["provenance"])


def test_a_dataset_of_another_exclusion_is_refused_by_that_name(
    make: Make, refused: Refused, rejected: Callable[..., Path], spec: Path, out: Path
) -> None:
    make("--exclude", rejected(SECOND))
    for more in ([], ["--exclude", rejected(FIRST, name="other.json")]):
        line = refused("make_dataset.py", *dataset_arguments(spec, out, *more))
        assert f"{out / NAME} is there already, made with another exclusion: --update brings it up to date" in line


# Updating


@pytest.mark.parametrize("more", [[], ["--quality"], ["--min_valid", 0.5], ["--name", "mine"]], ids=str)
def test_an_update_copies_what_is_left_and_needs_no_volume(
    more: list[object], make: Make, rejected: Callable[..., Path], spec: Path, out: Path, tmp_path: Path
) -> None:
    file = rejected(FIRST, BACK)
    make("--exclude", file, *more, folder=tmp_path / "fresh")
    make(*more)
    remove_volumes(spec)
    text = make("--exclude", file, "--update", *more)
    assert "kept             6 of 6 images, as they were stored" in text
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in (tmp_path / "fresh").iterdir()}
    assert names == ({"mine.h5", "field_0_mine.h5"} if "--name" in more else {NAME, FIELD})
    for name in names:
        assert differing(out / name, tmp_path / "fresh" / name) == []
    assert "done already" in make("--exclude", file, "--update", *more)


def test_pairs_come_back_and_only_they_are_cut(
    make: Make, rejected: Callable[..., Path], out: Path, tmp_path: Path
) -> None:
    make("--exclude", rejected(FIRST, SECOND))
    text = make("--exclude", rejected(FIRST, THIRD, name="other.json"), "--update")
    assert "kept             2 of 6 images" in text
    assert pairs_in(out / NAME) == [1, 3, 4]
    make("--update")
    make(folder=tmp_path / "fresh")
    assert [fault for name in (NAME, FIELD) for fault in differing(out / name, tmp_path / "fresh" / name)] == []


def test_the_plan_says_what_is_excluded_and_kept(
    make: Make, rejected: Callable[..., Path], spec: Path, out: Path
) -> None:
    file = rejected(THIRD)
    assert f"pairs            4\nexcluded         2 pairs, by {file}\n" in make("--exclude", file, "--dry_run")
    make()
    before = tree(out)
    remove_volumes(spec)
    text = make("--exclude", file, "--update", "--dry_run")
    assert "kept             8 of 8 images, as they are stored\ndistinct boxes   0, " in text
    assert "chunks to read   0," in text
    assert tree(out) == before


@pytest.mark.parametrize("killed_at", [0, 3, 7, 11])
def test_an_update_that_is_interrupted_goes_on(
    killed_at: int,
    command: Command,
    make: Make,
    rejected: Callable[..., Path],
    spec: Path,
    out: Path,
    tmp_path: Path,
) -> None:
    file = rejected(THIRD)
    make("--exclude", file, folder=tmp_path / "fresh")
    make()
    whole = {name: contents(out / name) for name in (NAME, FIELD)}
    remove_volumes(spec)
    update = dataset_arguments(spec, out, "--exclude", file, "--update")
    put, count = Writer.put, iter(range(100))

    def interrupted(writer: Writer, *arguments: object) -> None:
        if next(count) == killed_at:
            raise KeyboardInterrupt
        put(writer, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "put", interrupted)
        assert command("make_dataset.py", *update).code == 130
    assert len(leftovers(out)) == 2
    assert {name: contents(out / name) for name in whole} == whole
    assert command("make_dataset.py", *update).code == 0
    assert [fault for name in (NAME, FIELD) for fault in differing(out / name, tmp_path / "fresh" / name)] == []
    assert leftovers(out) == []


def test_fields_of_the_pairs_that_are_left_are_kept(
    command: Command, make: Make, rejected: Callable[..., Path], spec: Path, out: Path, tmp_path: Path
) -> None:
    pyramid_of(tmp_path, name="0_mip0in_small")
    run = fields_arguments(tmp_path, out / NAME, out / FIELD, "--update", src_mip=0, dst_mip=0)
    make()
    assert command("generate_fields.py", *run).code == 0
    remove_volumes(spec)
    make("--exclude", rejected(FIRST, SECOND), "--update")
    done = command("generate_fields.py", *run)
    assert done.code == 0, done.stderr
    assert "fields           3 kept, 0 made" in done.stdout


# With --min_valid


AT_THE_BORDER = pair(112, 64, 5)  # about half of each of its boxes lies outside


@pytest.fixture
def bordering(spec: Path) -> list[Json]:
    """The spec's pairs, with two more, of which --min_valid 0.9 leaves one out."""
    content = json.loads(spec.read_text())
    pairs = [PAIRS[0], PAIRS[1], AT_THE_BORDER, PAIRS[2], pair(32, 0, 5)]
    put_json(spec, {**content, "pairs": pairs})
    return pairs


def places(path: Path) -> tuple[list[int], list[int]]:
    with h5py.File(path) as file:
        return file["pair"][:].tolist(), file["left_out"][:].tolist() if "left_out" in file else []


@pytest.mark.parametrize("more", [[], ["--quality"]], ids=str)
def test_pairs_of_too_small_an_area_stay_out_and_are_not_looked_at_again(
    more: list[object], bordering: list[Json], make: Make, rejected: Callable[..., Path], spec: Path, out: Path
) -> None:
    limit = ["--min_valid", 0.9, *more]
    file = rejected(bordering[1])
    make("--exclude", file, *limit, folder=spec.parent / "fresh")
    make(*limit)
    assert places(out / NAME) == ([0, 1, 3, 4], [2])
    remove_volumes(spec)
    planned = make("--exclude", file, "--update", *limit, "--dry_run")
    assert "kept             6 of 8 images, as they are stored\ndistinct boxes   0, " in planned
    text = make("--exclude", file, "--update", *limit)
    assert "pairs            3; 1 left out, their valid area being below 0.9\nexcluded         1 pair, by " in text
    assert "kept             6 of 6 images, as they were stored" in text
    for name in (NAME, FIELD):
        assert places(out / name) == ([0, 3, 4], [2])
        assert differing(out / name, spec.parent / "fresh" / name) == []


def test_a_pair_may_be_excluded_that_had_too_small_an_area(
    bordering: list[Json], make: Make, rejected: Callable[..., Path], out: Path
) -> None:
    make("--min_valid", 0.9)
    make("--min_valid", 0.9, "--exclude", rejected(bordering[2]), "--update")
    assert places(out / NAME) == places(out / FIELD) == ([0, 1, 3, 4], [])


def test_killed_between_its_two_files_an_update_needs_no_volume_either(
    bordering: list[Json],
    command: Command,
    make: Make,
    rejected: Callable[..., Path],
    spec: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["--min_valid", 0.9, "--exclude", rejected(bordering[1]), "--update"]
    make(*arguments, folder=spec.parent / "fresh")
    make("--min_valid", 0.9)
    remove_volumes(spec)
    finish = Writer.finish

    def interrupted(writer: Writer, *given: object) -> None:
        if writer.target.name == FIELD:
            raise KeyboardInterrupt
        finish(writer, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "finish", interrupted)
        assert command("make_dataset.py", *dataset_arguments(spec, out, *arguments)).code == 130
    assert places(out / NAME) == ([0, 3, 4], [2])
    assert places(out / FIELD) == ([0, 1, 3, 4], [2])
    make(*arguments)
    assert [fault for name in (NAME, FIELD) for fault in differing(out / name, spec.parent / "fresh" / name)] == []
    assert leftovers(out) == []


def test_where_the_limit_is_lower_pairs_that_were_left_out_are_cut(
    bordering: list[Json], make: Make, rejected: Callable[..., Path], out: Path
) -> None:
    make("--min_valid", 0.9)
    file = rejected(bordering[1])
    make("--min_valid", 0.1, "--exclude", file, "--update")
    assert places(out / NAME) == places(out / FIELD) == ([0, 2, 3, 4], [])
    make("--min_valid", 0.95, "--exclude", file, "--update")
    assert places(out / NAME) == places(out / FIELD) == ([0, 3, 4], [2])


# With --quality


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that grows with each pair that is measured in this process."""
    found: list[object] = []

    def noted(*images: object) -> PairQuality:
        found.append(images)
        return measure(*images)  # type: ignore[arg-type]

    monkeypatch.setattr("curation.steps.pair_quality.measure", noted)
    return found


@pytest.mark.parametrize("more", [[], ["--min_valid", 0.9]], ids=str)
def test_numbers_of_pairs_that_stay_are_not_measured_again(
    more: list[object],
    bordering: list[Json],
    measured: list[object],
    make: Make,
    rejected: Callable[..., Path],
    spec: Path,
    out: Path,
) -> None:
    content = json.loads(spec.read_text())
    put_json(spec, {**content, "pairs": [*bordering, FOURTH, bordering[0]]})
    limit = ["--quality", *more]
    pairs = 6 if more else 7
    make("--exclude", rejected(bordering[1]), *limit)
    assert len(measured) == pairs - 1
    make(*limit, "--update")
    assert len(measured) == pairs  # the one that has come back
    make("--exclude", rejected(FOURTH), *limit, "--update")
    assert len(measured) == pairs
    make("--exclude", rejected(FOURTH), *limit, folder=spec.parent / "fresh")
    assert [fault for name in (NAME, FIELD) for fault in differing(out / name, spec.parent / "fresh" / name)] == []
