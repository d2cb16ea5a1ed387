"""Rejection files: pairs that somebody looked at and does not want, for create_spec.py's --exclude.

JSON: {"pairs": [{"src": {"x_start": ..., "y_start": ..., "z_start": ...}, "tgt": {...}}, ...]}, or that list alone.
Other keys, such as a reason, are for people. So a spec is a rejection file of all its pairs.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from .errors import UsageError
from .files import PathLike
from .spec import Pair, Start, parse_spec


class _Rejected(Struct, frozen=True):
    src: Start
    tgt: Start


class _Rejections(Struct, frozen=True):
    pairs: list[_Rejected]


def read_rejections(path: PathLike) -> np.ndarray:
    """The pairs of a rejection file, (N, 2, 3) int64: source and target starts in MIP-0 voxels."""
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").strip()
        if content.startswith(b"["):
            pairs: Sequence[_Rejected | Pair] = msgspec.json.decode(content, type=list[_Rejected])
        else:
            pairs = _pairs_of_object(content)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not a list of pairs to leave out: {error}") from None
    starts = [[[at.x_start, at.y_start, at.z_start] for at in (pair.src, pair.tgt)] for pair in pairs]
    return np.array(starts, np.int64).reshape(-1, 2, 3)


def _pairs_of_object(content: bytes) -> Sequence[_Rejected | Pair]:
    try:
        return msgspec.json.decode(content, type=_Rejections).pairs
    except msgspec.ValidationError:
        try:
            return parse_spec(content).pairs  # one of an older form
        except UsageError:
            pass
        raise
