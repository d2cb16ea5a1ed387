"""Reading annotations from whatever holds them: a CSV, a viewer state, a link, or an annotation layer.

The content of a source tells what it is, not its name. A new kind of source gets a module of its own beside this one,
and a line in `read_annotations`.
"""

import os
import re

from ..errors import UsageError
from .model import Annotations, shown
from .precomputed import read_annotation_layer
from .tables import read_table
from .viewer_states import is_link, read_link, read_state


def read_annotations(source: str, layer: str | None = None) -> Annotations:
    """All annotations of `source`: a file's path, a Neuroglancer link, or a precomputed annotation layer's path.

    layer: which of a viewer state's layers is meant, where several hold annotations. Whatever is wrong is a
    `UsageError` of one line that begins with the source's name; a store that cannot be asked is a `WorkError`.
    """
    if is_link(source) and not os.path.exists(source):
        return read_link(source, layer)
    if "://" in source or os.path.isdir(source):
        _refuse_layer(source, layer)
        return read_annotation_layer(source)
    if _holds_state(source):
        return read_state(source, layer)
    _refuse_layer(source, layer)
    return read_table(source)


def _refuse_layer(source: str, layer: str | None) -> None:
    if layer is not None:
        raise UsageError(f"{shown(source)}: only a viewer state has layers to choose from: leave out {layer!r}")


_STATE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:[{\[]|\S*#!|https?://\S*json_url=|middleauth\+)")


def _holds_state(path: str) -> bool:
    """Whether a file holds a viewer state, or a link to one, and not a table."""
    try:
        with open(path, "rb") as file:
            return _STATE.match(file.read(4096)) is not None
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown(path)}: {getattr(error, 'strerror', None) or error}") from None
