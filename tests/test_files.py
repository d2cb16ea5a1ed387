"""Writing files on systems that lack some calls."""

import os
from pathlib import Path

import pytest
from commands import Command
from small_jobs import NAME, contents, dataset_arguments, field_layer, image_layer, made_folder, put_json, spec_of


def test_without_the_calls_that_macos_lacks_a_dataset_is_the_same(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), field_layer(tmp_path)))
    made = []
    for out in (made_folder(tmp_path / "with"), made_folder(tmp_path / "without")):
        done = command("make_dataset.py", *dataset_arguments(spec, out))
        assert done.code == 0, done.stderr
        made.append({name: contents(out / name) for name in (NAME, f"field_0_{NAME}")})
        for name in ("fdatasync", "posix_fadvise", "POSIX_FADV_DONTNEED"):
            monkeypatch.delattr(os, name, raising=False)  # on macOS itself they are not there to be deleted
    assert made[0] == made[1]
