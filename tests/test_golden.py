"""The golden case: a small real volume, and what the original implementation made of it.

It is judged by what lies in data/golden, which that folder's README explains, and by the whole of it where that lies
beside this checkout.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import ROOT

from curation.fields import BINARY, Decimals
from curation.steps.create_spec import CreateSpecOptions as PairOptions
from curation.steps.create_spec import create_spec
from curation.steps.make_dataset import MakeDatasetOptions, make_dataset

TEMPLATES = ("a", "b")
EVERY_LINE = slice(None)


@dataclass(frozen=True)
class Golden:
    """A folder of golden inputs and outputs. is_whole: it is all there is, not what the repository holds of it."""

    folder: Path
    is_whole: bool

    def put_spec(self, name: str, out: Path) -> Path:
        """A spec with its paths, which are relative to this folder, made absolute.

        CloudFiles keeps what a path means for as long as the process lasts, whatever the working folder is by then.
        """
        text = (self.folder / name).read_text().replace("file://./", f"file://{self.folder}/")
        (out / name).write_text(text)
        return out / name

    def image(self, template: str) -> np.ndarray:
        """The expected images, (N, 2, lines of x, Y), as the contract wants them.

        Where the original wrote NaN, a target pulled by vectors that are not finite, the contract wants 0.
        """
        return np.nan_to_num(self._array("image", template), nan=0.0)

    def field(self, template: str) -> np.ndarray:
        """The expected fields, (N, 2, lines of x, Y)."""
        return self._array("field", template)

    def lines(self) -> np.ndarray | slice:
        """The x of the lines that are there."""
        return EVERY_LINE if self.is_whole else self._stored("expected.npz", "lines")

    def _array(self, kind: str, template: str) -> np.ndarray:
        if self.is_whole:
            return self._stored(f"expected_{template}.npz", kind)
        return self._stored("expected.npz", "field" if kind == "field" else f"image_{template}")

    def _stored(self, file: str, name: str) -> np.ndarray:
        with np.load(self.folder / file) as arrays:
            return arrays[name]


@pytest.fixture(params=["cut down", "whole"])
def golden(request: pytest.FixtureRequest) -> Golden:
    if request.param == "whole":
        return Golden(request.getfixturevalue("whole_golden"), is_whole=True)
    return Golden(ROOT / "tests" / "data" / "golden", is_whole=False)


@pytest.mark.parametrize("template", TEMPLATES)
def test_create_spec_gives_the_expected_spec(template: str, golden: Golden, tmp_path: Path) -> None:
    made = tmp_path / "spec.json"
    template_path, points_path = golden.folder / f"template_{template}.json", str(golden.folder / "points.csv")
    create_spec(PairOptions(template_path, made, points_path, offsets=(-1, -2), permute=True))
    spec = json.loads(made.read_text())
    notes = [pair.pop("note", {}).get("description") for pair in spec["pairs"]]
    assert spec == json.loads((golden.folder / f"expected_spec_{template}.json").read_text())
    assert "edge of a fold, left" in notes


def image_name(golden: Golden, template: str) -> str:
    """As the metroem trainer looks for it: by the first pair's source."""
    first = json.loads((golden.folder / f"expected_spec_{template}.json").read_text())["pairs"][0]["src"]
    return f"x{first['x_start']}_y{first['y_start']}_z{first['z_start']}_MIP1.h5"


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("spec", "decimals", "field_tolerance", "parallel"),
    [
        ("expected_spec", BINARY, 0.00205, 1),
        ("expected_spec", 2, 0.0051, 1),
        ("expected_spec", None, 1e-4, 1),
        ("legacy_spec", BINARY, 0.00205, 1),
        ("legacy_spec", None, 1e-4, 1),
        ("expected_spec", None, 1e-4, 2),
    ],
)
def test_make_dataset_gives_the_expected_arrays(
    template: str,
    spec: str,
    decimals: Decimals,
    field_tolerance: float,
    parallel: int,
    golden: Golden,
    tmp_path: Path,
) -> None:
    spec_path = golden.put_spec(f"{spec}_{template}.json", tmp_path)
    make_dataset(MakeDatasetOptions(str(spec_path), str(tmp_path), parallel, decimals=decimals))
    lines = golden.lines()
    name = image_name(golden, template)
    with h5py.File(tmp_path / name) as images:
        np.testing.assert_allclose(images["main"][:][:, :, lines], golden.image(template), rtol=0, atol=1e-4)
    with h5py.File(tmp_path / f"field_0_{name}") as fields:
        np.testing.assert_allclose(fields["main"][:][:, :, lines], golden.field(template), rtol=0, atol=field_tolerance)
