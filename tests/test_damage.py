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
from layers_judged import changed_json, judged, precomputed
from volumes_made import chunk_file, make_layer, make_n5

from curation.boxes import Window
from curation.errors import UsageError, WorkError
from curation.stores import ATTEMPTS, DamagedError
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


# Encodings

SHARDING: dict[str, Any] = {"preshift_bits": 1, "hash": "identity", "minishard_bits": 1, "shard_bits": 1}
BYTES = (VOXELS % 250 + 1).astype(np.uint8)
ENCODED = {
    "raw": VOXELS,
    "png": BYTES,
    "jpeg": BYTES,
    "compressed_segmentation": VOXELS.astype(np.uint64),
}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("encoding", "numbers"),
    [
        ("jpeg", "uint8"),
        ("png", "uint8"),
        ("compressed_segmentation", "uint32"),
        ("compressed_segmentation", "uint64"),
        *(("raw", numbers) for numbers in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64", "float32")),
    ],
)
def test_each_encoding_is_read_as_tensorstore_reads_it(
    encoding: str, numbers: str, sharded: bool, folder: Path
) -> None:
    path = precomputed(folder, (VOXELS % 120 + 1).astype(numbers), encoding, SHARDING if sharded else None)
    np.testing.assert_array_equal(read_whole(path), judged(path)[..., 0])


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("start", [(0, 0, 0), (8, 8, 2)])
def test_a_chunk_that_is_cut_short_is_damaged_in_each_encoding(
    encoding: str, start: tuple[int, int, int], folder: Path
) -> None:
    """(8, 8, 2): a chunk of 2 x 1 x 1 voxels."""
    volume = Volumes().open(precomputed(folder, ENCODED[encoding], encoding), 0)
    file = chunk_file(folder, 0, start)
    whole = file.read_bytes()
    assert volume.download(start) is not None
    for kept in range(len(whole)):
        file.write_bytes(whole[:kept])
        with pytest.raises(Exception, match=r"\S"):
            volume.download(start)


def test_a_chunk_of_one_voxel_that_is_cut_short_is_damaged(folder: Path) -> None:
    """CloudVolume reads one voxel in its own way."""
    path = precomputed(folder, np.full((5, 5, 1), 2**40 + 1, np.uint64), "compressed_segmentation", chunk=(4, 4, 1))
    volume = Volumes().open(path, 0)
    assert volume.download((4, 4, 0)) == 2**40 + 1
    file = chunk_file(folder, 0, (4, 4, 0))
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DamagedError, match="it is no whole compressed_segmentation"):
        volume.download((4, 4, 0))


def test_a_png_with_a_flipped_bit_or_zeros_at_its_end_is_damaged(folder: Path) -> None:
    volume = Volumes().open(precomputed(folder, BYTES, "png"), 0)
    file = chunk_file(folder, 0, (0, 0, 0))
    whole = file.read_bytes()
    for at in range(len(whole)):
        for torn in (whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :], whole[:at] + bytes(len(whole) - at)):
            file.write_bytes(torn)
            with pytest.raises(DamagedError, match="it is no"):
                volume.download((0, 0, 0))


@pytest.mark.parametrize("zeros_from", range(0, 4 * (1 + 2 * 1), 4))
def test_a_compressed_segmentation_without_its_head_is_damaged(zeros_from: int, folder: Path) -> None:
    """It would be read as 0 throughout."""
    volume = Volumes().open(precomputed(folder, ENCODED["compressed_segmentation"], "compressed_segmentation"), 0)
    file = chunk_file(folder, 0, (0, 0, 0))
    whole = file.read_bytes()
    file.write_bytes(whole[:zeros_from] + bytes(len(whole) - zeros_from))
    with pytest.raises(DamagedError, match="it is no whole compressed_segmentation"):
        volume.download((0, 0, 0))


@pytest.mark.parametrize(
    ("encoding", "why"),
    [
        ("compresso", "want one of raw, jpeg, png, compressed_segmentation, jxl"),
        ("zfpc", "want one of raw, jpeg"),
        ("png", "want uint8, or raw"),
        ("compressed_segmentation", "want uint32 or uint64, or raw"),
        ("jxl", "for which a decoder is missing: pip install imagecodecs"),
    ],
)
def test_an_encoding_that_is_not_read_is_refused_by_name_at_once(encoding: str, why: str, folder: Path) -> None:
    layer = make_layer(folder, {0: BYTES if encoding == "jxl" else VOXELS}, chunk=CHUNK)
    changed_json(folder / "info", "scales", 0, "encoding", to=encoding)
    changed_json(folder / "info", "scales", 0, "compressed_segmentation_block_size", to=[8, 8, 8])
    waits: list[float] = []
    with pytest.raises(UsageError, match=f"layer at MIP 0 is .*encoded as {encoding}.*{why}"):
        Volumes(sleep=waits.append).open(layer, 0)
    assert waits == []


# Shards


def torn_shards(whole: bytes) -> Iterator[bytes]:
    """The shard as a crash leaves it: without what follows a byte, or zeros from there on; or zeros alone.

    Zeros from amid its first index on cannot be told from a shard of which some minishards are empty.
    """
    index = 16 << SHARDING["minishard_bits"]
    for at in (0, *range(index, len(whole), 11)):
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
    assert refused > 50


# n5, whose blocks have a header that is never compressed


@pytest.mark.parametrize("kept", [16, 20])
@pytest.mark.parametrize("compression", ["raw", "gzip"])
def test_a_block_of_n5_that_ends_with_or_after_its_header_is_damaged(compression: str, kept: int, folder: Path) -> None:
    path = make_n5(folder, [VOXELS], CHUNK, compression)
    np.testing.assert_array_equal(read_whole(path), VOXELS)
    block = folder / "s0/0/0/0"
    block.write_bytes(block.read_bytes()[:kept])
    assert_damaged(path, "")
