"""verify_dataset.py: silent on whole files, and a line for each fault of a damaged one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import Command
from small_jobs import (
    NAME,
    PLUS_ONE,
    dataset_arguments,
    field_layer,
    fields_arguments,
    image_layer,
    made_folder,
    put_json,
    put_older_fields,
    pyramid_of,
    spec_of,
)
from whole_files import KINDS, SEALED, whole_files

from curation.datasets.chunks import Chunk
from curation.datasets.facts import BOX_FACTS
from curation.datasets.partial import entry_of, row_of
from curation.datasets.seal import seal_finished
from curation.datasets.stored import SampleReader
from curation.steps.verify_dataset import look_for_faults


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good file of each kind."""
    return whole_files(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def taken(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a good file, to be damaged."""
    return lambda kind: Path(shutil.copy(whole[kind], tmp_path))


Faults = Callable[..., list[str]]


@pytest.fixture
def faults(command: Command) -> Faults:
    """The lines that verify_dataset.py says of files; each begins with the file it is of."""

    def run(*paths: Path) -> list[str]:
        done = command("verify_dataset.py", *paths)
        lines = done.stdout.splitlines()
        assert done.code == (1 if lines else 0), done.stderr
        assert all(line.startswith(tuple(f"{path}: " for path in paths)) for line in lines)
        return lines

    return run


UNSEALED = "not as it was sealed"


def but_for_the_seal(lines: list[str]) -> list[str]:
    """What else there is, where more is wrong than a chunk."""
    assert any(UNSEALED in line for line in lines)
    return [line for line in lines if UNSEALED not in line]


# Good files


@pytest.mark.parametrize("kind", KINDS)
def test_good_files_have_no_fault(kind: str, whole: dict[str, Path], faults: Faults) -> None:
    assert faults(whole[kind]) == []


def test_of_several_files_the_bad_one_is_named(
    whole: dict[str, Path], taken: Callable[[str], Path], faults: Faults
) -> None:
    bad = taken("older")
    bad.write_bytes(bad.read_bytes()[:-200])
    (line,) = faults(whole["image"], bad, whole["field"])
    assert line.startswith(f"{bad}: ")


def test_an_older_file_may_hold_a_group(taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken("older")
    with h5py.File(path, "r+") as file:
        file.create_group("more")
    assert faults(path) == []


# Damage


def flip(path: Path, chunk: int) -> None:
    """Change one bit in the middle of a stored chunk."""
    with h5py.File(path) as file:
        place = file["main"].id.get_chunk_info(chunk)
    content = bytearray(path.read_bytes())
    content[place.byte_offset + place.size // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "where"),
    [("image", "pair 1 target"), ("stretch", "pair 1 target"), ("field", "pair 1"), ("joined", "pair 1")],
)
def test_a_flipped_bit_in_a_chunk(kind: str, where: str, taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken(kind)
    flip(path, 3 if where.endswith("target") else 1)
    (line,) = faults(path)
    assert line.startswith(f"{path}: {where}: ")


@pytest.mark.parametrize("kind", ["image", "field"])
def test_only_samples_that_are_stored_as_they_should_be_are_read_without_hdf5(
    kind: str, taken: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = taken(kind)
    flip(path, 3 if kind == "image" else 1)
    found: list[int] = []

    def noted(reader: SampleReader, sample: int) -> np.ndarray:
        found.append(sample)
        if sample == 2:
            raise OSError("cannot be read in this way")
        return read(reader, sample)

    read = SampleReader.__call__
    monkeypatch.setattr(SampleReader, "__call__", noted)
    (line,) = look_for_faults(path)  # of the third sample HDF5 has nothing bad to say
    assert line.startswith(f"{path}: pair 1")
    assert sorted(found) == [0, 2]


def test_the_values_of_a_chunk_are_compared_with_their_checksum(taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken("image")
    with h5py.File(path, "r+") as file:  # as a fault of the toolkit might: all but crc32 is consistent
        file["crc32"][1, 0] ^= 1
        facts = {name: file[name][:] for name in BOX_FACTS if name in file}
        skipped, stored = file["main"].id.read_direct_chunk((1, 0, 0, 0))
        chunk = Chunk(np.frombuffer(stored, np.uint8), 0, skipped)
        file["checksum"][1, 0] = entry_of(chunk, row_of(facts, file["crc32"][:], 1, 0))
        seal_finished(file)
    assert faults(path) == [f"{path}: pair 1 source: its values do not have the CRC-32 that crc32 says"]


def test_a_flipped_bit_in_a_shard(taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken("shard")
    flip(path, 0)
    (line,) = faults(path)
    assert line.startswith(f"{path}: pair 0: ")


@pytest.mark.parametrize("kind", ["image", "field", "shard", "joined", "stretch"])
def test_values_that_do_not_have_their_crc32(kind: str, taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken(kind)
    with h5py.File(path, "r+") as file:
        file["crc32"][0, 0] ^= 1
    (line,) = but_for_the_seal(faults(path))
    assert "pair 0" in line
    assert "crc32" in line


def test_values_that_were_replaced(taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken("image")
    with h5py.File(path, "r+") as file:
        file["main"][2, 1, 5, 5] += 1
    (line,) = but_for_the_seal(faults(path))
    assert "pair 2 target: its values do not have the CRC-32" in line


@pytest.mark.parametrize(
    ("kind", "name"), [("image", "mean"), ("image", "zero_variance"), ("field", "translation"), ("stretch", "outside")]
)
def test_a_changed_fact(kind: str, name: str, taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken(kind)
    with h5py.File(path, "r+") as file:
        file[name][1, 0] += 1
    lines = faults(path)
    assert any("pair 1" in line for line in lines)


def test_nan_among_the_facts(taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken("image")
    with h5py.File(path, "r+") as file:
        file["valid"][2, 1] = np.nan
    lines = faults(path)
    assert f"{path}: valid of pair 2 target is nan: want 0 to 1" in lines


@pytest.mark.parametrize("kind", ["image", "field"])
def test_a_changed_spec(kind: str, taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken(kind)
    with h5py.File(path, "r+") as file:
        file.attrs["spec"] = file.attrs["spec"].replace('"x_start":16', '"x_start":32')
    (line,) = but_for_the_seal(faults(path))
    assert "spec_sha256" in line


@pytest.mark.parametrize("content", [b"", b"notes", None])
def test_a_file_that_is_no_hdf5(content: bytes | None, taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken("image")
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    (line,) = faults(path)
    assert "not a readable HDF5 file" in line


def test_a_missing_file(tmp_path: Path, faults: Faults) -> None:
    assert faults(tmp_path / "away.h5") == [f"{tmp_path / 'away.h5'}: no such file"]


def test_a_pipe_and_an_empty_folder_are_no_files(tmp_path: Path, faults: Faults) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    assert faults(tmp_path / "pipe.h5") == [f"{tmp_path / 'pipe.h5'}: not a file: want a dataset file, HDF5"]
    folder = made_folder(tmp_path / "folder.h5")
    assert faults(folder) == [f"{folder}: no shards in it: want a folder of FIRST_LAST.h5 files, or one file"]


def test_an_unfinished_file(whole: dict[str, Path], tmp_path: Path, faults: Faults) -> None:
    path = Path(shutil.copy(whole["image"], tmp_path / f".{NAME.removesuffix('.h5')}.partial.h5"))
    (line,) = faults(path)
    assert "unfinished" in line


def test_a_missing_chunk(taken: Callable[[str], Path], faults: Faults) -> None:
    """Of a file whose chunk is not there HDF5 gives zeros."""
    path = taken("image")
    with h5py.File(path, "r+") as file:
        values, crc32 = file["main"][:], file["crc32"][:]
        del file["main"]
        main = file.create_dataset("main", values.shape, "f4", chunks=(1, 1, *values.shape[2:]), compression="gzip")
        for sample, role in np.argwhere(crc32 > 0)[:-1]:
            main[sample, role] = values[sample, role]
    assert any("pair 2 target" in line for line in faults(path))


def renamed_attribute(file: h5py.File) -> None:
    file.attrs["mjp"] = file.attrs["mip"]
    del file.attrs["mip"]


def retyped_attribute(file: h5py.File) -> None:
    file.attrs.create("mip", file.attrs["mip"], dtype="<i4")


def other_fill_value(file: h5py.File) -> None:
    values = file["start"][:]
    del file["start"]
    file.create_dataset("start", data=values, fillvalue=1)


CHANGES: dict[str, Callable[[h5py.File], None]] = {
    "an attribute's value": lambda file: file.attrs.modify("mip", file.attrs["mip"] + 1),
    "an attribute's name": renamed_attribute,
    "an attribute's type": retyped_attribute,
    "an attribute more": lambda file: file["main"].attrs.create("scale", 2),
    "an array's values": lambda file: file["start"].write_direct(file["start"][:] + 1),
    "an array's name": lambda file: file.move("start", "stars"),
    "an array's fill value": other_fill_value,
    "an array more": lambda file: file.create_dataset("more", data=file["start"][:]),
    "the seal": lambda file: file.attrs.modify("seal", np.bytes_(b"0" * 64)),
}


@pytest.mark.parametrize("kind", SEALED)
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_else_a_reader_sees_is_sealed(
    change: str, kind: str, taken: Callable[[str], Path], faults: Faults
) -> None:
    path = taken(kind)
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    assert but_for_the_seal(faults(path)) == []


def test_a_changed_note(taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken("image")
    with h5py.File(path, "r+") as file:
        file["note"][1] = "another"
    assert but_for_the_seal(faults(path)) == []


@pytest.mark.parametrize("kind", SEALED)
def test_a_seal_that_is_missing(kind: str, taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken(kind)
    for name in ("seal", "provenance"):  # one after the other: either tells that there was a seal
        with h5py.File(path, "r+") as file:
            del file.attrs[name]
        assert faults(path) == [f"{path}: its seal is missing"]


# Damage that HDF5 and h5py stumble over


def change_byte(path: Path, place: int, change: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= change
    path.write_bytes(content)


def damage_header(path: Path, name: str) -> None:
    """Change the first byte of a dataset's object header, its version."""
    with h5py.File(path, "r") as file:
        place = h5py.h5o.get_info(file[name].id).addr
    change_byte(path, place, 0x40)


@pytest.mark.parametrize("kind", SEALED)
def test_text_that_is_none(kind: str, taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken(kind)
    change_byte(path, path.read_bytes().index(b'"toolkit_format'), 0x80)
    assert any(UNSEALED in line for line in faults(path))


@pytest.mark.parametrize("name", ["main", "start", "crc32", "checksum", "mean"])
def test_a_header_that_cannot_be_read(name: str, taken: Callable[[str], Path], faults: Faults) -> None:
    path = taken("image")
    damage_header(path, name)
    lines = faults(path)
    assert any(line.startswith((f"{path}: cannot be read: {name}: ", f"{path}: damaged: {name}: ")) for line in lines)


def test_damaged_inputs_are_refused_by_their_names(
    whole: dict[str, Path], taken: Callable[[str], Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    pyramid_of(tmp_path, PLUS_ONE, "0_mip0in_small")
    shards = made_folder(tmp_path / "shards")
    for kind in ("image", "field", "shard"):
        path = taken(kind)
        damage_header(path, "start")
        inputs = [path if kind == each else whole[each] for each in ("image", "field")]
        if kind == "shard":
            path = Path(shutil.move(path, shards))
            line = refused("concat_fields.py", "--temp_dir", shards, "--dst_path", tmp_path / "joined.h5")
        else:
            line = refused("generate_fields.py", *fields_arguments(tmp_path, *inputs, src_mip=0, dst_mip=0))
        assert f"{path}: damaged: start: " in line


def test_a_damaged_file_is_in_the_way_until_it_may_be_replaced(
    tmp_path: Path, refused: Callable[..., str], command: Command, faults: Faults
) -> None:
    spec = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), None))
    run = dataset_arguments(spec, made_folder(tmp_path / "out"))
    assert command("make_dataset.py", *run).code == 0
    path = tmp_path / "out" / NAME
    damage_header(path, "start")
    assert f"{path}: damaged: start: " in refused("make_dataset.py", *run)
    assert command("make_dataset.py", *run, "--overwrite").code == 0
    assert faults(path) == []


# Fields of the older tool: LZF and scaleoffset


def smooth(pairs: int = 3, size: int = 32) -> np.ndarray:
    """Fields that bend gently, as aligners give them: (N, 2, X, Y)."""
    x, y = np.meshgrid(np.linspace(0, 3, size), np.linspace(0, 3, size), indexing="ij")
    return np.stack([[4 * np.sin(x + pair), 3 * np.cos(y - pair)] for pair in range(pairs)]).astype(np.float32)


def flat_at_its_minimum(size: int = 32) -> np.ndarray:
    main = smooth()
    main[1] = np.maximum(main[1], main[1].min(axis=(1, 2), keepdims=True) + 1.5)
    return main


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize(
    "main",
    [smooth(), np.zeros((2, 2, 16, 16)), np.full((2, 2, 16, 16), -3.25), flat_at_its_minimum(), smooth() * 2],
    ids=["smooth", "zero", "constant", "flat at its minimum", "steep"],
)
def test_undamaged_older_fields_are_not_accused(
    main: np.ndarray, components: int, tmp_path: Path, faults: Faults
) -> None:
    assert faults(put_older_fields(tmp_path / "field.h5", main.astype(np.float32), components)) == []


@pytest.mark.parametrize("components", [1, 2])
def test_nan_that_made_an_older_chunk_unreadable(components: int, tmp_path: Path, faults: Faults) -> None:
    main = smooth()
    main[1, :, 0, 0] = np.nan
    (line,) = faults(put_older_fields(tmp_path / "field.h5", main, components))
    assert "pair 1" in line
    assert "NaN" in line


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("hole", [(slice(10, 16), slice(8, 20)), (slice(20, 21), slice(20, 21))], ids=["area", "pixel"])
def test_nan_that_became_numbers_in_an_older_field(
    hole: tuple[slice, slice], components: int, tmp_path: Path, faults: Faults
) -> None:
    main = smooth()
    main[2, :, hole[0], hole[1]] = np.nan
    path = put_older_fields(tmp_path / "field.h5", main, components)
    with h5py.File(path) as file:
        assert np.isfinite(file["main"][2]).all()  # what the fault is
    (line,) = faults(path)
    assert line.startswith(f"{path}: pair 2: ")
    assert "scaleoffset makes of NaN" in line


def test_the_commands_that_make_these_files_agree(tmp_path: Path, command: Command, faults: Faults) -> None:
    """The same through the scripts themselves."""
    made_folder(tmp_path / "out")
    spec = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), field_layer(tmp_path)))
    assert command("make_dataset.py", *dataset_arguments(spec, tmp_path / "out")).code == 0
    pyramid_of(tmp_path, PLUS_ONE, "0_mip0in_small")
    made_folder(tmp_path / "shards")
    images, prior = tmp_path / "out" / NAME, tmp_path / "out" / f"field_0_{NAME}"
    run = fields_arguments(tmp_path, images, prior, src_mip=0, dst_mip=0)
    assert command("generate_fields.py", *run).code == 0
    assert faults(images, prior, *(tmp_path / "shards").iterdir()) == []
