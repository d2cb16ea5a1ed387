"""Reading volumes: what is there, what is not, and what cannot be read."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT
from layers_served import Answer, Server, served
from volumes_made import chunk_file, make_layer, make_n5, make_zarr2, make_zarr3

from curation.boxes import Window
from curation.errors import UsageError, WorkError
from curation.stores import ATTEMPTS
from curation.volumes.volume import Volume, Volumes, check_scales, open_layer

SIZE = (10, 9, 3)
CHUNK = (4, 4, 2)
FIRST_CHUNK = "4_4_40/0-4_0-4_0-2"

# Never 0, so that black shows; every value another.
VOXELS = np.arange(1, 271, dtype=np.uint16).reshape(SIZE)
COARSE = np.arange(1001, 1076, dtype=np.uint16).reshape(5, 5, 3)


def window(x: tuple[int, int], y: tuple[int, int], z: int) -> Window:
    return Window((x[0], y[0]), (x[1], y[1]), z, crop=(0, 0))


WHOLE = window((0, 10), (0, 9), 1)


@pytest.fixture
def waits() -> list[float]:
    """The seconds that `volumes` would have slept."""
    return []


@pytest.fixture
def volumes(waits: list[float]) -> Volumes:
    return Volumes(retry_for=60, sleep=waits.append, clock=lambda: sum(waits))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "layer"


@pytest.fixture
def layer(folder: Path) -> str:
    return make_layer(folder, {0: VOXELS}, chunk=CHUNK)


# What is there


@pytest.mark.parametrize("z", [0, 1, 2])
def test_reads_across_chunk_borders(volumes: Volumes, layer: str, z: int) -> None:
    volume, at = volumes.open(layer, 0), window((3, 9), (2, 9), z)
    cutout = volume.read(at)
    np.testing.assert_array_equal(cutout.values, VOXELS[None, 3:9, 2:9, z], strict=True)
    assert (cutout.missing, volume.overlap(at)) == ((), 1)


def test_reads_each_level_in_its_own_voxels(volumes: Volumes, folder: Path) -> None:
    layer = make_layer(folder, {0: VOXELS, 1: COARSE}, chunk=CHUNK)
    cutout = volumes.open(layer, 1).read(window((1, 5), (0, 4), 2))
    np.testing.assert_array_equal(cutout.values, COARSE[None, 1:5, 0:4, 2], strict=True)


def test_levels_have_their_own_bounds_chunks_and_resolution(volumes: Volumes, folder: Path) -> None:
    layer = make_layer(folder, {1: COARSE}, voxel_offset=(12, 20, 3), chunk=CHUNK)
    fine, coarse = volumes.open(layer, 0), volumes.open(layer, 1)
    assert (fine.start, fine.stop) == ((12, 20, 3), (22, 30, 6))
    assert (coarse.start, coarse.stop) == ((6, 10, 3), (11, 15, 6))
    assert (fine.resolution, coarse.resolution) == ((4, 4, 40), (8, 8, 40))
    assert coarse.chunk == CHUNK


@pytest.mark.parametrize(("mip", "voxels"), [(0, VOXELS), (1, COARSE)])
def test_reads_volumes_with_an_offset(volumes: Volumes, folder: Path, mip: int, voxels: np.ndarray) -> None:
    layer = make_layer(folder, {0: VOXELS, 1: COARSE}, voxel_offset=(12, 20, 3), chunk=CHUNK)
    x, y = 12 >> mip, 20 >> mip
    volume, at = volumes.open(layer, mip), window((x + 1, x + 5), (y + 3, y + 5), 4)
    np.testing.assert_array_equal(volume.read(at).values, voxels[None, 1:5, 3:5, 1], strict=True)
    assert volume.overlap(at) == 1


def test_chunks_begin_at_the_offset(volumes: Volumes, folder: Path) -> None:
    layer = make_layer(folder, {0: VOXELS, 1: COARSE}, voxel_offset=(12, 20, 3), chunk=CHUNK)
    # MIP 1 begins at (6, 10, 3): its chunks of (4, 4, 2) at x 6, 10; y 10, 14; z 3, 5
    chunks = list(volumes.open(layer, 1).chunks(window((7, 11), (10, 15), 4)))
    assert chunks == [(6, 10, 3), (6, 14, 3), (10, 10, 3), (10, 14, 3)]


def test_last_chunks_end_with_the_volume(volumes: Volumes, layer: str) -> None:
    chunk = volumes.open(layer, 0).download((8, 8, 2))
    np.testing.assert_array_equal(chunk, VOXELS[8:10, 8:9, 2:3, None], strict=True)


def test_reads_volumes_that_begin_below_zero(volumes: Volumes, folder: Path) -> None:
    layer = make_layer(folder, {0: VOXELS}, voxel_offset=(-6, -5, -1), chunk=CHUNK)
    cutout = volumes.open(layer, 0).read(window((-3, 4), (-5, 2), 0))
    np.testing.assert_array_equal(cutout.values, VOXELS[None, 3:10, 0:7, 1])


def test_reads_all_channels_in_order(volumes: Volumes, folder: Path) -> None:
    vectors = np.stack([VOXELS, -1.5 * VOXELS], axis=-1).astype(np.float32)
    volume = volumes.open(make_layer(folder, {0: vectors}, chunk=CHUNK), 0)
    assert (volume.channels, volume.dtype) == (2, np.float32)
    cutout = volume.read(window((3, 9), (2, 9), 1))
    np.testing.assert_array_equal(cutout.values, np.moveaxis(vectors[3:9, 2:9, 1], -1, 0), strict=True)


def test_reads_paths_with_spaces_and_unicode(volumes: Volumes, tmp_path: Path) -> None:
    layer = make_layer(tmp_path / "ein Gehirn, größer", {0: VOXELS}, chunk=CHUNK)
    np.testing.assert_array_equal(volumes.open(layer, 0).read(WHOLE).values[0], VOXELS[:, :, 1])


def test_reads_zarr_v3(volumes: Volumes, folder: Path) -> None:
    cutout = volumes.open(make_zarr3(folder, VOXELS, CHUNK), 0).read(WHOLE)
    np.testing.assert_array_equal(cutout.values, VOXELS[None, :, :, 1], strict=True)


@pytest.mark.parametrize(("mip", "voxels"), [(0, VOXELS), (1, COARSE)])
def test_reads_zarr_v2(volumes: Volumes, folder: Path, mip: int, voxels: np.ndarray) -> None:
    volume = volumes.open(make_zarr2(folder, [VOXELS, COARSE], CHUNK), mip)
    cutout = volume.read(window((0, voxels.shape[0]), (0, voxels.shape[1]), 1))
    np.testing.assert_array_equal(cutout.values, voxels[None, :, :, 1], strict=True)


@pytest.mark.parametrize(("mip", "voxels"), [(0, VOXELS), (1, COARSE)])
def test_reads_n5(volumes: Volumes, folder: Path, mip: int, voxels: np.ndarray) -> None:
    levels = [VOXELS.astype(np.uint8), COARSE.astype(np.uint8)]
    cutout = volumes.open(make_n5(folder, levels, CHUNK), mip).read(
        window((0, voxels.shape[0]), (0, voxels.shape[1]), 1)
    )
    np.testing.assert_array_equal(cutout.values, levels[mip][None, :, :, 1], strict=True)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_reads_n5_of_numbers_longer_than_a_byte(volumes: Volumes, folder: Path, dtype: str) -> None:
    """They are big-endian on the disk."""
    voxels = (VOXELS * 3.5).astype(dtype)
    cutout = volumes.open(make_n5(folder, [voxels], CHUNK), 0).read(WHOLE)
    np.testing.assert_array_equal(cutout.values, voxels[None, :, :, 1], strict=True)


def test_zarr_v3_with_a_translation_is_refused(volumes: Volumes, waits: list[float], folder: Path) -> None:
    """CloudVolume would misplace it."""
    path = make_zarr3(folder, VOXELS, CHUNK)
    meta = folder / "zarr.json"
    meta.write_text(meta.read_text().replace('"translation":[0,0,0]', '"translation":[120,0,0]'))  # z, y, x
    with pytest.raises(UsageError, match=r"the translation of level 0 is \[0.0, 0.0, 120.0\] in x, y, z: want none"):
        volumes.open(path, 0)
    assert waits == []


def spied_downloads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """The starts of the chunks that are downloaded from now on."""
    starts: list[tuple[int, int, int]] = []
    download = Volume.download

    def spy(volume: Volume, start: tuple[int, int, int]) -> Any:
        starts.append(start)
        return download(volume, start)

    monkeypatch.setattr(Volume, "download", spy)
    return starts


def test_each_chunk_is_downloaded_once(volumes: Volumes, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = spied_downloads(monkeypatch)
    for z in (0, 1):  # two sections of one chunk
        volumes.open(layer, 0).read(window((3, 6), (0, 4), z))
    assert starts == [(0, 0, 0), (4, 0, 0)]


def test_chunks_beyond_the_cache_are_downloaded_again(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = spied_downloads(monkeypatch)
    volume = Volumes(cache_bytes=1).open(layer, 0)
    for x in (0, 4, 0):
        read = volume.read(window((x, x + 4), (0, 4), 0)).values
        np.testing.assert_array_equal(read[0], VOXELS[x : x + 4, 0:4, 0])
    assert starts == [(0, 0, 0), (4, 0, 0), (0, 0, 0)]


# What is not there


def test_outside_the_volume_is_black_and_its_fraction_said(volumes: Volumes, folder: Path) -> None:
    layer = make_layer(folder, {0: VOXELS}, voxel_offset=(12, 20, 3), chunk=CHUNK)
    volume, at = volumes.open(layer, 0), window((8, 30), (18, 32), 4)
    cutout = volume.read(at)
    expected = np.zeros((22, 14), np.uint16)
    expected[4:14, 2:11] = VOXELS[:, :, 1]  # 12 - 8 = 4 on, 20 - 18 = 2 on
    np.testing.assert_array_equal(cutout.values[0], expected)
    assert volume.overlap(at) == pytest.approx((10 * 9) / (22 * 14))
    assert cutout.missing == ()


@pytest.mark.parametrize(
    "outside",
    [
        window((-4, 0), (0, 4), 0),  # up to the first voxel
        window((10, 14), (0, 4), 0),  # from beyond the last
        window((0, 4), (9, 12), 0),
        window((0, 4), (0, 4), -1),
        window((0, 4), (0, 4), 3),
    ],
)
def test_wholly_outside_is_an_error_with_the_bounds(volumes: Volumes, layer: str, outside: Window) -> None:
    volume = volumes.open(layer, 0)
    with pytest.raises(WorkError, match=r"wholly outside.*x 0\.\.10, y 0\.\.9, z 0\.\.3"):
        volume.read(outside)
    assert volume.overlap(outside) == 0


def test_chunk_that_is_not_there_is_black_and_counted(
    volumes: Volumes, waits: list[float], folder: Path, layer: str
) -> None:
    chunk_file(folder, 0, (4, 0, 0)).unlink()
    volume = volumes.open(layer, 0)
    cutout = volume.read(WHOLE)
    expected = VOXELS[:, :, 1].copy()
    expected[4:8, 0:4] = 0
    np.testing.assert_array_equal(cutout.values[0], expected)
    assert cutout.missing == ((layer, 0, (4, 0, 0)),)
    assert (volume.overlap(WHOLE), waits) == (1, [])


def test_chunk_that_is_not_there_is_an_error_where_that_is_asked_for(
    waits: list[float], folder: Path, layer: str
) -> None:
    chunk_file(folder, 0, (4, 0, 0)).unlink()
    volume = Volumes(missing="fail", sleep=waits.append).open(layer, 0)
    with pytest.raises(WorkError, match=r"at MIP 0: chunk at \(4, 0, 0\): .*the store does not have it"):
        volume.read(WHOLE)
    assert waits == []


def test_level_without_chunks_is_black_and_each_is_counted(volumes: Volumes, folder: Path) -> None:
    layer = make_layer(folder, {1: COARSE}, chunk=CHUNK)
    cutout = volumes.open(layer, 0).read(window((0, 8), (0, 4), 0))
    np.testing.assert_array_equal(cutout.values[0], np.zeros((8, 4)))
    assert cutout.missing == ((layer, 0, (0, 0, 0)), (layer, 0, (4, 0, 0)))


def test_unknown_level_is_refused_with_those_there_are(volumes: Volumes, folder: Path) -> None:
    layer = make_layer(folder, {1: COARSE}, chunk=CHUNK)
    with pytest.raises(UsageError, match=r"has no MIP 2: it has 0, 1$"):
        volumes.open(layer, 2)


@pytest.mark.parametrize("prefix", ["", "precomputed://", "zarr2://", "zarr3://", "n5://"])
def test_folder_without_a_layer_is_refused(volumes: Volumes, waits: list[float], tmp_path: Path, prefix: str) -> None:
    path = f"{prefix}file://{tmp_path}/nothing"
    with pytest.raises(UsageError, match="nothing: no"):
        volumes.open(path, 0)
    assert waits == []


def test_layer_whose_info_is_no_json_is_refused(volumes: Volumes, waits: list[float], tmp_path: Path) -> None:
    (tmp_path / "info").write_text("{")
    with pytest.raises(UsageError, match="not a CloudVolume layer"):
        volumes.open(f"file://{tmp_path}", 0)
    assert waits == []


def test_unknown_protocol_is_refused(volumes: Volumes, waits: list[float]) -> None:
    with pytest.raises(UsageError, match="carrier://pigeon"):
        volumes.open("carrier://pigeon", 0)
    assert waits == []


# What cannot be read


def assert_gives_up(volumes: Volumes, waits: list[float], layer: str) -> None:
    """Reading fails, naming the chunk, after a bounded number of waits, each random up to twice the one before."""
    with pytest.raises(WorkError, match=r"at MIP 0: chunk at \(0, 0, 0\): "):
        volumes.open(layer, 0).read(WHOLE)
    assert volumes.retries == len(waits) == ATTEMPTS - 1
    assert all(0 <= wait <= most for wait, most in zip(waits, [0.5, 1, 2, 4, 8], strict=True))


@pytest.mark.parametrize("compress", ["gzip", False])
@pytest.mark.parametrize("kept", [0, 20])
def test_truncated_chunk_is_retried_then_an_error(
    volumes: Volumes, waits: list[float], folder: Path, compress: str | bool, kept: int
) -> None:
    layer = make_layer(folder, {0: VOXELS}, chunk=CHUNK, compress=compress)
    file = chunk_file(folder, 0, (0, 0, 0))
    file.write_bytes(file.read_bytes()[:kept])
    assert_gives_up(volumes, waits, layer)


def test_chunk_of_nothing_in_gzip_is_damage_not_black(
    volumes: Volumes, waits: list[float], folder: Path, layer: str
) -> None:
    chunk_file(folder, 0, (0, 0, 0)).write_bytes(gzip.compress(b""))
    assert_gives_up(volumes, waits, layer)


def test_chunk_of_nothing_in_gzip_is_damage_over_http_too(volumes: Volumes, waits: list[float], server: Server) -> None:
    server.answers[FIRST_CHUNK] = [Answer(body=gzip.compress(b""), headers={"Content-Encoding": "gzip"})] * 100
    assert_gives_up(volumes, waits, server.url)


def test_chunk_that_is_not_gzip_is_retried_then_an_error(
    volumes: Volumes, waits: list[float], folder: Path, layer: str
) -> None:
    chunk_file(folder, 0, (0, 0, 0)).write_bytes(b"<html>")
    assert_gives_up(volumes, waits, layer)


def test_chunk_with_a_flipped_bit_is_retried_then_an_error(
    volumes: Volumes, waits: list[float], folder: Path, layer: str
) -> None:
    file = chunk_file(folder, 0, (0, 0, 0))
    content = bytearray(file.read_bytes())
    content[-8] ^= 1  # of gzip's checksum
    file.write_bytes(content)
    assert_gives_up(volumes, waits, layer)


def test_chunk_that_could_not_be_read_is_asked_for_again(volumes: Volumes, folder: Path, layer: str) -> None:
    file = chunk_file(folder, 0, (0, 0, 0))
    content = file.read_bytes()
    file.write_bytes(b"")
    with pytest.raises(WorkError):
        volumes.open(layer, 0).read(WHOLE)
    file.write_bytes(content)
    np.testing.assert_array_equal(volumes.open(layer, 0).read(WHOLE).values[0], VOXELS[:, :, 1])


# Over HTTP


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The layer, served."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    make_layer(folder, {0: VOXELS}, chunk=CHUNK, compress=False)
    with served(folder) as server:
        yield server


def test_reads_over_http_asking_for_each_chunk_once(volumes: Volumes, waits: list[float], server: Server) -> None:
    for z in (0, 1):
        read = volumes.open(server.url, 0).read(window((0, 10), (0, 9), z))
        np.testing.assert_array_equal(read.values[0], VOXELS[:, :, z])
    chunks = [file for file in server.asked if file.startswith("4_4_40/")]
    assert len(chunks) == len(set(chunks)) == 9  # 3 along x, 3 along y
    assert waits == []


@pytest.mark.parametrize("status", [404, 410])
def test_http_not_found_is_black_and_counted(volumes: Volumes, waits: list[float], server: Server, status: int) -> None:
    server.answers[FIRST_CHUNK] = [Answer(status)]
    cutout = volumes.open(server.url, 0).read(WHOLE)
    expected = VOXELS[:, :, 1].copy()
    expected[0:4, 0:4] = 0
    np.testing.assert_array_equal(cutout.values[0], expected)
    assert cutout.missing == ((server.url, 0, (0, 0, 0)),)
    assert waits == []


@pytest.mark.parametrize("status", [401, 403])
def test_http_refusal_is_an_error_at_once(volumes: Volumes, waits: list[float], server: Server, status: int) -> None:
    server.answers[FIRST_CHUNK] = [Answer(status)]
    with pytest.raises(WorkError, match=r"at MIP 0: chunk at \(0, 0, 0\): access was denied"):
        volumes.open(server.url, 0).read(WHOLE)
    assert server.times_asked(FIRST_CHUNK) == 1
    assert (waits, volumes.retries) == ([], 0)


@pytest.mark.parametrize(
    "broken",
    [
        Answer(503),
        Answer(429),
        Answer(sent=0.5),  # the line is cut half-way
        Answer(sent=0),
        Answer(body=b""),
        Answer(body=b"<html>"),
    ],
)
def test_http_failure_is_retried_until_it_succeeds(
    volumes: Volumes, waits: list[float], server: Server, broken: Answer
) -> None:
    server.answers[FIRST_CHUNK] = [broken, broken]
    cutout = volumes.open(server.url, 0).read(WHOLE)
    np.testing.assert_array_equal(cutout.values[0], VOXELS[:, :, 1])
    assert (cutout.missing, volumes.retries, len(waits)) == ((), 2, 2)


def test_retries_are_taken_once(volumes: Volumes, server: Server) -> None:
    server.answers[FIRST_CHUNK] = [Answer(503)] * 3
    volumes.open(server.url, 0).read(WHOLE)
    assert [volumes.take_retries(), volumes.take_retries()] == [3, 0]


def test_http_damage_that_lasts_is_an_error(volumes: Volumes, waits: list[float], server: Server) -> None:
    server.answers[FIRST_CHUNK] = [Answer(body=b"")] * 100
    assert_gives_up(volumes, waits, server.url)
    assert server.times_asked(FIRST_CHUNK) == ATTEMPTS


@pytest.mark.parametrize("broken", [Answer(503), Answer(429), Answer(sent=0.5), Answer(reset=True)])
def test_http_outage_is_waited_out_for_as_long_as_was_said(
    volumes: Volumes, waits: list[float], server: Server, broken: Answer
) -> None:
    server.answers[FIRST_CHUNK] = [broken] * 1000
    with pytest.raises(WorkError, match=r"at MIP 0: chunk at \(0, 0, 0\): "):
        volumes.open(server.url, 0).read(WHOLE)
    assert sum(waits) == pytest.approx(60)
    assert server.times_asked(FIRST_CHUNK) == len(waits) + 1


def test_http_retry_after_is_obeyed(volumes: Volumes, waits: list[float], server: Server) -> None:
    server.answers[FIRST_CHUNK] = [Answer(503, headers={"Retry-After": "40"})]
    np.testing.assert_array_equal(volumes.open(server.url, 0).read(WHOLE).values[0], VOXELS[:, :, 1])
    assert waits == [40]


def test_http_layer_that_is_not_found_is_refused(volumes: Volumes, waits: list[float], server: Server) -> None:
    server.answers["info"] = [Answer(404)]
    with pytest.raises(UsageError, match="no CloudVolume layer there"):
        volumes.open(server.url, 0)
    assert waits == []


def test_http_layer_that_is_refused_is_an_error_at_once(volumes: Volumes, waits: list[float], server: Server) -> None:
    server.answers["info"] = [Answer(403)]
    with pytest.raises(WorkError, match="access was denied"):
        volumes.open(server.url, 0)
    assert waits == []


def test_http_layer_is_opened_after_a_failure(volumes: Volumes, waits: list[float], server: Server) -> None:
    server.answers["info"] = [Answer(503)]
    assert volumes.open(server.url, 0).stop == SIZE
    assert len(waits) == 1


# Volumes that do not fit one another, or whose levels do not


@pytest.mark.parametrize(
    ("factor", "found"),
    [((2, 2, 2), "8 x 8 x 80"), ((4, 4, 1), "16 x 16 x 40"), ((2, 1, 1), "8 x 4 x 40"), ((1, 1, 1), "4 x 4 x 40")],
)
def test_a_level_of_another_pyramid_is_refused(
    volumes: Volumes, folder: Path, factor: tuple[int, int, int], found: str
) -> None:
    layer = make_layer(folder, {0: VOXELS}, chunk=CHUNK)
    add_level(folder, [4 * factor[0], 4 * factor[1], 40 * factor[2]])
    assert volumes.open(layer, 0).stop == SIZE
    with pytest.raises(UsageError, match=f"layer at MIP 1 has voxels of {found} nm, .* want 8 x 8 x 40 nm: x"):
        volumes.open(layer, 1)


@pytest.mark.parametrize(
    ("resolution", "coarse"), [([3.5371, 3.5371, 40], [7.074, 7.0745, 40]), ([4, 4, 40], [8, 8, 40.0001])]
)
def test_a_level_whose_voxel_size_is_rounded_is_not(
    volumes: Volumes, folder: Path, resolution: list[float], coarse: list[float]
) -> None:
    layer = make_layer(folder, {0: VOXELS}, chunk=CHUNK)
    add_level(folder, coarse, of=resolution)
    assert volumes.open(layer, 1).resolution == tuple(coarse)


def add_level(folder: Path, resolution: list[float], of: list[float] | None = None) -> None:
    """Say in the info in `folder` that there is a MIP 1 with such voxels, and perhaps of which those of MIP 0 are."""
    info = json.loads((folder / "info").read_text())
    info["scales"][0]["resolution"] = of or info["scales"][0]["resolution"]
    info["scales"].append({**info["scales"][0], "key": "mip1", "resolution": resolution})
    (folder / "info").write_text(json.dumps(info))


def test_levels_of_one_scale_fit(volumes: Volumes, folder: Path) -> None:
    layer = make_layer(folder, {1: COARSE}, chunk=CHUNK)
    check_scales([volumes.open(layer, 0), volumes.open(layer, 1)])


@pytest.mark.parametrize("resolution", [(8, 8, 40), (4, 4, 30)])
def test_volumes_of_two_resolutions_are_refused(
    volumes: Volumes, layer: str, tmp_path: Path, resolution: tuple[int, int, int]
) -> None:
    other = make_layer(tmp_path / "other", {0: VOXELS}, resolution=resolution, chunk=CHUNK)
    found = " x ".join(map(str, resolution))
    with pytest.raises(UsageError, match=f"other at MIP 0 has voxels of {found} nm at MIP 0, but .* 4 x 4 x 40 nm"):
        check_scales([volumes.open(layer, 0), volumes.open(other, 0)])


def test_warnings_of_credentials_do_not_go_where_results_go(tmp_path: Path) -> None:
    code = "from curation.volumes import volume; import cloudfiles.secrets as s; s.google_credentials('nobodys-bucket')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "credentials" in done.stderr


@pytest.mark.parametrize(("path", "protocol"), [("foo://bucket/image", "foo"), ("precomputed://gcs://b/i", "gcs")])
def test_an_unknown_protocol_is_named(path: str, protocol: str) -> None:
    with pytest.raises(UsageError, match=rf"^{path}: {protocol}:// is no protocol that is known: want one of .*gs"):
        open_layer(path)
