"""Layers of zarr and n5: every form that is read, is read as TensorStore reads it, and every other is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layers_judged
import numpy as np
import pytest
from layers_judged import LITTLE, changed_json, level_of, n5, zarr2, zarr3

from curation.boxes import Window
from curation.errors import UsageError
from curation.volumes.volume import Volumes

CHUNK = (4, 3, 2)  # no two sizes are one
FINE = np.arange(1, 271, dtype=np.uint16).reshape(10, 9, 3)  # no multiple of a chunk; never 0
CEILED = np.arange(1001, 1076, dtype=np.uint16).reshape(5, 5, 3)
FLOORED = CEILED[:, :4]
GZIP = {"name": "gzip", "configuration": {"level": 1}}

Write = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "layer"


def assert_read_right(path: str, levels: int, axes: str = "zyx") -> None:
    """Every level is read as TensorStore reads it, none is larger or smaller, and all its chunks are found."""
    volumes = Volumes(missing="fail", sleep=lambda seconds: None)
    for mip in range(levels):
        volume = volumes.open(path, mip)
        expected = level_of(path, mip, axes)
        assert (volume.start, volume.stop) == ((0, 0, 0), expected.shape)
        assert volume.resolution == (4 * 2**mip, 4 * 2**mip, 40)
        assert (volume.channels, volume.dtype.itemsize) == (1, expected.dtype.itemsize)
        size = expected.shape[:2]
        sections = [volume.read(Window((0, 0), size, z, crop=(0, 0))).values[0] for z in range(expected.shape[2])]
        np.testing.assert_array_equal(np.stack(sections, axis=-1), expected)
        assert expected.all()


def refusal(path: str) -> str:
    """Why a layer is refused, in one line, at once."""
    waits: list[float] = []
    with pytest.raises(UsageError) as caught:
        Volumes(sleep=waits.append).open(path, 0)
    assert waits == []
    message = str(caught.value)
    assert "\n" not in message
    start, _, why = message.partition(": not a layer that is read right: ")
    assert start == path
    return why


NUMBERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]


@pytest.mark.parametrize("write", [zarr2, zarr3, n5])
@pytest.mark.parametrize("numbers", NUMBERS)
def test_numbers(write: Write, numbers: str, folder: Path) -> None:
    values = FINE % 120 + 1 if numbers.endswith("int8") else FINE * 1.25
    assert_read_right(write(folder, [values.astype(numbers)], CHUNK), 1)


@pytest.mark.parametrize("numbers", [">u2", ">i4", ">f4", ">f8"])
def test_zarr2_big_endian_numbers(numbers: str, folder: Path) -> None:
    path = zarr2(folder, [(FINE * 1.25).astype(numbers), CEILED.astype(numbers)], CHUNK)
    assert json.loads((folder / "1/.zarray").read_text())["dtype"] == numbers
    assert_read_right(path, 2)
    assert Volumes().open(path, 0).dtype.isnative


@pytest.mark.parametrize("write", [zarr2, zarr3, n5])
@pytest.mark.parametrize("chunk", [CHUNK, (2, 3, 4), (10, 9, 3), (16, 16, 16)])
@pytest.mark.parametrize("coarse", [CEILED, FLOORED])
def test_several_levels(write: Write, chunk: tuple[int, int, int], coarse: np.ndarray, folder: Path) -> None:
    assert_read_right(write(folder, [FINE, coarse, coarse[::2, ::2]], chunk), 3)


@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx"])
def test_zarr2_axes(axes: str, folder: Path) -> None:
    assert_read_right(zarr2(folder, [FINE, CEILED], CHUNK, axes), 2, axes)


BLOSC2 = {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2}


@pytest.mark.parametrize("compressor", [BLOSC2, {"id": "gzip", "level": 1}, {"id": "zstd", "level": 1}])
def test_zarr2_compressors(compressor: dict[str, Any], folder: Path) -> None:
    assert_read_right(zarr2(folder, [FINE, CEILED], CHUNK, compressor=compressor), 2)


@pytest.mark.parametrize("fill", [0, None])
def test_zarr2_fill_values(fill: int | None, folder: Path) -> None:
    assert_read_right(zarr2(folder, [FINE], CHUNK, fill_value=fill), 1)


def test_zarr2_channel_that_omero_knows(folder: Path) -> None:
    path = zarr2(folder, [FINE], CHUNK, "czyx")
    changed_json(folder / ".zattrs", "omero", to={"channels": [{"active": True}]})
    assert_read_right(path, 1, "czyx")


BLOSC3 = {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle"}}
ZSTD = {"name": "zstd", "configuration": {"level": 1}}
CRC32C = {"name": "crc32c"}


@pytest.mark.parametrize("codecs", [[], [GZIP], [BLOSC3], [ZSTD], [CRC32C], [GZIP, CRC32C], [CRC32C, ZSTD]])
def test_zarr3_codecs(codecs: list[dict[str, Any]], folder: Path) -> None:
    assert_read_right(zarr3(folder, [FINE, CEILED], CHUNK, codecs=[LITTLE, *codecs]), 2)


@pytest.mark.parametrize(
    ("name", "configuration"),
    [("default", {"separator": "/"}), ("default", None), ("v2", {"separator": "/"}), ("v2", {"separator": "."})],
)
def test_zarr3_keys_of_chunks(name: str, configuration: dict[str, str] | None, folder: Path) -> None:
    encoding = {"name": name, **({"configuration": configuration} if configuration else {})}
    path = zarr3(folder, [FINE, CEILED], CHUNK, chunk_key_encoding=encoding)
    for mip in (0, 1):  # TensorStore leaves out what is the default
        changed_json(folder / f"{mip}/zarr.json", "chunk_key_encoding", to=encoding)
    assert_read_right(path, 2)


def test_zarr3_names_of_dimensions(folder: Path) -> None:
    assert_read_right(zarr3(folder, [FINE, CEILED], CHUNK, dimension_names=["z", "y", "x"]), 2)


def test_zarr3_numbers_for_paths(folder: Path) -> None:
    path = zarr3(folder, [FINE, CEILED], CHUNK)
    (folder / "1").rename(folder / "12")
    changed_json(folder / "zarr.json", *OME3, "datasets", 1, "path", to="12")
    volume = Volumes(missing="fail").open(path, 1)
    np.testing.assert_array_equal(volume.read(Window((0, 0), (5, 5), 1, crop=(0, 0))).values[0], CEILED[:, :, 1])


@pytest.mark.parametrize("write", [zarr2, zarr3])
def test_zarr_of_either_version_is_found_by_what_is_there(write: Write, folder: Path) -> None:
    path = "zarr://" + write(folder, [FINE], CHUNK).partition("://")[2]
    read = Volumes(missing="fail").open(path, 0).read(Window((0, 0), (10, 9), 1, crop=(0, 0)))
    np.testing.assert_array_equal(read.values[0], FINE[:, :, 1])


@pytest.mark.parametrize("kind", ["raw", "gzip", "bzip2", "xz", "zstd", "blosc"])
def test_n5_compressions(kind: str, folder: Path) -> None:
    options = {"cname": "lz4", "clevel": 5, "shuffle": 1} if kind == "blosc" else {}
    assert_read_right(n5(folder, [FINE, CEILED], CHUNK, compression={"type": kind, **options}), 2)


OME2 = (".zattrs", "multiscales", 0)
OME3 = ("attributes", "ome", "multiscales", 0)


def put_translation(folder: Path, mip: int, xyz: tuple[float, ...]) -> None:
    """Give a level of a layer a translation in nm."""
    zarr = (folder / ".zattrs").exists()
    file, place = (folder / ".zattrs", OME2[1:]) if zarr else (folder / "zarr.json", OME3)
    scale = {"type": "scale", "scale": [40, 4 * 2**mip, 4 * 2**mip]}
    both = [scale, {"type": "translation", "translation": [*reversed(xyz)]}]
    changed_json(file, *place, "datasets", mip, "coordinateTransformations", to=both)


@pytest.mark.parametrize("write", [zarr2, zarr3])
@pytest.mark.parametrize("of_coarse", [(0, 0, 0), (2, 2, 0)])
def test_a_translation_that_moves_nothing(write: Write, of_coarse: tuple[float, ...], folder: Path) -> None:
    """(2, 2, 0): where places are those of voxels' centres, the first of 8 nm lies 2 nm behind the first of 4 nm."""
    path = write(folder, [FINE, CEILED], CHUNK)
    put_translation(folder, 0, (0, 0, 0))
    put_translation(folder, 1, of_coarse)
    assert_read_right(path, 2)


def test_n5_transform_that_moves_nothing(folder: Path) -> None:
    path = n5(folder, [FINE, CEILED], CHUNK)
    for mip, (translate, scale) in enumerate([((0, 0, 0), (40, 4, 4)), ((0, 2, 2), (40, 8, 8))]):
        transform = {"axes": ["z", "y", "x"], "scale": scale, "translate": translate, "units": ["nm"] * 3}
        changed_json(folder / f"s{mip}/attributes.json", "transform", to=transform)
    assert_read_right(path, 2)


@pytest.mark.parametrize(("unit", "factor"), [("micrometer", 1e-3), ("angstrom", 10), ("meter", 1e-9)])
def test_zarr_in_other_units(unit: str, factor: float, folder: Path) -> None:
    path = zarr2(folder, [FINE], CHUNK)
    for place in range(3):
        changed_json(folder / OME2[0], *OME2[1:], "axes", place, "unit", to=unit)
    scale = [40 * factor, 4 * factor, 4 * factor]
    changed_json(folder / OME2[0], *OME2[1:], "datasets", 0, "coordinateTransformations", 0, "scale", to=scale)
    assert np.allclose(Volumes().open(path, 0).resolution, (4, 4, 40), rtol=1e-6)


# What is refused

BYTES = np.full((10, 9, 3), 7, np.uint8)
TWO = np.stack([FINE, FINE], axis=-1)


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ({"order": "F"}, 'order of level 0 is "F": want "C"'),
        ({"compressor": None}, 'compressor of level 0 is null: want "blosc" or "gzip" or "zstd"'),
        ({"compressor": {"id": "bz2", "level": 1}}, 'compressor of level 0 is "bz2"'),
        ({"compressor": {"id": "zlib", "level": 1}}, 'compressor of level 0 is "zlib"'),
        ({"fill_value": 255}, "fill_value of level 0 is 255: want 0"),
        ({"dimension_separator": "."}, 'dimension_separator of level 0 is ".": want "/"'),
        ({"axes": "xyz"}, 'the order of its axes is "xyz": want "zyx"'),
        ({"axes": "zyxc"}, 'the order of its axes is "zyxc": want "zyx"'),
        ({"axes": "tzyx"}, 'the order of its axes is "tzyx"'),
    ],
)
def test_zarr2_of_other_forms_is_refused(form: dict[str, Any], why: str, folder: Path) -> None:
    assert refusal(zarr2(folder, [FINE, CEILED], CHUNK, **form)).startswith(why)


def test_zarr2_of_other_numbers_is_refused(folder: Path) -> None:
    path = zarr2(folder, [FINE], CHUNK)
    changed_json(folder / "0/.zarray", "dtype", to="|b1")
    assert refusal(path).startswith('dtype of level 0 is "|b1": want "<f4" or ')


def test_zarr2_with_filters_is_refused(folder: Path) -> None:
    path = zarr2(folder, [FINE], CHUNK)
    changed_json(folder / "0/.zarray", "filters", to=[{"id": "delta", "dtype": "<u2"}])
    assert refusal(path).startswith('filters of level 0 is [{"id": "delta"')


@pytest.mark.parametrize(("chunks", "word"), [([2, 1, 3, 4], "chunk size"), ([1, 2, 3, 4], "size")])
def test_zarr2_of_two_channels_is_refused(chunks: list[int], word: str, folder: Path) -> None:
    path = zarr2(folder, [TWO], CHUNK, "czyx", chunks=[chunks[0], 2, 3, 4])
    changed_json(folder / ".zattrs", "omero", to={"channels": [{"active": True}, {"active": True}]})
    assert refusal(path) == "the size of axis c of level 0 is 2: want 1"


def test_zarr2_whose_channel_is_not_active_is_refused(folder: Path) -> None:
    path = zarr2(folder, [FINE], CHUNK, "czyx")
    changed_json(folder / ".zattrs", "omero", to={"channels": [{"active": False}]})
    assert refusal(path) == "the number of omero's channels that are active is 0: want 1"


def test_zarr2_whose_chunks_of_channels_are_larger_is_refused(folder: Path) -> None:
    path = zarr2(folder, [FINE], CHUNK, "czyx", chunks=[2, 2, 3, 4])
    assert refusal(path) == "the chunk size of axis c of level 0 is 2: want 1"


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, GZIP]}, 'endian of level 0 is "big"'),
        (
            {"codecs": [{"name": "transpose", "configuration": {"order": [2, 1, 0]}}, LITTLE]},
            'the first codec of level 0 is "transpose": want "bytes"',
        ),
        (
            {
                "codecs": [
                    {"name": "sharding_indexed", "configuration": {"chunk_shape": [2, 3, 4], "codecs": [LITTLE, GZIP]}}
                ]
            },
            'the first codec of level 0 is "sharding_indexed"',
        ),
        (
            {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
            'the separator in chunk_key_encoding of level 0 is ".": want "/" or null',
        ),
        ({"fill_value": 255}, "fill_value of level 0 is 255: want 0"),
        ({"axes": "xyz"}, 'the order of its axes is "xyz": want "zyx"'),
        ({"axes": "czyx"}, 'the order of its axes is "czyx": want "zyx"'),
        ({"dimension_names": ["Z", "Y", "X"]}, 'dimension_names of level 0 is ["Z", "Y", "X"]'),
        ({"dimension_names": ["x", "y", "z"]}, 'dimension_names of level 0 is ["x", "y", "z"]'),
    ],
)
def test_zarr3_of_other_forms_is_refused(form: dict[str, Any], why: str, folder: Path) -> None:
    assert refusal(zarr3(folder, [FINE, CEILED], CHUNK, **form)).startswith(why)


def test_zarr3_with_v2_keys_and_their_default_separator_is_refused(folder: Path) -> None:
    path = zarr3(folder, [FINE], CHUNK, chunk_key_encoding={"name": "v2"})
    changed_json(folder / "0/zarr.json", "chunk_key_encoding", to={"name": "v2"})
    assert refusal(path) == 'the separator in chunk_key_encoding of level 0 is null: want "/" or "."'


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ({"compression": {"type": "gzip", "useZlib": True}}, "useZlib of level 0 is true: want false"),
    ],
)
def test_n5_of_other_forms_is_refused(form: dict[str, Any], why: str, folder: Path) -> None:
    assert refusal(n5(folder, [FINE, CEILED], CHUNK, **form)).startswith(why)


def test_n5_of_two_channels_is_refused(folder: Path) -> None:
    assert refusal(n5(folder, [TWO], CHUNK)) == "the number of dimensions of level 0 is 4: want 3"


def test_n5_in_another_unit_is_refused(folder: Path) -> None:
    path = n5(folder, [FINE], CHUNK)
    changed_json(folder / "attributes.json", "pixelResolution", "unit", to="um")
    assert refusal(path) == 'the unit of pixelResolution is "um": want "nm" or "nanometer"'


@pytest.mark.parametrize("offset", [[4, 0, 0], [0, 0, 40]])
def test_n5_with_an_offset_is_refused(offset: list[float], folder: Path) -> None:
    path = n5(folder, [FINE], CHUNK)
    changed_json(folder / "s0/attributes.json", "offset", to=offset)
    assert refusal(path).startswith(f"the translation of level 0 is {[*map(float, offset)]} in x, y, z: want none")


@pytest.mark.parametrize("write", [zarr2, zarr3])
@pytest.mark.parametrize("mip", [0, 1])
@pytest.mark.parametrize("translation", [(4, 0, 0), (0, 0, 40), (2, 2, 20)])
def test_a_translation_that_moves_a_level_is_refused(
    write: Write, mip: int, translation: tuple[float, ...], folder: Path
) -> None:
    path = write(folder, [FINE, CEILED], CHUNK)
    put_translation(folder, mip, translation)
    found = [*map(float, translation)]
    assert refusal(path).startswith(f"the translation of level {mip} is {found} in x, y, z: want none")


def test_a_transformation_of_all_levels_is_refused(folder: Path) -> None:
    path = zarr2(folder, [FINE], CHUNK)
    for kind, moves in (("scale", [1, 2, 2]), ("translation", [40, 0, 0])):
        changed_json(folder / OME2[0], *OME2[1:], "coordinateTransformations", to=[{"type": kind, kind: moves}])
        assert refusal(path).startswith(f"the {kind} of all levels in x, y, z is ")
    changed_json(folder / OME2[0], *OME2[1:], "coordinateTransformations", to=[{"type": "scale", "scale": [1, 1, 1]}])
    assert_read_right(path, 1)


@pytest.mark.parametrize(
    ("write", "file", "keys", "value"),
    [
        (zarr2, "1/.zarray", ("chunks",), [2, 4, 3]),
        (zarr2, "1/.zarray", ("dtype",), "<u4"),
        (zarr2, "1/.zarray", ("compressor",), {"id": "zstd", "level": 1}),
        (zarr3, "1/zarr.json", ("chunk_grid", "configuration", "chunk_shape"), [2, 4, 3]),
        (zarr3, "1/zarr.json", ("data_type",), "uint32"),
        (n5, "s1/attributes.json", ("dataType",), "uint32"),
    ],
)
def test_levels_that_are_not_alike_are_refused(
    write: Write, file: str, keys: tuple[str, ...], value: Any, folder: Path
) -> None:
    path = write(folder, [FINE, CEILED], CHUNK)
    changed_json(folder / file, *keys, to=value)
    assert refusal(path).startswith(f"{keys[0]} of level 1 is ")


def test_n5_levels_of_other_block_shapes_are_read(folder: Path) -> None:
    path = n5(folder, [FINE, CEILED], CHUNK)
    other = layers_judged.n5(folder.with_name("other"), [CEILED], (3, 2, 1))
    for file in (folder / "s1").rglob("*"):
        if file.is_file():
            file.unlink()
    source = folder.with_name("other") / "s0"
    for file in source.rglob("*"):
        if file.is_file():
            target = folder / "s1" / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    assert other.endswith("other")
    assert_read_right(path, 2)


@pytest.mark.parametrize("path", ["s1", "2", "01"])
def test_zarr2_levels_that_are_not_named_by_their_mip_are_refused(path: str, folder: Path) -> None:
    layer = zarr2(folder, [FINE, CEILED], CHUNK)
    (folder / "1").rename(folder / path)
    changed_json(folder / OME2[0], *OME2[1:], "datasets", 1, "path", to=path)
    assert refusal(layer) == f'the path of level 1 is "{path}": want "1"'


def test_zarr3_levels_that_are_not_named_by_numbers_are_refused(folder: Path) -> None:
    layer = zarr3(folder, [FINE], CHUNK)
    (folder / "0").rename(folder / "s0")
    changed_json(folder / "zarr.json", *OME3, "datasets", 0, "path", to="s0")
    assert refusal(layer) == 'the path of level 0 is "s0": want a number'


def test_an_array_without_a_pyramid_is_refused(folder: Path) -> None:
    zarr2(folder / "two", [FINE], CHUNK)
    zarr3(folder / "three", [FINE], CHUNK)
    for path in (f"zarr2://file://{folder}/two/0", f"zarr3://file://{folder}/three/0"):
        assert refusal(path) == "it has no OME multiscales metadata, which give the size of its voxels"


def test_levels_of_one_voxel_size_are_refused(folder: Path) -> None:
    path = zarr2(folder, [FINE, FINE], CHUNK)
    sizes = [40, 4.4, 4.4]
    changed_json(folder / OME2[0], *OME2[1:], "datasets", 1, "coordinateTransformations", 0, "scale", to=sizes)
    assert refusal(path).startswith("of its 2 levels some have voxels of one size")


@pytest.mark.parametrize("write", [zarr2, zarr3])
def test_a_level_between_two_mips_is_refused_where_it_is_read(write: Write, folder: Path) -> None:
    path = write(folder, [FINE, CEILED], CHUNK)
    file, place = (folder / ".zattrs", OME2[1:]) if write is zarr2 else (folder / "zarr.json", OME3)
    changed_json(file, *place, "datasets", 1, "coordinateTransformations", 0, "scale", to=[40, 7.2, 7.2])
    with pytest.raises(UsageError, match=r"at MIP 1 has voxels of 7\.2 x 7\.2 x 40 nm, .* want 8 x 8 x 40 nm"):
        Volumes().open(path, 1)


@pytest.mark.parametrize(("write", "file"), [(zarr2, ".zattrs"), (zarr3, "zarr.json"), (n5, "attributes.json")])
@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"multiscales": 3}', '{"scales": [[]]}'])
def test_metadata_of_something_else_are_refused(write: Write, file: str, content: str, folder: Path) -> None:
    path = write(folder, [FINE], CHUNK)
    (folder / file).write_text(content)
    assert refusal(path)
