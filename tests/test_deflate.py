"""The deflate streams that chunks are stored as, against zlib and against HDF5's own filters."""

import io
import zlib
from collections.abc import Callable, Iterator

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from curation.datasets.chunks import DEFLATE_LEVEL, Chunk, encode, encode_grey

LONGEST_BLOCK = 65535  # bytes that a stored block of deflate can hold
ADLER32_BYTES, HEAD_BYTES = 4, 5  # of a stream's end, and of a stored block

Encoder = Callable[[np.ndarray], Chunk]


# Values


def bits(words: np.ndarray | list[int], shape: tuple[int, int]) -> np.ndarray:
    """float32 of these bits, repeated as often as the shape wants."""
    return np.resize(np.asarray(words, np.uint32), shape).view(np.float32)


def noise(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Bits of which none tells of another: every plane of bytes is noise."""
    return bits(np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32), shape)


def normal(shape: tuple[int, int]) -> np.ndarray:
    """As normalised and warped images are: the low bytes are noise, the high ones are not."""
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def noisy_plane(plane: int, shape: tuple[int, int]) -> np.ndarray:
    """Of the four planes of bytes one is noise, the others are constant."""
    content = np.full((*shape, 4), 7, np.uint8)
    content[..., plane] = np.random.default_rng(plane).integers(0, 256, shape, dtype=np.uint8)
    return content.view("<f4")[..., 0]


QUIET, PAYLOAD, SIGNALLING, NEGATIVE = 0x7FC00000, 0x7FC12345, 0x7F800001, 0xFFFFFFFF  # all of them NaN
SMOOTH = (4 * np.outer(np.sin(np.linspace(0, 3, 300)), np.cos(np.linspace(0, 2, 280)))).astype(np.float32)
GREY = np.random.default_rng(2).integers(0, 256, (300, 280)).astype(np.float32)

VALUES = {
    "zero": np.zeros((40, 30), np.float32),
    "negative zero": bits([0x80000000], (40, 30)),
    "constant": np.full((300, 280), 1.1, np.float32),
    "normal": normal((40, 30)),
    "normal, planes beyond 64 KiB": normal((300, 280)),
    "noise": noise((40, 30)),
    "noise, planes beyond 64 KiB": noise((300, 280)),
    "noise, planes beyond 128 KiB": noise((401, 400)),
    "NaN": bits([QUIET], (40, 30)),
    "NaN of many payloads": bits([QUIET, PAYLOAD, SIGNALLING, NEGATIVE], (40, 31)),
    "NaN, each with its own payload": bits(0x7F800001 + np.arange(84000, dtype=np.uint32) * 99, (300, 280)),
    "infinities": bits([0x7F800000, 0xFF800000], (40, 31)),
    "NaN and infinities among numbers": np.where(
        normal((64, 64)) > 1, np.nan, np.where(normal((64, 64)) < -1, -np.inf, normal((64, 64)))
    ).astype(np.float32),
    "smallest and largest": bits([0x00000001, 0x80000001, 0x007FFFFF, 0x7F7FFFFF, 0xFF7FFFFF], (40, 31)),
    "1 x 1": np.full((1, 1), -2.5, np.float32),
    "1 x 1, NaN": bits([PAYLOAD], (1, 1)),
    "1 x N": normal((1, 777)),
    "N x 1": normal((777, 1)),
    "1 x N, noise beyond 64 KiB": noise((1, 70_000)),
    "65534 bytes a plane, noise": noise((2, 32767)),
    "65535 bytes a plane, noise": noise((3, 21845)),
    "65536 bytes a plane, noise": noise((256, 256)),
    "65535 bytes a plane, normal": normal((3, 21845)),
    "65536 bytes a plane, normal": normal((256, 256)),
    "131070 bytes a plane, noise": noise((6, 21845)),
    "131071 bytes a plane, noise": noise((1, 131_071)),
    "smooth": SMOOTH,
    "smooth, rounded": np.round(SMOOTH, 2),
    "grey": GREY,
    "grey, normalised": (GREY - 127) / np.float32(74.3),
    **{f"plane {plane} is noise": noisy_plane(plane, (300, 280)) for plane in range(4)},
}

each_value = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
each_encoder = pytest.mark.parametrize("encoder", [encode, encode_grey])


# What must come of them, worked out without the toolkit


def as_stored(values: np.ndarray, encoder: Encoder) -> bytes:
    """What a stream must inflate to: byte k of every number, for k = 0 to 3; of grey values the numbers themselves."""
    content = values.astype("<f4").tobytes()
    return content if encoder is encode_grey else b"".join(content[plane::4] for plane in range(4))


def inflated(chunk: Chunk) -> bytes:
    """By zlib, which checks the Adler-32 at the end; nothing may follow it."""
    stream = zlib.decompressobj()
    content = stream.decompress(chunk.data.tobytes())
    assert stream.eof
    assert (stream.unused_data, stream.unconsumed_tail) == (b"", b"")
    return content


def read_by_hdf5(chunk: Chunk, shape: tuple[int, int]) -> np.ndarray:
    """The chunk as it comes through the filters of a dataset like `main`.

    The file is opened anew: HDF5 2.0 forgets the filter mask of the chunk that was written last, for as long as its
    dataset stays open.
    """
    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        options = {"shuffle": True, "compression": "gzip", "compression_opts": DEFLATE_LEVEL}
        main = file.create_dataset("main", (1, 1, *shape), "<f4", chunks=(1, 1, *shape), **options)
        main.id.write_direct_chunk((0, 0, 0, 0), chunk.data, chunk.skipped)
    with h5py.File(held, "r") as file:
        return file["main"][0, 0]


def check(values: np.ndarray, encoder: Encoder) -> None:
    """All that is to be said of one chunk."""
    chunk = encoder(values)
    assert inflated(chunk) == as_stored(values, encoder)
    assert chunk.crc32 == zlib.crc32(values.astype("<f4").tobytes())
    assert read_by_hdf5(chunk, values.shape).tobytes() == values.astype("<f4").tobytes()


# Every chunk


@each_encoder
@each_value
def test_zlib_gives_back_the_bytes(values: np.ndarray, encoder: Encoder) -> None:
    assert inflated(encoder(values)) == as_stored(values, encoder)


@each_encoder
@each_value
def test_hdf5_reads_it_through_its_own_filters_bit_for_bit(values: np.ndarray, encoder: Encoder) -> None:
    assert read_by_hdf5(encoder(values), values.shape).tobytes() == values.tobytes()


@each_encoder
@each_value
def test_the_crc32_is_that_of_the_values(values: np.ndarray, encoder: Encoder) -> None:
    assert encoder(values).crc32 == zlib.crc32(values.tobytes())


@each_encoder
@each_value
def test_the_same_values_are_the_same_bytes(values: np.ndarray, encoder: Encoder) -> None:
    first = encoder(values).data.tobytes()
    encoder(noise((100, 90)))  # nothing may be left of what was encoded between
    assert encoder(values.copy()).data.tobytes() == first


@each_encoder
@pytest.mark.parametrize(
    "change",
    [np.asfortranarray, lambda values: values.astype(">f4"), lambda values: values.astype(np.float64)],
    ids=["y first in memory", "big-endian", "float64"],
)
def test_how_the_values_lie_in_memory_makes_no_difference(
    change: Callable[[np.ndarray], np.ndarray], encoder: Encoder
) -> None:
    values = normal((33, 47))
    plain, other = encoder(values), encoder(change(values))
    assert (other.data.tobytes(), other.crc32) == (plain.data.tobytes(), plain.crc32)


@each_encoder
def test_a_part_of_a_larger_array_is_that_part(encoder: Encoder) -> None:
    check(normal((64, 64))[3:50:2, 40:5:-1], encoder)


@each_encoder
def test_the_values_are_left_alone(encoder: Encoder) -> None:
    values = VALUES["NaN of many payloads"].copy()
    encoder(values)
    assert values.tobytes() == VALUES["NaN of many payloads"].tobytes()


def test_a_field_of_two_components_is_one_chunk() -> None:
    field = np.stack([SMOOTH, normal(SMOOTH.shape)])
    assert inflated(encode(field)) == as_stored(field, encode)
    assert encode(field).crc32 == zlib.crc32(field.tobytes())


# Noise, which is stored as it is


def stored_blocks(chunk: Chunk) -> Iterator[int]:
    """The lengths of the stored blocks that a stream begins with."""
    content = chunk.data.tobytes()
    place = 2  # after zlib's head
    while content[place] == 0:  # not the last block, stored; the rest of the byte is padding
        length = int.from_bytes(content[place + 1 : place + 3], "little")
        assert length ^ 0xFFFF == int.from_bytes(content[place + 3 : place + 5], "little")
        yield length
        place += HEAD_BYTES + length


@pytest.mark.parametrize(
    ("values", "lengths"),
    [
        (noise((1, 5000)), [20_000]),  # the four planes end to end
        (noise((2, 32767)), [65535, 65535, 65535, 65531]),  # 4 x 65534
        (noise((3, 21845)), [65535] * 4),
        (noise((256, 256)), [65535, 65535, 65535, 65535, 4]),
        (noisy_plane(0, (3, 21845)), [65535]),
        (noisy_plane(0, (256, 256)), [65535, 1]),
        (noisy_plane(1, (256, 256)), []),  # a plane before it is none: noise is stored from the first plane on only
        (SMOOTH * 0, []),
    ],
    ids=["20000", "65534", "65535", "65536", "one plane of 65535", "one plane of 65536", "plane 1", "no noise"],
)
def test_noise_is_stored_in_blocks_of_at_most_65535_bytes(values: np.ndarray, lengths: list[int]) -> None:
    assert list(stored_blocks(encode(values))) == lengths


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (256, 256), (401, 400)])
def test_noise_takes_hardly_more_room_than_it_has_bytes(shape: tuple[int, int]) -> None:
    values = noise(shape)
    blocks = -(-values.nbytes // LONGEST_BLOCK)
    most = values.nbytes + 2 + HEAD_BYTES * blocks + 16 + ADLER32_BYTES  # 16: what ISA-L makes of nothing, or of 1 x 1
    assert len(encode(values).data) <= most


def test_what_is_no_noise_is_deflated() -> None:
    assert len(encode(VALUES["constant"]).data) < VALUES["constant"].nbytes / 100
    assert len(encode(VALUES["smooth, rounded"]).data) < VALUES["smooth, rounded"].nbytes * 0.8


def test_grey_values_take_less_room_without_shuffling() -> None:
    """They are normalised when they are stored: a few hundred values, but numbers of which every byte varies."""
    grey = VALUES["grey, normalised"]
    assert len(encode_grey(grey).data) < 0.6 * len(encode(grey).data)


# Chunks that nobody has thought of

several = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@several
@given(arrays_of.arrays(np.uint32, st.tuples(st.integers(1, 40), st.integers(1, 40))), st.sampled_from([0, 1]))
def test_any_bits(words: np.ndarray, which: int) -> None:
    check(words.view(np.float32), (encode, encode_grey)[which])


@several
@given(arrays_of.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 40))), st.sampled_from([0, 1]))
def test_any_numbers(values: np.ndarray, which: int) -> None:
    check(values, (encode, encode_grey)[which])


KINDS = ("noise", "constant", "ramp", "few", "noise, then constant", "constant, then noise")
LENGTHS = [1, 4, 4095, 4096, 4097, 65_534, 65_535, 65_536, 65_537, 70_001, 131_070]


def plane_of(kind: str, length: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)
    half = np.arange(length) < length // 2
    return {
        "noise": random,
        "constant": np.full(length, seed % 256, np.uint8),
        "ramp": (np.arange(length) // 7).astype(np.uint8),
        "few": random % 5,
        "noise, then constant": np.where(half, random, np.uint8(0)),
        "constant, then noise": np.where(half, np.uint8(255), random),
    }[kind]


@settings(several, max_examples=120)
@given(
    kinds=st.tuples(*[st.sampled_from(KINDS)] * 4),
    length=st.sampled_from(LENGTHS) | st.integers(1, 140_000),
    seed=st.integers(0, 2**16),
)
def test_any_mixture_of_planes(kinds: tuple[str, ...], length: int, seed: int) -> None:
    planes = np.stack([plane_of(kind, length, seed + place) for place, kind in enumerate(kinds)], axis=-1)
    check(np.ascontiguousarray(planes).view("<f4").reshape(1, length), encode)
