"""Chunks that a crash or a copy has torn: read again, then an error that names them, and never black."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest
import zstandard
from layers_judged import judged, precomputed
from volumes_made import chunk_file, make_layer, make_n5

from curation.boxes import Window
from curation.errors import WorkError
from curation.stores import ATTEMPTS
from curation.volumes.volume import Volumes

SIZE = (10, 9, 3)
CHUNK = (4, 4, 2)
VOXELS = np.arange(1, 271, dtype=np.uint16).reshape(SIZE)  # never 0, so that black shows
FIRST = Window((0, 0), (4, 4), 0, crop=(0, 0))  # of the first chunk, and of no other

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
TEARS: dict[str, Callable[[bytes], bytes]] = {
    "longer by zeros": lambda whole: whole + bytes(4),
    "longer by much": lambda whole: whole + bytes(range(200)),
    "its second half is zeros": lambda whole: whole[: len(whole) // 2] + bytes(-(-len(whole) // 2)),
    "its first half alone": lambda whole: whole[: len(whole) // 2],
    "all zeros": lambda whole: bytes(len(whole)),
    "without its last byte": lambda whole: whole[:-1],
    "of nothing": lambda whole: whole[:0],
}
HAVE_CHECKSUMS = ("gz", "bz2", "xz")  # brotli has none, and zstd none in CloudVolume's files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "layer"


def assert_damaged(path: str, damage: str = "Damaged") -> None:
    """Reading the first chunk fails and names it, after as many attempts as any damage is given."""
    waits: list[float] = []
    with pytest.raises(WorkError, match=rf"layer at MIP 0: chunk at \(0, 0, 0\): .*{damage}"):
        Volumes(sleep=waits.append).open(path, 0).read(FIRST)
    assert len(waits) == ATTEMPTS - 1


def read_whole(path: str) -> np.ndarray:
    """The values of all of a volume of `SIZE`; an error if a chunk of it is taken for one that is not there."""
    volume = Volumes(missing="fail").open(path, 0)
    sections = [volume.read(Window((0, 0), SIZE[:2], z, crop=(0, 0))).values[0] for z in range(SIZE[2])]
    return np.stack(sections, axis=-1)


def recompress(folder: Path, compression: str) -> Path:
    """Make the first chunk one of a compression; its file."""
    file = chunk_file(folder, 0, (0, 0, 0))
    made = file.with_name(f"{file.name}.{compression}")
    made.write_bytes(COMPRESSIONS[compression](file.read_bytes()))
    file.unlink()
    return made


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_each_compression_is_read(compression: str, folder: Path) -> None:
    layer = make_layer(folder, {0: VOXELS}, chunk=CHUNK, compress=False)
    recompress(folder, compression)
    np.testing.assert_array_equal(read_whole(layer), VOXELS)


@pytest.mark.parametrize("tear", TEARS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_torn_chunk_is_damaged_in_each_compression(compression: str, tear: str, folder: Path) -> None:
    layer = make_layer(folder, {0: VOXELS}, chunk=CHUNK, compress=False)
    file = recompress(folder, compression)
    file.write_bytes(TEARS[tear](file.read_bytes()))
    assert_damaged(layer)


@pytest.mark.parametrize("compression", HAVE_CHECKSUMS)
@pytest.mark.parametrize("zeros", [1, 4, 8])
def test_a_chunk_whose_last_bytes_are_zeros_is_damaged(compression: str, zeros: int, folder: Path) -> None:
    layer = make_layer(folder, {0: VOXELS}, chunk=CHUNK, compress=False)
    file = recompress(folder, compression)
    file.write_bytes(file.read_bytes()[:-zeros] + bytes(zeros))
    if compression == "gz" and zeros == 1:  # the highest byte of a small size
        np.testing.assert_array_equal(read_whole(layer), VOXELS)
    else:
        assert_damaged(layer)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_chunk_of_several_streams_is_all_of_them(compression: str, folder: Path) -> None:
    """As programs that compress in parallel leave it; brotli has no such form."""
    layer = make_layer(folder, {0: VOXELS}, chunk=CHUNK, compress=False)
    content = chunk_file(folder, 0, (0, 0, 0)).read_bytes()
    compress = COMPRESSIONS[compression]
    recompress(folder, compression).write_bytes(compress(content[:10]) + compress(content[10:]))
    if compression == "br":
        assert_damaged(layer)
    else:
        np.testing.assert_array_equal(read_whole(layer), VOXELS)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_chunk_of_nothing_is_damaged_in_each_compression(compression: str, folder: Path) -> None:
    layer = make_layer(folder, {0: VOXELS}, chunk=CHUNK, compress=False)
    recompress(folder, compression).write_bytes(COMPRESSIONS[compression](b""))
    assert_damaged(layer)


# Shards

SHARDING: dict[str, Any] = {"preshift_bits": 1, "hash": "identity", "minishard_bits": 1, "shard_bits": 1}


def torn_shards(whole: bytes) -> Iterator[bytes]:
    """The shard as a crash leaves it: without what follows a byte, or zeros from there on; or zeros alone.

    Zeros from amid its first index on cannot be told from a shard of which some minishards are empty.
    """
    index = 16 << SHARDING["minishard_bits"]
    for at in (0, *range(index, len(whole), 5)):
        yield whole[:at] + bytes(len(whole) - at)
        yield whole[:at]


@pytest.mark.parametrize("index_encoding", ["raw", "gzip"])
def test_a_chunk_of_a_torn_shard_is_damaged_and_never_one_that_is_not_there(index_encoding: str, folder: Path) -> None:
    encodings = {"minishard_index_encoding": index_encoding, "data_encoding": "gzip"}
    path = precomputed(folder, VOXELS, sharding={**SHARDING, **encodings})
    np.testing.assert_array_equal(read_whole(path), judged(path)[..., 0])
    shard = folder / "4_4_40/0.shard"
    whole = shard.read_bytes()
    volumes = Volumes(cache_bytes=1, sleep=lambda seconds: None)
    volume = volumes.open(path, 0)
    refused = 0
    for torn in torn_shards(whole):
        shard.write_bytes(torn)
        for start in volume.chunks(Window((0, 0), SIZE[:2], 0, crop=(0, 0))):
            x, y, z = start
            try:
                chunk = volume.download(start)
            except Exception:
                refused += 1
            else:
                assert chunk is not None, (len(torn), start)
                np.testing.assert_array_equal(chunk[..., 0], VOXELS[x : x + 4, y : y + 4, z : z + 2])
    assert refused > 100


# n5, whose blocks have a header that is never compressed


@pytest.mark.parametrize("kept", [16, 20])
@pytest.mark.parametrize("compression", ["raw", "gzip"])
def test_a_block_of_n5_that_ends_with_or_after_its_header_is_damaged(compression: str, kept: int, folder: Path) -> None:
    path = make_n5(folder, [VOXELS], CHUNK, compression)
    np.testing.assert_array_equal(read_whole(path), VOXELS)
    block = folder / "s0/0/0/0"
    block.write_bytes(block.read_bytes()[:kept])
    assert_damaged(path, "")
