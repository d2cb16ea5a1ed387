"""Runs that die, or fail, around the rename of a finished file: the old file or the new one is there, never between."""

import errno
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from crashing import Call, Nursery, dying, failing
from small_jobs import differing
from steps import Inputs, Step, each_step, finishes

from curation.errors import WorkError
from curation.files import Existing
from curation.steps.create_spec import CreateSpecOptions, create_spec

SYNC, RENAME = "curation.files.sync", "curation.files.os.replace"  # a file is synced and renamed, its folder synced
OF_A_FILE = [(SYNC, 0, False), (RENAME, 0, False), (SYNC, 1, False), (SYNC, 1, True)]
OF_TWO_FILES = [*OF_A_FILE[:3], (SYNC, 2, False), (RENAME, 1, False), (SYNC, 3, False), (SYNC, 3, True)]


@pytest.mark.parametrize(
    ("step", "name", "at", "after"),
    [
        *(("make_dataset", *moment) for moment in OF_TWO_FILES),
        *(("update_dataset", *moment) for moment in OF_TWO_FILES),
        *(("download_image", *moment) for moment in OF_TWO_FILES if moment[0] == RENAME),
        *(("concat_fields", *moment) for moment in OF_A_FILE),
    ],
    indirect=["step"],
)
def test_killed_around_the_rename_the_old_file_or_the_new_is_there(
    step: Step, name: str, at: int, after: bool, nursery: Nursery, inputs: Inputs, out: Path
) -> None:
    call = replacing(step, out)
    names = [path.name for path in step.reference.glob("*.h5")]
    for file in names:
        if not (out / file).exists():
            (out / file).write_bytes((inputs.folder / "images.h5").read_bytes())
    old = {file: (out / file).read_bytes() for file in names}
    assert nursery.run(call.after(partial(dying, name, at, after))).killed
    for file in names:
        assert (out / file).read_bytes() == old[file] or differing(out / file, step.reference / file) == []
    assert finishes(nursery, step, call, out) == []


def replacing(step: Step, out: Path) -> Call:
    """The step's call that replaces what is there: make_dataset's with --overwrite, the others' with --update."""
    call = step.call(out)
    if step.name.startswith("update"):
        return call
    if step.name == "concat_fields":
        return Call(call.function, (*call.arguments[:2], Existing.UPDATED), call.prepare)
    (options,) = call.arguments
    existing = Existing.REPLACED if step.name == "make_dataset" else Existing.UPDATED
    return Call(call.function, (replace(options, existing=existing),), call.prepare)


@pytest.mark.parametrize(("name", "at", "after"), OF_A_FILE)
def test_a_spec_that_is_updated_is_the_old_one_or_the_new_one(
    name: str, at: int, after: bool, nursery: Nursery, inputs: Inputs, tmp_path: Path
) -> None:
    template = inputs.write_spec("template.json", [])
    (tmp_path / "points.csv").write_text("x,y,z\n0,0,5\n")
    spec = tmp_path / "spec.json"
    options = CreateSpecOptions(template, spec, str(tmp_path / "points.csv"), (-1,), existing=Existing.UPDATED)
    call = Call(create_spec, (options,))
    nursery.finish(call)
    old = spec.read_text()
    (tmp_path / "points.csv").write_text("x,y,z\n0,0,5\n64,0,4\n")
    nursery.finish(Call(create_spec, (replace(options, dst_spec_path=tmp_path / "new.json"),)))
    new = (tmp_path / "new.json").read_text()
    assert nursery.run(call.after(partial(dying, name, at, after))).killed
    assert spec.read_text() in (old, new)
    nursery.finish(call)
    assert spec.read_text() == new != old


def is_folder(path: Any, *_: Any) -> bool:
    return Path(path).is_dir()


@each_step
@pytest.mark.parametrize(
    ("name", "at", "when"),
    [
        ("curation.files.os.fsync", 0, None),
        ("curation.files.os.fsync", 1, None),
        ("curation.files.os.replace", 0, None),
        ("curation.files.os.open", 0, is_folder),
    ],
)
def test_an_input_output_error_is_never_a_success(
    name: str, at: int, when: Callable[..., bool] | None, step: Step, nursery: Nursery, out: Path
) -> None:
    call = step.call(out)
    error = nursery.run(call.after(partial(failing, name, at, errno.EIO, when))).error
    assert isinstance(error, WorkError)
    assert re.search(r"\.h5: Input/output error", str(error))
    there = [path.name for path in out.glob("*.h5") if not path.name.startswith(".")]
    if step.name != "generate_fields":  # whose shards are checked when they are joined
        assert [fault for file in there for fault in differing(out / file, step.reference / file)] == []
    assert finishes(nursery, step, call, out) == []


@pytest.mark.parametrize("step", ["make_dataset", "download_image", "concat_fields"], indirect=True)
def test_an_error_of_the_disk_in_the_background_is_never_a_success(step: Step, nursery: Nursery, out: Path) -> None:
    """The system tells of it once: the fsync before the rename would not fail any more."""
    call = step.call(out)
    error = nursery.run(call.after(partial(failing, "curation.files.os.fdatasync", 0, errno.EIO))).error
    assert isinstance(error, WorkError)
    assert re.search(r"\.partial\.h5: Input/output error", str(error))
    assert [path.name for path in out.glob("*.h5") if not path.name.startswith(".")] == []
    assert finishes(nursery, step, call, out) == []
