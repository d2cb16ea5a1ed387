"""The golden case: a small real volume, and what the original implementation made of it."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from curation.making import Options, make_dataset
from curation.pairs import Options as PairOptions
from curation.pairs import append_pairs

TEMPLATES = ("a", "b")


@pytest.mark.parametrize("template", TEMPLATES)
def test_create_spec_gives_the_expected_spec(template: str, golden: Path, tmp_path: Path) -> None:
    made = tmp_path / "spec.json"
    template_path, points_path = golden / f"template_{template}.json", str(golden / "points.csv")
    append_pairs(PairOptions(template_path, made, points_path, offsets=(-1, -2), permute=True))
    spec = json.loads(made.read_text())
    notes = [pair.pop("note", {}).get("description") for pair in spec["pairs"]]
    assert spec == json.loads((golden / f"expected_spec_{template}.json").read_text())
    assert "edge of a fold, left" in notes


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("spec", ["expected_spec", "legacy_spec"])
@pytest.mark.parametrize(("decimals", "field_tolerance"), [(2, 0.0051), (None, 1e-4)])
@pytest.mark.parametrize("parallel", [1, 2])
def test_make_dataset_gives_the_expected_arrays(
    template: str,
    spec: str,
    decimals: int | None,
    field_tolerance: float,
    parallel: int,
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(golden)  # the specs' paths are relative to it
    make_dataset(Options(f"{spec}_{template}.json", str(tmp_path), parallel, decimals=decimals))
    expected = np.load(golden / f"expected_{template}.npz")
    with h5py.File(tmp_path / "x128_y64_z2_MIP1.h5") as images:
        # Where the original wrote NaN, a target pulled by vectors that are not finite, the contract wants 0.
        np.testing.assert_allclose(images["main"][:], np.nan_to_num(expected["image"], nan=0.0), rtol=0, atol=1e-4)
    with h5py.File(tmp_path / "field_0_x128_y64_z2_MIP1.h5") as fields:
        np.testing.assert_allclose(fields["main"][:], expected["field"], rtol=0, atol=field_tolerance)
