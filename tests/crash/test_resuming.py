"""What a run finds of another one: at work, begun with something else, or damaged."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from crashing import Nursery, limiting_files, stopping
from small_jobs import contents
from steps import PAIRS, Inputs, Step, begun, each_step, finishes, new_folder, stat, waited

from curation.errors import UsageError, WorkError


@each_step
def test_the_second_run_at_a_destination_is_told_who_is_there(step: Step, nursery: Nursery, out: Path) -> None:
    name = (
        "curation.steps.field_work.write_whole"
        if step.name == "generate_fields"
        else "curation.datasets.writer.Writer.put"
    )
    call = step.call(out)
    first = nursery.start(call.after(partial(stopping, name, 2)))
    assert waited(lambda: stat(first)[0] == "T")
    with pytest.raises(UsageError, match=rf": process {first} on \S+ is at work on it; wait for it, or end it"):
        call.function(*call.arguments)
    os.kill(first, signal.SIGCONT)
    assert nursery.end().is_finished
    assert step.faults(out) == []


@pytest.mark.parametrize(
    ("step", "change", "message"),
    [
        ("make_dataset", {"decimals": None}, "begun with another field_decimals"),
        ("make_dataset", {"min_valid": 0.5}, "begun with another min_valid"),
        ("make_dataset", {"spec": "other.json"}, "begun with another spec;"),
        ("download_image", {"sections": 4}, "begun with another sections"),
        ("download_image", {"cv_path_defects": "IMAGE", "mask_val": 9.0}, "begun with another cv_path_defects, mask_v"),
        ("generate_fields", {"model_params": {"step": 2}}, "made with another model_params"),
        ("generate_fields", {"decimals": None}, "made with another field_decimals"),
        ("generate_fields", {"prev_field_path": "IMAGES"}, "made with another previous_fields"),
        ("concat_fields", {"shards": "other_shards"}, "begun with another origin, shards"),
    ],
    indirect=["step"],
)
def test_resuming_with_something_else_says_what_and_keeps_what_is_done(
    step: Step, change: dict[str, Any], message: str, nursery: Nursery, inputs: Inputs, out: Path
) -> None:
    call = begun(nursery, step, out)
    before = {path.name: contents(path) for path in out.glob("[.0-9]*.h5")}
    names = {"IMAGE": inputs.image, "IMAGES": str(inputs.folder / "images.h5")}
    change = {key: names.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    if change.get("spec"):
        inputs.write_spec("other.json", inputs.pairs(PAIRS), max_mip=2)
    if change.get("shards"):
        folder = new_folder(inputs.folder / "other_shards")
        nursery.finish(inputs.generate_fields(folder, decimals=None))
    other = getattr(inputs, step.name)(out, **change)
    with pytest.raises(UsageError, match=message):
        nursery.finish(other)
    assert {path.name: contents(path) for path in out.glob("[.0-9]*.h5")} == before
    assert step.resumed(nursery.finish(call)) > 0
    assert step.faults(out) == []


def test_a_partial_that_somebody_reads_is_not_emptied(steps: dict[str, Step], nursery: Nursery, out: Path) -> None:
    step = steps["concat_fields"]
    call = begun(nursery, step, out)
    partial_file = out / ".joined.partial.h5"
    before = partial_file.read_bytes()
    with h5py.File(partial_file, "r"):
        error = nursery.run(call).error
    assert isinstance(error, WorkError)
    assert re.search(r"partial.h5: Resource temporarily unavailable", str(error))
    assert partial_file.read_bytes() == before
    assert finishes(nursery, step, call, out) == []


# Damaged partial files


def places(path: Path) -> dict[str, int]:
    """Where things stand in a file: its superblock, its books, a chunk, facts and checksums."""
    content = path.read_bytes()
    with h5py.File(path, "r") as file:
        chunk = file["main"].id.get_chunk_info(0)
        datasets = {name: data.id.get_offset() for name, data in file.items() if data.id.get_offset()}
        header = h5py.h5o.get_info(file["main"].id).addr
        promised = str(file.attrs.get("spec_sha256", "")).encode()
    # The same hash stands in the provenance too, there after a quotation mark.
    of_the_spec = re.search(rb'(?<!")' + promised, content) if promised else None
    found = {
        "signature": 1,
        "version of the superblock": 8,
        "size of offsets": 13,
        "end of the file": 41,
        "root group": 66,
        "names": content.index(b"HEAP") + 9,
        "symbols": content.index(b"SNOD") + 8,
        "index of groups": content.index(b"TREE") + 6,
        "index of chunks": content.rindex(b"TREE") + 6,
        "first chunk's size": content.rindex(b"TREE") + 24,
        "first chunk's filters": content.rindex(b"TREE") + 28,
        "first chunk's place": content.rindex(b"TREE") + 73,
        "header of main": header,
        "chunk's first byte": chunk.byte_offset,
        "chunk's middle": chunk.byte_offset + chunk.size // 2,
        "chunk's last byte": chunk.byte_offset + chunk.size - 1,
        "hash of the spec": of_the_spec.start() if of_the_spec else 0,
    }
    return {**found, **{f"{name}, first value": offset for name, offset in datasets.items()}}


@pytest.mark.parametrize("step", ["make_dataset", "concat_fields"], indirect=True)
def test_a_flipped_bit_in_a_partial_is_made_good(step: Step, nursery: Nursery, tmp_path: Path) -> None:
    start = new_folder(tmp_path / "start")
    begun(nursery, step, start)
    path = next(start.glob(".[xj]*.partial.h5"))
    resumed = {}
    for place, offset in places(path).items():
        out = tmp_path / place
        shutil.copytree(start, out)
        content = bytearray(path.read_bytes())
        content[offset] ^= 4
        (out / path.name).write_bytes(content)
        outcome = nursery.run(step.call(out))
        assert outcome.error is None, (place, outcome)
        assert step.faults(out) == [], place
        resumed[place] = step.resumed(outcome.value)
    assert resumed["chunk's middle"] > 0  # the other chunks are kept
    assert resumed["crc32, first value"] > 0


@pytest.mark.parametrize("step", ["make_dataset", "concat_fields"], indirect=True)
def test_a_truncated_partial_is_made_good(step: Step, nursery: Nursery, tmp_path: Path) -> None:
    start = new_folder(tmp_path / "start")
    begun(nursery, step, start)
    (path,) = list(start.glob(".[xj]*.partial.h5"))[:1]
    resumed = []
    for share in (0, 0.01, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999):
        out = tmp_path / f"share_{share}"
        shutil.copytree(start, out)
        os.truncate(out / path.name, int(path.stat().st_size * share))
        outcome = nursery.run(step.call(out))
        assert outcome.error is None, (share, outcome)
        assert step.faults(out) == [], share
        resumed.append(step.resumed(outcome.value))
    assert resumed[0] == 0
    assert resumed[-1] > resumed[2]


def with_another_fill_value(file: h5py.File) -> None:
    values = file["crc32"][:]
    del file["crc32"]
    file.create_dataset("crc32", data=values, fillvalue=1)


# Damage to the structure of a partial file, and to what is known from the beginning: no box is.
CHANGES: dict[str, Callable[[h5py.File], Any]] = {
    "a fill value": with_another_fill_value,
    "an attribute's type": lambda file: file.attrs.create("mip", file.attrs["mip"], dtype="<i4"),
    "an attribute more": lambda file: file["main"].attrs.create("scale", 2),
    "a dataset more": lambda file: file.create_dataset("more", data=[1]),
    "the seal": lambda file: file.attrs.modify("seal", np.bytes_(b"0" * 64)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("step", ["make_dataset", "concat_fields"], indirect=True)
def test_the_finished_file_is_built_as_a_new_one(change: str, step: Step, nursery: Nursery, out: Path) -> None:
    """Whatever damage has made of a partial file's own structure, that of the finished file is another."""
    call = begun(nursery, step, out)
    with h5py.File(next(out.glob(".[xj]*.partial.h5")), "r+") as file:
        CHANGES[change](file)
    outcome = nursery.run(call)
    assert outcome.error is None, outcome
    assert step.resumed(outcome.value) > 0
    assert step.faults(out) == []
    assert (": damaged, or " in outcome.text) == (change != "the seal")


@pytest.mark.parametrize("step", ["make_dataset", "concat_fields"], indirect=True)
def test_a_full_disk_does_not_cost_what_was_intact(step: Step, nursery: Nursery, out: Path) -> None:
    call = begun(nursery, step, out)
    path = next(out.glob(".[xj]*.partial.h5"))
    with h5py.File(path, "r+") as file:
        CHANGES["a dataset more"](file)
    error = nursery.run(call.after(partial(limiting_files, path.stat().st_size // 2))).error
    assert isinstance(error, WorkError)
    assert str(error).lower().endswith("partial.h5: file too large")
    assert step.resumed(nursery.finish(call)) > 0
    assert step.faults(out) == []


@pytest.mark.parametrize("what", [b'"toolkit_format": ', b'"toolkit_', b""])
@pytest.mark.parametrize("step", ["make_dataset", "concat_fields"], indirect=True)
def test_damage_is_not_taken_for_another_run(what: bytes, step: Step, nursery: Nursery, out: Path) -> None:
    """A bit of the provenance has flipped: in a number, in a name, and in the name of the attribute."""
    call = begun(nursery, step, out)
    path = next(out.glob(".[xj]*.partial.h5"))
    content = bytearray(path.read_bytes())
    content[content.index(what or b"provenance") + len(what)] ^= 2
    path.write_bytes(content)
    outcome = nursery.run(call)
    assert outcome.error is None, outcome
    assert "partial.h5: damaged (" in outcome.text
    assert "so the work begins anew" in outcome.text
    assert step.faults(out) == []
