"""The files as HDF5's own h5dump reads them: without h5py, and with no filter but those of HDF5 itself."""

import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import Command
from small_jobs import (
    NAME,
    ONES,
    dataset_arguments,
    field_layer,
    fields_arguments,
    image_layer,
    made_folder,
    put_json,
    pyramid_of,
    spec_of,
)

h5dump = pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump (Debian: hdf5-tools) is not installed")


@pytest.fixture
def files(tmp_path: Path, command: Command) -> list[Path]:
    """An image file, a field file, a shard, and a file of joined shards."""
    spec = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), field_layer(tmp_path)))
    out, shards = made_folder(tmp_path / "out"), made_folder(tmp_path / "shards")
    pyramid_of(tmp_path, ONES, "0_mip0in_small")
    run = fields_arguments(tmp_path, out / NAME, out / f"field_0_{NAME}", src_mip=0, dst_mip=0)
    for name, arguments in [
        ("make_dataset.py", dataset_arguments(spec, out)),
        ("generate_fields.py", run),
        ("concat_fields.py", ["--temp_dir", shards, "--dst_path", out / "joined.h5"]),
    ]:
        done = command(name, *arguments)
        assert done.code == 0, done.stderr
    return [out / NAME, out / f"field_0_{NAME}", shards / "0_1.h5", out / "joined.h5"]


@h5dump
def test_every_number_is_what_h5py_reads(files: list[Path], tmp_path: Path) -> None:
    for path in files:
        with h5py.File(path) as file:
            numbers = {name: data[...] for name, data in file.items() if data.dtype.kind in "fiu"}
        assert len(numbers) > 3
        for name, values in numbers.items():
            dumped = tmp_path / "dumped"
            subprocess.run(
                ["h5dump", "-d", name, "-b", "LE", "-o", dumped, path], check=True, capture_output=True, timeout=60
            )
            read = np.frombuffer(dumped.read_bytes(), values.dtype.newbyteorder("<")).reshape(values.shape)
            np.testing.assert_array_equal(read, values)


@h5dump
def test_the_filters_are_hdf5s_own(files: list[Path]) -> None:
    for path in files:
        header = subprocess.run(
            ["h5dump", "-pH", "-d", "main", path], check=True, capture_output=True, text=True
        ).stdout
        assert "PREPROCESSING SHUFFLE" in header
        assert "COMPRESSION DEFLATE" in header
        assert "USER_DEFINED_FILTER" not in header
