"""The text files that hold pairs: when they are written, and when they are left alone."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_jobs import spec_of

from curation.errors import UsageError
from curation.files import Existing
from curation.spec import Note, parse_spec
from curation.steps.pair_files import PairFile, spec_of_pairs, write_pair_files

SPEC = parse_spec(json.dumps(spec_of("gs://bucket/em")).encode())


class NotesThatFail(dict[int, Note]):
    def __bool__(self) -> bool:
        return True

    def get(self, *_: object) -> Note:
        raise IndexError


def test_writing_that_fails_leaves_nothing_new(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("precious")
    with pytest.raises(IndexError):
        write_pair_files(
            [spec_of_pairs(tmp_path / "spec.json", SPEC, SPEC.starts(), NotesThatFail())], Existing.REPLACED
        )
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]
    assert (tmp_path / "spec.json").read_text() == "precious"


def test_of_a_file_that_cannot_be_counted_no_number_is_said(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("precious")
    with pytest.raises(UsageError, match=r"there already, with other content: --update or --overwrite replaces it"):
        write_pair_files([spec_of_pairs(tmp_path / "spec.json", SPEC, SPEC.starts(), {})], Existing.REFUSED)


@pytest.mark.parametrize(("existing", "expected"), [(Existing.REFUSED, [True]), (Existing.REPLACED, [False])])
def test_a_text_is_compared_piece_by_piece(existing: Existing, expected: list[bool], tmp_path: Path) -> None:
    def pieces() -> Iterator[str]:
        for piece in ("ü", "", "bc"):
            taken.append(piece)
            yield piece

    taken: list[str] = []
    (tmp_path / "file").write_text("übc", encoding="utf-8")
    never: Callable[[Path], int] = {}.__getitem__
    assert write_pair_files([PairFile(tmp_path / "file", pieces, 0, never)], existing) == expected
    assert taken == ["ü", "", "bc"]
    (tmp_path / "file").write_text("xbc", encoding="utf-8")
    taken.clear()
    assert write_pair_files([PairFile(tmp_path / "file", pieces, 0, never)], Existing.UPDATED) == [False]
    assert taken == ["ü", "ü", "", "bc"]  # what differs at once is not made to its end
