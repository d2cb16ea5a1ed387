"""Where volumes lie, read from their info."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from volumes_made import make_layer, make_n5, make_zarr2, make_zarr3

from curation.errors import UsageError, WorkError
from curation.volumes.extent import Extent, read_extent

SHAPE = (12, 8, 6)


@pytest.fixture
def layer(tmp_path: Path) -> str:
    """Of 8 x 8 x 40 nm, from (-16, 32, 2000) on."""
    return make_layer(tmp_path / "image", {0: np.ones(SHAPE, np.uint8)}, (8, 8, 40), (-16, 32, 2000))


def change_scale(folder: Path, **values: Any) -> None:
    """Change what the info in `folder` says of MIP 0."""
    info = json.loads((folder / "info").read_text())
    info["scales"][0] |= values
    (folder / "info").write_text(json.dumps(info))


@pytest.mark.parametrize("form", ["{}", "precomputed://{}", "{}/"])
def test_a_precomputed_volume_is_read_from_its_info(form: str, layer: str) -> None:
    # the size is added to the offset: -16 + 12, 32 + 8, 2000 + 6
    assert read_extent(form.format(layer)) == Extent((8.0, 8.0, 40.0), (-16, 32, 2000), (-4, 40, 2006))


def test_a_path_without_protocol_is_a_folder(layer: str) -> None:
    assert read_extent(layer.removeprefix("file://")) == read_extent(layer)


def test_a_path_may_begin_in_the_home_folder(layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_extent("file://~/image") == read_extent(layer)
    with pytest.raises(UsageError, match="no info file"):
        read_extent("file://~nobody-of-this-name/image")


def test_it_is_mip_0_that_is_read_whatever_levels_there_are(tmp_path: Path) -> None:
    path = make_layer(tmp_path, {2: np.ones(SHAPE, np.uint8)}, (4, 4, 40))
    assert read_extent(path) == Extent((4.0, 4.0, 40.0), (0, 0, 0), (48, 32, 6))


def test_an_info_without_offset_begins_at_0(layer: str, tmp_path: Path) -> None:
    info = json.loads((tmp_path / "image/info").read_text())
    del info["scales"][0]["voxel_offset"]
    (tmp_path / "image/info").write_text(json.dumps(info))
    assert read_extent(layer) == Extent((8.0, 8.0, 40.0), (0, 0, 0), SHAPE)


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "n5"])
def test_volumes_of_other_kinds(kind: str, tmp_path: Path) -> None:
    array = np.ones(SHAPE, np.uint8)
    if kind == "zarr3":
        path = make_zarr3(tmp_path, array, (4, 4, 2))
    else:
        path = (make_zarr2 if kind == "zarr2" else make_n5)(tmp_path, [array], (4, 4, 2))
    assert read_extent(path) == Extent((4.0, 4.0, 40.0), (0, 0, 0), SHAPE)


def test_no_info_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none: no CloudVolume layer there \(no info file\)"):
        read_extent(f"file://{tmp_path}/none")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"scales": []}', '{"scales": [3]}', "\x80"])
def test_an_info_that_is_none_is_said(content: str, layer: str, tmp_path: Path) -> None:
    (tmp_path / "image/info").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match="not a CloudVolume layer"):
        read_extent(layer)


def test_an_info_that_came_back_empty_is_no_answer(layer: str, tmp_path: Path) -> None:
    (tmp_path / "image/info").write_bytes(b"")
    with pytest.raises(WorkError, match="info came back empty"):
        read_extent(layer)


@pytest.mark.parametrize("resolution", [[0, 0, 0], [-4, 4, 40], [4, 4], [4, 4, 40, 1]])
def test_a_voxel_size_that_is_none_is_said(resolution: list[Any], layer: str, tmp_path: Path) -> None:
    change_scale(tmp_path / "image", resolution=resolution)
    with pytest.raises(UsageError, match="its info gives no place and voxel size"):
        read_extent(layer)


def test_a_volume_holds_its_first_voxels_and_not_those_after_its_last() -> None:
    geometry = Extent((8.0, 8.0, 40.0), (-16, 32, 2000), (-4, 40, 2006))
    inside = [[-16, 32, 2000], [-5, 39, 2005]]
    outside = [[-17, 32, 2000], [-4, 39, 2005], [-5, 31, 2005], [-5, 40, 2005], [-5, 39, 1999], [-5, 39, 2006]]
    assert geometry.holds(np.array(inside)).all()
    assert not geometry.holds(np.array(outside)).any()
