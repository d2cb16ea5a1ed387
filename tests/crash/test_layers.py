"""make_dataset into a layer, killed and torn."""

import gzip
import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashing import Call, Nursery, dying
from steps import SIZE, Inputs, new_folder

from curation.errors import UsageError
from curation.files import Existing


@pytest.fixture(scope="module")
def layer_reference(nursery: Nursery, inputs: Inputs) -> Path:
    inputs.write_spec("layer.json", inputs.pairs(8))
    folder = inputs.folder / "reference" / "layer"
    nursery.finish(to_layer(inputs, folder))
    return folder


def to_layer(inputs: Inputs, folder: Path, **changes: Any) -> Call:
    return inputs.make_dataset(f"file://{folder}", spec="layer.json", **changes)


def objects(folder: Path) -> dict[str, bytes]:
    """Every file of a layer, uncompressed."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            name = str(path.relative_to(folder))
            found[name] = gzip.decompress(content) if name.endswith(".gz") else content
    return found


def test_a_layer_killed_at_any_moment_ends_as_if_undisturbed(
    nursery: Nursery, inputs: Inputs, layer_reference: Path, tmp_path: Path
) -> None:
    begin = time.monotonic()
    nursery.finish(to_layer(inputs, tmp_path / "timed"))
    longest = time.monotonic() - begin
    hits = []
    for number, delay in enumerate(np.linspace(0, longest, 10).tolist()):
        call = to_layer(inputs, tmp_path / f"layer_{number}")
        hits.append(nursery.kill(call, delay).killed)
        assert nursery.run(call).is_finished
        assert objects(tmp_path / f"layer_{number}") == objects(layer_reference), delay
    assert sum(hits) >= 3


def sections(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/0-*"))


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_a_torn_section_is_uploaded_again(
    size: int, nursery: Nursery, inputs: Inputs, layer_reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "layer"
    call = to_layer(inputs, folder)
    assert nursery.run(call.after(partial(dying, "curation.volumes.layer_writer.upload_section", 9))).killed
    done = sections(folder)
    os.truncate(done[2], size)
    report = nursery.finish(call)
    assert report.resumed == len(done) - 1
    assert objects(folder) == objects(layer_reference)


def test_a_finished_layer_is_done_already(nursery: Nursery, inputs: Inputs, layer_reference: Path) -> None:
    before = objects(layer_reference)
    assert "8, done already" in str(nursery.finish(to_layer(inputs, layer_reference)))
    assert objects(layer_reference) == before


def test_a_finished_layer_of_another_spec_is_refused_and_kept(
    nursery: Nursery, inputs: Inputs, layer_reference: Path
) -> None:
    before = objects(layer_reference)
    message = "is there already, made with another list of pairs: --update makes it anew, or take another path"
    with pytest.raises(UsageError, match=message):
        nursery.finish(inputs.make_dataset(f"file://{layer_reference}", spec="small.json"))
    assert objects(layer_reference) == before


@pytest.mark.parametrize("existing", list(Existing))
def test_a_folder_of_somebody_elses_is_refused_and_kept(
    existing: Existing, nursery: Nursery, inputs: Inputs, tmp_path: Path
) -> None:
    folder = new_folder(tmp_path / "theirs")
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match=r"something is there that make_dataset did not write; take another path"):
        nursery.finish(to_layer(inputs, folder, existing=existing))
    assert objects(folder) == {"thesis.txt": b"years"}


def test_replacing_a_layer_keeps_what_is_not_of_it(
    nursery: Nursery, inputs: Inputs, layer_reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "layer"
    shutil.copytree(layer_reference, folder)
    (folder / "thesis.txt").write_text("years")
    nursery.finish(to_layer(inputs, folder, existing=Existing.REPLACED))
    assert objects(folder) == {**objects(layer_reference), "thesis.txt": b"years"}


@pytest.mark.parametrize(
    ("name", "at"),
    [("cloudfiles.CloudFiles.put_json", 0), ("cloudfiles.CloudFiles.delete", 0), ("cloudfiles.CloudFiles.put_json", 1)],
)
@pytest.mark.parametrize("after", [False, True])
def test_killed_while_it_replaces_a_layer_it_goes_on(
    name: str, at: int, after: bool, nursery: Nursery, inputs: Inputs, layer_reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "layer"
    shutil.copytree(layer_reference, folder)
    (folder / "curation.json").write_text(json.dumps({"provenance": {"spec_sha256": "another"}, "finished": True}))
    section = sections(folder)[0]
    section.write_bytes(gzip.compress(bytes(4 * SIZE**2)))  # as another spec may have had it
    call = to_layer(inputs, folder, existing=Existing.REPLACED)
    assert nursery.run(call.after(partial(dying, name, at, after))).killed
    nursery.finish(call)
    assert objects(folder) == objects(layer_reference)


def test_a_torn_state_of_a_layer_is_not_taken_for_another_thing(
    nursery: Nursery, inputs: Inputs, layer_reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "layer"
    shutil.copytree(layer_reference, folder)
    os.truncate(folder / "curation.json", 10)
    with pytest.raises(
        UsageError, match=r"begun with another origin, of which nothing is recorded; give the same, or --update"
    ):
        nursery.finish(to_layer(inputs, folder))
    nursery.finish(to_layer(inputs, folder, existing=Existing.REPLACED))
    assert objects(folder) == objects(layer_reference)
