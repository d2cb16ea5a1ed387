"""Neuroglancer's viewer states: the JSON behind its "{}" button, which a link carries after `#!`.

The form is the one that https://github.com/google/neuroglancer reads and writes: src/annotation/index.ts for
annotations, src/ui/url_hash_binding.ts for links.

A state's annotations are in their layer's own coordinates. What those are is said by the first of these that is there:
the layer source's transform, the state's dimensions, and in states of before 2019 the layer's or the navigation's voxel
size.
"""

import json
import re
import shlex
from array import array
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote, unquote

import msgspec
import numpy as np

from ..errors import UsageError
from ..files import PathLike
from ..spec import Note, Spec
from .coordinate_spaces import Resolution, Space, plain_space, resolution_nm, space_before, space_of
from .model import Annotations, Shape, gathered, shown

PICTURE = "curation-picture:"
"""How the ids of boxes begin that only make a line visible: they mark nothing themselves."""

_ENDS = {
    "point": (Shape.POINT, "point", "point"),
    "line": (Shape.LINE, "pointA", "pointB"),
    "axis_aligned_bounding_box": (Shape.BOX, "pointA", "pointB"),
    "ellipsoid": (Shape.ELLIPSOID, "center", "center"),
}
_COLLECTIONS = ("collection", "line_strip", "spoke")
_LAYER_TYPES = ("annotation", "pointAnnotation")

_Json = dict[str, Any]


def is_link(text: str) -> bool:
    """Whether text is a link to a state, rather than a path."""
    return "#!" in text or "json_url=" in text or text.startswith("middleauth+")


def read_link(link: str, layer: str | None = None) -> Annotations:
    """The annotations of the state that a link carries, of its layer `layer` where several have some."""
    return _read(shown(link.partition("#!")[0] or "#!"), link, layer)


def read_state(path: str, layer: str | None = None) -> Annotations:
    """The annotations of a file that holds a state as JSON, or a link with one; `layer` as for a link."""
    try:
        text = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    return _read(path, text, layer)


def _read(origin: str, text: str, layer: str | None) -> Annotations:
    try:
        state = _state(text.strip())
        name, chosen = _choose(_layers(state), layer)
        try:
            return _annotations(origin, chosen, _space(chosen, state))
        except ValueError as error:
            raise UsageError(f"layer {name!r}: {error}") from None
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None


# From text to a state


def _state(text: str) -> _Json:
    """The state that text holds, as JSON or in a link."""
    content = text if text.startswith(("{", "[")) else _in_link(text)
    try:
        state = _decoded(content)
    except ValueError as fault:
        try:
            state = _decoded(_from_url_safe(content))
        except ValueError:
            raise UsageError(f"not JSON: {fault}") from None
    if not isinstance(state, dict):
        raise UsageError("not a viewer state: want a JSON object")
    if state.get("@type") == "neuroglancer_annotations_v1":
        raise UsageError("the info file of an annotation layer: give its folder")
    if not isinstance(state.get("layers"), list | dict):
        raise UsageError("not a viewer state: it has no layers")
    return state


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


_ON_A_SERVER = (
    "its state is kept on a server: open it in Neuroglancer, and save the JSON state that the {} button shows to a file"
)


def _in_link(link: str) -> str:
    """The JSON in a link, not decoded yet."""
    page, mark, fragment = link.partition("#!")
    content = unquote(fragment).removeprefix("+")  # #!+ adds to the state that the page has
    if "json_url=" in page or page.startswith("middleauth+") or re.match(r"[a-z][a-z0-9+.-]*://", content):
        raise UsageError(_ON_A_SERVER)
    if not mark or not content:
        raise UsageError("the link holds no state")
    return content


_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_QUOTE = re.compile(r"""\\(.)|\"""", re.DOTALL)


def _from_url_safe(text: str) -> str:
    """JSON from the form that links had before 2018: ' for ", and _ or & for a comma."""
    parts = []
    end = 0
    for match in _QUOTED.finditer(text):
        parts += [re.sub("[_&]", ",", text[end : match.start()]), _double_quoted(match[0])]
        end = match.end()
    return "".join([*parts, re.sub("[_&]", ",", text[end:])])


def _double_quoted(string: str) -> str:
    if string.startswith('"'):
        return string
    inner = _QUOTE.sub(lambda match: "'" if match[1] == "'" else match[0] if match[1] else '\\"', string[1:-1])
    return f'"{inner}"'


# From a state to a layer


def _layers(state: _Json) -> list[tuple[str, _Json]]:
    """The layers with their names: a list or, in states of before 2019, an object by name."""
    layers = state["layers"]
    pairs = layers.items() if isinstance(layers, dict) else ((None, layer) for layer in layers)
    named = []
    for index, (name, layer) in enumerate(pairs):
        if not isinstance(layer, dict):
            raise UsageError(f"layers[{index}]: want an object")
        named.append((str(layer.get("name", "")) if name is None else name, layer))
    return named


def _choose(layers: Sequence[tuple[str, _Json]], wanted: str | None) -> tuple[str, _Json]:
    """The layer named `wanted`; or, without a name, the only one that holds annotations."""
    held = [(name, layer) for name, layer in layers if any(not _is_picture(entry) for entry in _entries(layer))]
    chosen = held if wanted is None else [(name, layer) for name, layer in held if name == wanted]
    if chosen and (wanted is not None or len(chosen) == 1):
        return chosen[0]
    if chosen:
        names = ", ".join(repr(name) for name, _ in held)
        raise UsageError(f"several layers hold annotations: choose one with --layer, of {names}")
    there = ", ".join(_described(name, layer) for name, layer in layers) or "none"
    which = "no layer" if wanted is None else f"no layer {wanted!r}"
    raise UsageError(f"{which} that holds annotations; the layers are: {there}")


def _described(name: str, layer: _Json) -> str:
    url = _source(layer).get("url")
    if layer.get("type") in _LAYER_TYPES and isinstance(url, str) and not url.startswith("local://"):
        return f"{name!r} (its annotations are at {shown(url)}: give that path as --points_path)"
    return f"{name!r} ({shown(str(layer.get('type', 'no type')))})"


def _source(layer: _Json) -> _Json:
    """Where a layer's annotations come from, as an object; of several, the local one."""
    given = layer.get("source")
    sources = [source if isinstance(source, dict) else {"url": source} for source in _as_list(given) if source]
    local = [source for source in sources if str(source.get("url", "")).startswith("local://")]
    return next(iter([*local, *sources]), {})


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _entries(layer: _Json) -> list[Any]:
    """A layer's annotations as they stand in the state."""
    if layer.get("type") not in _LAYER_TYPES:
        return []
    entries, points = (layer.get(key) or [] for key in ("annotations", "points"))
    if not isinstance(entries, list) or not isinstance(points, list):
        raise UsageError(f"layer {layer.get('name', '')!r}: annotations: want a list")
    return [*entries, *({"type": "point", "point": point} for point in points)]


def _is_picture(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and _kind(entry) == "axis_aligned_bounding_box"
        and str(entry.get("id", "")).startswith(PICTURE)
    )


def _kind(entry: _Json) -> Any:
    """An annotation's type, which may be in upper or lower case."""
    kind = entry.get("type")
    return kind.lower() if _is_text(kind) else kind


# From a layer to annotations


def _space(layer: _Json, state: _Json) -> Space:
    """The space of a layer's coordinates."""
    if _is_moved(layer.get("transform")):
        raise ValueError("it is moved by a transform of its own, of a kind from before 2019, which is not read")
    transform = _source(layer).get("transform")
    if transform:
        return space_before(transform)
    if layer.get("voxelSize"):
        return plain_space(resolution_nm(layer["voxelSize"]))
    if state.get("dimensions"):
        return space_of(state["dimensions"])
    return plain_space(_navigation_size(state))


def _is_moved(transform: Any) -> bool:
    return bool(transform) and transform not in (np.eye(4).tolist(), np.eye(4).ravel().tolist())


def _navigation_size(state: _Json) -> Resolution | None:
    """The voxel size that a state of before 2019 was looked at with: its layers' own, where they say none."""
    value: Any = state
    for key in ("navigation", "pose", "position", "voxelSize"):
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else resolution_nm(value)


def _annotations(origin: str, layer: _Json, space: Space) -> Annotations:
    entries = _entries(layer)
    parents = {entry["parentId"] for entry in entries if isinstance(entry, dict) and _is_text(entry.get("parentId"))}
    labels = _labels(layer)
    indices: list[int] = []
    shapes = bytearray()
    numbers = array("d")
    notes: dict[int, Note] = {}
    for index, entry in enumerate(entries):
        try:
            placed = _placed(entry, space.rank, parents)
            note = None if placed is None else _note(entry, labels)
        except ValueError as error:
            raise ValueError(f"annotations[{index}]: {error}") from None
        if placed is None:
            continue
        if note is not None:
            notes[len(indices)] = note
        shape, first, second = placed
        indices.append(index)
        shapes.append(shape)
        numbers.extend(first)
        numbers.extend(second)
    if not indices:
        raise ValueError("no annotations but collections without members")
    ends = np.frombuffer(numbers).reshape(-1, 2, space.rank)
    kinds = np.frombuffer(shapes, np.uint8)
    return gathered(origin, kinds, ends, space, notes, lambda place: f"annotations[{indices[place]}]")


def _placed(entry: Any, rank: int, parents: Set[str]) -> tuple[Shape, list[float], list[float]] | None:
    """An annotation's shape and ends; None for what is none of its own: a picture, or a collection of others."""
    if not isinstance(entry, dict):
        raise ValueError("want an object")
    kind = _kind(entry)
    if kind in _COLLECTIONS or _is_picture(entry):
        return None
    if kind == "polyline":
        if _is_text(entry.get("id")) and entry["id"] in parents:
            return None
        raise ValueError("a polyline, which has no two ends: draw lines")
    if not _is_text(kind) or kind not in _ENDS:
        raise ValueError(f"{shown(repr(kind))} is no type of annotation: want one of {', '.join(_ENDS)}")
    shape, first, second = _ENDS[kind]
    return shape, _coordinates(entry, first, rank), _coordinates(entry, second, rank)


def _coordinates(entry: _Json, key: str, rank: int) -> list[float]:
    place = entry.get(key)
    if isinstance(place, list) and len(place) == rank and all(type(value) in (int, float) for value in place):
        try:
            return [float(value) for value in place]
        except OverflowError:  # a whole number of hundreds of digits
            pass
    raise ValueError(f"{key}: want {rank} numbers, got {shown(repr(place))}")


def _note(entry: _Json, labels: Mapping[int, str]) -> Note | None:
    id, description = (value if _is_text(value := entry.get(key)) else "" for key in ("id", "description"))
    ids = entry.get("tagIds")
    tags = tuple(labels[tag] for tag in ids if type(tag) is int and tag in labels) if isinstance(ids, list) else ()
    return Note(id, description, tags) if id or description or tags else None


def _labels(layer: _Json) -> dict[int, str]:
    """The labels of a layer's tags, by their ids."""
    tags = [tag for tag in _as_list(layer.get("annotationTags")) if isinstance(tag, dict)]
    return {tag["id"]: tag["label"] for tag in tags if type(tag.get("id")) is int and _is_text(tag.get("label"))}


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


# From pairs to a state

VIEWER = "https://neuroglancer-demo.appspot.com/#!"
VIEW_PIXELS = 640  # of the screen, for the larger side of a box: the whole of it is seen beside the list
FIRST_PORT = 1337

_MASK_SHADER = """void main() {
  if (float(toRaw(getDataValue())) >= %r) emitRGBA(vec4(1.0, 0.2, 0.2, 0.5));
  else emitTransparent();
}
"""
_FIELD_SHADER = """#uicontrol invlerp y(range=[-64, 64], channel=0)
#uicontrol invlerp x(range=[-64, 64], channel=1)
void main() {
  emitRGB(vec3(x(), y(), 0.5));
}
"""


def state_file(
    path: PathLike, spec: Spec, starts: np.ndarray, notes: Mapping[int, Note], resolution: Resolution
) -> str:
    """The text of a file that shows pairs: for NAME.json a state as JSON, for another name a link that opens it.

    starts: (N, 2, 3) MIP-0 voxels. resolution: a voxel's nm. The layer `pairs` holds a line from each source to its
    target; read back, these are the same pairs. `boxes` only shows what they stand for.
    """
    if not str(path).endswith(".json"):
        return link_to(spec, starts, notes, resolution) + "\n"
    return _state_text(spec, starts, notes, resolution) + "\n"


def link_to(spec: Spec, starts: np.ndarray, notes: Mapping[int, Note], resolution: Resolution) -> str:
    """A link that shows pairs, as `state_file` does."""
    return VIEWER + quote(_state_text(spec, starts, notes, resolution), safe="~@/:,{}[]'!()*")


def _state_text(spec: Spec, starts: np.ndarray, notes: Mapping[int, Note], resolution: Resolution) -> str:
    return msgspec.json.encode(_state_of(spec, starts, notes, resolution)).decode()


def commands_to_serve(spec: Spec) -> list[str]:
    """The commands that let a browser read the spec's local volumes, where the state looks for them."""
    return [command_to_serve(_folder(path), port) for path, port in _ports(spec).items()]


def command_to_serve(folder: str, port: int) -> str:
    """The command that serves a folder, `file://...`, at http://localhost:PORT, to pages of other sites too."""
    code = f"from cloudvolume.server import view; view({json.dumps(folder, ensure_ascii=False)}, port={port})"
    return f"python -c {shlex.quote(code)}"


def _ports(spec: Spec) -> dict[str, int]:
    """The ports at which the state looks for local volumes, by their paths: a browser reads no file://."""
    shown = [spec.image.path, *([spec.field.path] if spec.field else []), *(mask.path for mask in spec.masks)]
    local = dict.fromkeys(path for path in shown if _folder(path).startswith("file://"))
    return {path: FIRST_PORT + index for index, path in enumerate(local)}


def _folder(path: str) -> str:
    """A cloud path without the format before it: `gs://...` for `zarr2://gs://...`."""
    return path if path.count("://") < 2 else path.partition("://")[2]


def _state_of(spec: Spec, starts: np.ndarray, notes: Mapping[int, Note], resolution: Resolution) -> _Json:
    dimensions = {axis: [float(f"{width * 1e-9:.12g}"), "m"] for axis, width in zip("xyz", resolution, strict=True)}
    size = np.array([*spec.box_size(), 1])
    lines = [_line(index, src, tgt, notes.get(index)) for index, (src, tgt) in enumerate(starts.tolist())]
    boxes = [
        {
            "type": "axis_aligned_bounding_box",
            "id": PICTURE + ",".join(map(str, start)),
            "pointA": start,
            "pointB": (np.array(start) + size).tolist(),
        }
        for start in np.unique(starts.reshape(-1, 3), axis=0).tolist()
    ]
    state: _Json = {
        "dimensions": dimensions,
        "layers": [
            *_volume_layers(spec),
            _annotation_layer("boxes", dimensions, boxes, "#80d0ff"),
            {**_annotation_layer("pairs", dimensions, lines, "#ffe040"), "tab": "annotations"},
        ],
        "selectedLayer": {"visible": True, "layer": "pairs"},
        "layout": "xy",
    }
    if len(starts):
        x_size, y_size = spec.box_size()
        x, y, z = starts[0, 0].tolist()
        state["position"] = _in_section([x + x_size / 2, y + y_size / 2, z])
        # It counts in voxels as wide as they are along the axis where they are thinnest: src/navigation_state.ts.
        side = max(x_size * resolution[0], y_size * resolution[1]) / min(resolution)
        state["crossSectionScale"] = float(f"{side / VIEW_PIXELS:.12g}")
    return state


def _volume_layers(spec: Spec) -> Iterator[_Json]:
    """The volumes: the image, the field, which is hidden, and where the masks mask."""
    ports = _ports(spec)

    def layer(name: str, path: str, **more: Any) -> _Json:
        folder = _folder(path)
        format = path.removesuffix(folder) or "precomputed://"
        source = f"http://localhost:{ports[path]}" if path in ports else folder
        return {"type": "image", "source": format + source, "name": name, **more}

    yield layer("image", spec.image.path)
    if spec.field is not None:
        yield layer("field", spec.field.path, shader=_FIELD_SHADER, opacity=1, visible=False)
    for index, mask in enumerate(spec.masks):
        yield layer(f"mask {index}", mask.path, shader=_MASK_SHADER % mask.threshold, opacity=1)


def _annotation_layer(name: str, dimensions: _Json, annotations: list[_Json], color: str) -> _Json:
    source = {"url": "local://annotations", "transform": {"outputDimensions": dimensions}}
    return {
        "type": "annotation",
        "source": source,
        "name": name,
        "annotationColor": color,
        "annotations": annotations,
    }


def _line(index: int, source: list[int], target: list[int], note: Note | None) -> _Json:
    line: _Json = {"type": "line", "id": f"pair {index}", "pointA": _in_section(source), "pointB": _in_section(target)}
    if note is not None and note.description:
        line["description"] = note.description
    return line


def _in_section(start: Sequence[float]) -> list[float]:
    """A place of a section as one in the middle of its section: at its edge it would be shown in the section before."""
    x, y, z = start
    return [x, y, z + 0.5]
