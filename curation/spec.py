"""The spec: which volumes to read, at which levels, and which pairs of boxes to cut out of them.

The JSON is described in docs/spec-and-files.md. Reading accepts the older forms too (a pair as a list of two,
a box by its centre under the keys x, y, z) and always gives the form below; writing always writes that form.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
import msgspec.inspect
import numpy as np
from msgspec import Meta, Struct

from .errors import UsageError
from .files import PathLike

# Far beyond any volume, and small enough that a box's corners stay exact in 64 bits at every level.
FARTHEST = 2**48

Level = Annotated[int, Meta(ge=0, le=30)]
Size = Annotated[int, Meta(gt=0, le=2**20)]
Voxel = Annotated[int, Meta(ge=-FARTHEST, le=FARTHEST)]
CloudPath = Annotated[str, Meta(min_length=1)]


class Reference(Struct, frozen=True, forbid_unknown_fields=True):
    """The box over which statistics are taken: sizes are pixels at its own `dst_mip`."""

    path: CloudPath
    src_mip: Level
    dst_mip: Level
    x_size: Size
    y_size: Size


class VolumeSpec(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A volume read at `src_mip`; without a reference the sample's own box is the reference."""

    path: CloudPath
    src_mip: Level
    reference: Reference | None = None


class Mask(Struct, frozen=True, forbid_unknown_fields=True):
    """A volume that masks every pixel where it is >= `threshold`."""

    path: CloudPath
    src_mip: Level
    threshold: float


class Start(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A box's start, in MIP-0 voxels."""

    x_start: Voxel
    y_start: Voxel
    z_start: Voxel


class Note(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """The annotator's id, description and tags."""

    id: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()


class Pair(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A source box and a target box: the aligner learns to warp source onto target."""

    src: Start
    tgt: Start
    note: Note | None = None


class Spec(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A whole spec. Every box is `x_size` x `y_size` pixels at `dst_mip`."""

    image: VolumeSpec
    field: VolumeSpec | None = None
    masks: tuple[Mask, ...] = ()
    max_mip: Level
    dst_mip: Level
    x_size: Size
    y_size: Size
    pairs: tuple[Pair, ...] = ()  # none yet in a template

    def starts(self) -> np.ndarray:
        """The pairs' starts, (N, 2, 3) int64: source and target; x, y, z in MIP-0 voxels."""
        numbers = (
            number
            for pair in self.pairs
            for start in (pair.src, pair.tgt)
            for number in (start.x_start, start.y_start, start.z_start)
        )
        return np.fromiter(numbers, np.int64, count=6 * len(self.pairs)).reshape(-1, 2, 3)

    def notes(self) -> dict[int, Note]:
        """The notes of pairs by the pairs' indices; a pair without a note is left out."""
        return {index: pair.note for index, pair in enumerate(self.pairs) if pair.note is not None}

    def box_size(self) -> tuple[int, int]:
        """A box's (x, y) size in MIP-0 voxels."""
        return self.x_size << self.dst_mip, self.y_size << self.dst_mip

    def named_paths(self) -> Iterator[tuple[str, str]]:
        """The places in the spec that name a layer, such as `image.reference.path`, and the cloud paths there."""
        for name, layer in [("image", self.image), ("field", self.field)]:
            if layer is not None:
                yield f"{name}.path", layer.path
                if layer.reference is not None:
                    yield f"{name}.reference.path", layer.reference.path
        yield from ((f"masks[{index}].path", mask.path) for index, mask in enumerate(self.masks))

    def paths(self) -> list[str]:
        """The cloud paths of all layers."""
        return [path for _, path in self.named_paths()]

    def text(self) -> str:
        """The spec as JSON, the same for the same spec: what a dataset file stores and hashes."""
        return msgspec.json.encode(self).decode()


def read_spec(path: PathLike, template: bool = False) -> Spec:
    """Read and check a spec; any fault is a `UsageError` that names the file and the place in it.

    A template may be without pairs.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    try:
        spec = parse_spec(content)
        check_levels(spec)
        if not template and not spec.pairs:
            raise UsageError("no pairs: make some from points with create_spec.py")
        check_pairs(spec)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return spec


def parse_spec(content: bytes) -> Spec:
    """The spec in `content`, in the present form or an older one; its meaning is not checked yet."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        return msgspec.json.decode(content, type=Spec)
    except msgspec.ValidationError:
        pass  # an older form, or a fault: the slow way tells which
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not JSON: {_with_line(error, content)}") from None
    try:
        return msgspec.convert(_modern(msgspec.json.decode(content)), Spec)
    except msgspec.ValidationError as error:
        raise UsageError(_with_likely_key(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not JSON: {_with_line(error, content)}") from None


_UNKNOWN_KEY = re.compile(r"Object contains unknown field `(.*?)`(?: - at `(\$.*)`)?", re.DOTALL)


def _with_likely_key(fault: str) -> str:
    """What is wrong with a spec; of an unknown key also the key that is likely meant, or else those there are."""
    found = _UNKNOWN_KEY.fullmatch(fault)
    keys = _keys_at(found[2] or "$") if found else []
    if found is None or not keys:  # another fault, or a key that looks like a message
        return fault
    likely = difflib.get_close_matches(found[1][:100], keys, n=1)
    meant = f"did you mean '{likely[0]}'?" if likely else f"want one of {', '.join(keys)}"
    return f"{found[2] or '$'}: unknown key '{found[1]}': {meant}"


def _keys_at(path: str) -> list[str]:
    """The keys that an object of a spec may have, at a path such as `$.masks[0]`; none where there is no object."""
    kind: Any = msgspec.inspect.type_info(Spec)
    for name in re.findall(r"\.(\w+)", path):
        kind = next((field.type for field in getattr(kind, "fields", ()) if field.encode_name == name), None)
        if isinstance(kind, msgspec.inspect.UnionType):
            kind = next(each for each in kind.types if not isinstance(each, msgspec.inspect.NoneType))
        if isinstance(kind, msgspec.inspect.VarTupleType):
            kind = kind.item_type
    return [field.encode_name for field in getattr(kind, "fields", ())]


def _with_line(error: Exception, content: bytes) -> str:
    """The decoders give a byte position; a person looks for a line."""
    text = str(error)
    head, _, position = text.rstrip(")").partition("(byte ")
    end = int(position) if position.isdigit() else getattr(error, "start", len(content))
    line = content.count(b"\n", 0, end) + 1
    return f"{head.strip() or text}, line {line}"


def _modern(spec: Any) -> Any:
    """`spec`, as plain JSON values, with older pairs rewritten; whatever is not understood is left as it is."""
    if not isinstance(spec, dict) or not isinstance(spec.get("pairs"), list):
        return spec
    return {**spec, "pairs": [_modern_pair(pair, spec) for pair in spec["pairs"]]}


def _modern_pair(pair: Any, spec: dict[str, Any]) -> Any:
    if isinstance(pair, list) and len(pair) == 2:
        pair = {"src": pair[0], "tgt": pair[1]}
    if not isinstance(pair, dict):
        return pair
    return {key: box if key == "note" else _modern_start(box, spec) for key, box in pair.items()}


def _modern_start(box: Any, spec: dict[str, Any]) -> Any:
    """A box under x, y, z marks its centre: start = centre - size * 2^dst_mip // 2."""
    if not isinstance(box, dict) or set(box) != {"x", "y", "z"}:
        return box
    try:
        sizes = msgspec.convert([spec.get("x_size"), spec.get("y_size")], tuple[Size, Size])
        dst_mip = msgspec.convert(spec.get("dst_mip"), Level)
        centre = msgspec.convert([box["x"], box["y"]], tuple[Voxel, Voxel])
    except msgspec.ValidationError:
        return {"x_start": box["x"], "y_start": box["y"], "z_start": box["z"]}  # the fault is named in its place
    x_start, y_start = (middle - (size << dst_mip) // 2 for middle, size in zip(centre, sizes, strict=True))
    return {"x_start": x_start, "y_start": y_start, "z_start": box["z"]}


def check_levels(spec: Spec) -> None:
    """Refuse levels that cannot be read or would not line up."""
    if spec.dst_mip > spec.max_mip:
        raise UsageError(f"dst_mip {spec.dst_mip} is above max_mip {spec.max_mip}: want dst_mip <= max_mip")
    if spec.field is not None:
        reference = field_reference(spec)
        _check_not_finer("field.src_mip", spec.field.src_mip, "dst_mip", spec.dst_mip)
        _check_not_finer("field.reference.src_mip", reference.src_mip, "field.reference.dst_mip", reference.dst_mip)
    for name, src_mip, dst_mip, step, why in _readings(spec):
        if min(src_mip, dst_mip) > step:
            raise UsageError(
                f"{name} {src_mip}, wanted at MIP {dst_mip}: {why}, no whole pixels at MIP {min(src_mip, dst_mip)}: "
                f"want one of them at most {step}"
            )


def _check_not_finer(name: str, src_mip: int, wanted_name: str, wanted: int) -> None:
    if src_mip < wanted:
        raise UsageError(f"{name} {src_mip} is finer than {wanted_name} {wanted}: a field is never read finer")


def _readings(spec: Spec) -> Iterator[tuple[str, int, int, int, str]]:
    """Whatever is read: its name, the levels it is read and wanted at, and the level and reason of its box's steps.

    Starts are multiples of 2^max_mip; the boxes of images and masks are shifted by multiples of 2^(src_mip of the
    field's reference) besides. Those steps must be whole pixels at the coarser of the levels that a reading keeps.
    """
    step, why = spec.max_mip, f"boxes start at multiples of 2^{spec.max_mip} voxels, by max_mip"
    if spec.field is not None:
        field = field_reference(spec)
        yield "field.src_mip", spec.field.src_mip, spec.dst_mip, step, why
        yield "field.reference.src_mip", field.src_mip, field.dst_mip, step, why
        if field.src_mip < step:
            step, why = (
                field.src_mip,
                f"boxes are shifted by multiples of 2^{field.src_mip}, by field.reference.src_mip",
            )
    reference = image_reference(spec)
    yield "image.src_mip", spec.image.src_mip, spec.dst_mip, step, why
    yield "image.reference.src_mip", reference.src_mip, reference.dst_mip, step, why
    for index, mask in enumerate(spec.masks):
        yield f"masks[{index}].src_mip", mask.src_mip, spec.dst_mip, step, why
        yield f"masks[{index}].src_mip", mask.src_mip, reference.dst_mip, step, why


def check_pairs(spec: Spec) -> None:
    """Refuse pairs that could not be cut out, by the index of the first."""
    starts = spec.starts()
    same = np.flatnonzero((starts[:, 0] == starts[:, 1]).all(axis=1))
    if same.size:
        raise UsageError(f"pairs[{same[0]}]: source and target are the same box {starts[same[0], 0].tolist()}")
    step = 1 << spec.max_mip
    pair, role, axis = (where[:1] for where in np.nonzero(starts[:, :, :2] % step))
    if pair.size:
        name = f"pairs[{pair[0]}].{('src', 'tgt')[role[0]]}.{'xy'[axis[0]]}_start"
        value = starts[pair[0], role[0], axis[0]]
        raise UsageError(f"{name}: {value} is not a multiple of 2^max_mip = {step}")


def image_reference(spec: Spec) -> Reference:
    """The image's reference; left out, the sample's own box."""
    return spec.image.reference or _own_box(spec, spec.image)


def field_reference(spec: Spec) -> Reference:
    """The field's reference; left out, the sample's own box. There must be a field."""
    if spec.field is None:
        raise UsageError("the spec has no field")
    return spec.field.reference or _own_box(spec, spec.field)


def _own_box(spec: Spec, layer: VolumeSpec) -> Reference:
    return Reference(layer.path, layer.src_mip, spec.dst_mip, spec.x_size, spec.y_size)


# Writing

BLOCK = 16384  # pairs made into text at a time


def spec_file(spec: Spec, starts: np.ndarray, notes: Mapping[int, Note]) -> Iterator[str]:
    """The text of a file that holds `spec` with other pairs, one pair on a line.

    The text comes in pieces, so that a spec of a million pairs is never held as a whole. starts: (N, 2, 3) MIP-0
    voxels. notes: by pair.
    """
    head = msgspec.to_builtins(msgspec.structs.replace(spec, pairs=()))
    head.pop("pairs", None)
    opening = msgspec.json.format(msgspec.json.encode(head), indent=2).decode().removesuffix("\n}")
    yield opening + ',\n  "pairs": ['
    separator = "\n    "
    for block in pair_texts(starts, notes):
        yield separator + ",\n    ".join(block)
        separator = ",\n    "
    yield "\n  ]\n}\n"


def pair_texts(starts: np.ndarray, notes: Mapping[int, Note] = MappingProxyType({})) -> Iterator[list[str]]:
    """Each pair as JSON, in the spec's form, in blocks. starts: (N, 2, 3). notes: by pair."""
    start = '{"x_start": %d, "y_start": %d, "z_start": %d}'
    template = f'{{"src": {start}, "tgt": {start}%s}}'
    for first in range(0, len(starts), BLOCK):
        block = starts[first : first + BLOCK].reshape(-1, 6)
        said = (
            [_note_text(notes.get(pair)) for pair in range(first, first + len(block))] if notes else [""] * len(block)
        )
        yield [template % numbers for numbers in zip(*block.T.tolist(), said, strict=True)]


def _note_text(note: Note | None) -> str:
    return "" if note is None else f', "note": {note_json(note)}'


def note_json(note: Note) -> str:
    """A note as JSON."""
    return msgspec.json.encode(note).decode()
