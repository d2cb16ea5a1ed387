"""Single bits that flip: a thin sweep of what `make torture` sweeps at length."""

from pathlib import Path

import flips
import pytest
from crashing import Nursery
from steps import Step
from whole_files import SEALED, whole_files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return whole_files(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("kind", [*SEALED, "toolkit 0.1"])
def test_no_change_of_a_finished_file_is_read_unsaid(
    kind: str, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flips.PROBE, 2)
    met = list(flips.of_finished(whole[kind], tmp_path, every=499, seed=5, sealed=kind in SEALED))
    assert len(met) > 20
    assert [flip for flip in met if flip.bad] == []


@pytest.mark.parametrize("step", flips.PARTIAL, indirect=True)
def test_no_flip_in_a_partial_file_changes_what_is_finished(step: Step, nursery: Nursery, tmp_path: Path) -> None:
    met = list(flips.of_partial(nursery, step, tmp_path, every=701, seed=7))
    assert len(met) > 3
    assert [flip for flip in met if flip.bad] == []
