"""Folders that cannot be written to are refused before anything is read."""

import os
from pathlib import Path

from crashing import Call, Nursery
from steps import Inputs, Step, as_script, each_step, mounted, new_folder


def reading_nothing(step: Step, out: Path, inputs: Inputs) -> Call:
    """The step's call with inputs that would be found missing as soon as they were looked for."""
    if step.name == "make_dataset":
        inputs.write_spec("nowhere.json", inputs.pairs(2), "file:///nowhere/at/all")
        return inputs.make_dataset(out, spec="nowhere.json")
    if step.name == "download_image":
        return Inputs(Path("/nowhere")).download_image(out)
    if step.name == "generate_fields":
        return inputs.generate_fields(out, image_path="/nowhere.h5", pyramid_path="/nowhere")
    return Call(step.call(out).function, ("/nowhere", str(out / "joined.h5")))


@each_step
def test_a_folder_without_a_parent_is_refused_before_anything_is_read(
    step: Step, nursery: Nursery, inputs: Inputs, tmp_path: Path
) -> None:
    outcome = nursery.run(as_script(reading_nothing(step, tmp_path / "far" / "away", inputs)))
    assert outcome.value == 2
    assert outcome.text == (
        f"{step.name}: error: {tmp_path / 'far' / 'away'}: no such folder, nor is there {tmp_path / 'far'} to make it "
        "in; make that first\n"
    )


@each_step
def test_a_read_only_folder_is_refused_before_anything_is_read(
    step: Step, nursery: Nursery, inputs: Inputs, tmp_path: Path
) -> None:
    if os.geteuid():
        folder = new_folder(tmp_path / "fixed")
        folder.chmod(0o555)
        check_refused(step, folder, nursery, inputs)
    else:  # permission bits do not stop the superuser; a file system mounted read-only does
        with mounted(tmp_path / "fixed", "ro") as folder:
            check_refused(step, folder, nursery, inputs)


def check_refused(step: Step, folder: Path, nursery: Nursery, inputs: Inputs) -> None:
    outcome = nursery.run(as_script(reading_nothing(step, folder, inputs)))
    assert outcome.value == 2
    assert outcome.text == f"{step.name}: error: {folder}: cannot be written to\n"
