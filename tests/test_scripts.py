"""The scripts as commands: help, summaries, exit codes and messages."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import ROOT, Command, Script
from small_jobs import stretch_arguments
from volumes_made import make_layer

from curation import cli
from curation.steps.verify_dataset import faults

SCRIPTS = (
    "create_spec.py",
    "make_dataset.py",
    "download_image.py",
    "generate_fields.py",
    "concat_fields.py",
    "split_pairs.py",
)

Fails = Callable[..., str]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_answers_without_heavy_imports(name: str, script: Script) -> None:
    done = script(name, "--help")
    assert done.returncode == 0
    assert "python " + name in done.stdout  # the docstring's command to paste
    probe = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'cloudvolume', 'h5py', 'numpy'} & set(sys.modules)))"
    )
    probed = subprocess.run([sys.executable, "-c", probe, ROOT / name], capture_output=True, text=True, check=True)
    assert probed.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_arguments_is_a_usage_error(name: str, script: Script) -> None:
    done = script(name)
    assert done.returncode == 2
    assert "required" in done.stderr


@pytest.fixture
def volume(tmp_path: Path) -> str:
    """A layer of 128 x 128 x 4 voxels."""
    voxels = np.random.default_rng(0).integers(1, 255, (128, 128, 4), dtype=np.uint8)
    return make_layer(tmp_path / "volume", {0: voxels, 1: voxels[::2, ::2]})


@pytest.fixture
def template(tmp_path: Path, volume: str) -> Path:
    spec = {
        "image": {"path": volume, "src_mip": 0},
        "max_mip": 4,
        "dst_mip": 0,
        "x_size": 32,
        "y_size": 16,
        "pairs": [],
    }
    path = tmp_path / "template.json"
    path.write_text(json.dumps(spec))
    return path


@pytest.fixture
def points(tmp_path: Path) -> Path:
    path = tmp_path / "points.csv"
    path.write_text('Coordinate 1,Type\r\n"(17, 33, 2)",Point\r\n"(64, 64, 3)",Point\r\n', newline="")
    return path


def spec_arguments(template: Path, points: Path, dst: Path) -> list[object]:
    return ["--src_spec_path", template, "--dst_spec_path", dst, "--points_path", points, "--offsets", "-1", "-2"]


def test_create_spec_says_what_it_made(script: Script, template: Path, points: Path, tmp_path: Path) -> None:
    done = script("create_spec.py", *spec_arguments(template, points, tmp_path / "spec.json"), "--permute_pairs")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'spec.json'}: 8 pairs, 8 of them new from 2 points\n"


@pytest.mark.parametrize("optimised", ["", "1"])
def test_python_without_asserts_gives_the_same(
    optimised: str, script: Script, template: Path, points: Path, tmp_path: Path
) -> None:
    arguments = spec_arguments(template, tmp_path / "missing.csv", tmp_path / "spec.json")
    done = script("create_spec.py", *arguments, PYTHONOPTIMIZE=optimised)
    assert done.returncode == 2
    assert done.stderr == f"create_spec: error: {tmp_path / 'missing.csv'}: No such file or directory\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("workers", [1, 2])
def test_streams_that_are_closed_are_done_without(closed: str, workers: int, volume: str, tmp_path: Path) -> None:
    stretch = stretch_arguments(volume, tmp_path, mips="0", patch_sizes="32")
    command = [sys.executable, ROOT / "download_image.py", *stretch, "--parallel", workers]
    done = subprocess.run(["bash", "-c", f"{shlex.join(map(str, command))} {closed}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("*.h5")
    assert list(faults(made)) == []


def test_a_temporary_folder_may_have_a_path_too_long_for_a_socket(script: Script, volume: str, tmp_path: Path) -> None:
    folder = tmp_path / ("job" * 40)
    folder.mkdir()
    stretch = stretch_arguments(volume, tmp_path, mips="0", patch_sizes="32")
    done = script("download_image.py", *stretch, "--parallel", 2, TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []


def test_a_name_that_the_output_cannot_show_is_shown_all_the_same(script: Script, volume: str, tmp_path: Path) -> None:
    folder = tmp_path / "\u65e5"
    folder.mkdir()
    stretch = stretch_arguments(volume, folder, mips="0", patch_sizes="32")
    done = script("download_image.py", *stretch, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"\u65e5" in done.stdout


@pytest.mark.parametrize("option", ["--update", "--overwrite"])
def test_other_output_is_not_replaced_unless_told(
    option: str, script: Script, fails: Fails, template: Path, points: Path, tmp_path: Path
) -> None:
    arguments = spec_arguments(template, points, tmp_path / "spec.json")
    assert script("create_spec.py", *arguments).returncode == 0
    again = script("create_spec.py", *arguments)
    assert again.returncode == 0
    assert again.stdout.startswith(f"{tmp_path / 'spec.json'}: done already: ")
    assert "--update or --overwrite" in fails(2, "create_spec.py", *arguments, "--permute_pairs")
    assert script("create_spec.py", *arguments, "--permute_pairs", option).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dst_mip": 5}, "dst_mip 5 is above max_mip 4"),  # by the spec alone; the other when volumes are open
        (
            {"pairs": [[{"x_start": 0, "y_start": 0, "z_start": 9}, {"x_start": 0, "y_start": 0, "z_start": 1}]]},
            "z 0..4",
        ),
    ],
)
def test_make_dataset_refuses_a_spec_before_it_writes(
    change: dict[str, object], message: str, fails: Fails, template: Path, tmp_path: Path
) -> None:
    spec = json.loads(template.read_text())
    spec["pairs"] = [[{"x_start": 0, "y_start": 0, "z_start": 2}, {"x_start": 0, "y_start": 0, "z_start": 1}]]
    path = tmp_path / "changed.json"
    path.write_text(json.dumps({**spec, **change}))
    out = tmp_path / "out"
    out.mkdir()
    assert message in fails(2, "make_dataset.py", "--spec_path", path, "--dst_path", out)
    assert list(out.iterdir()) == []


def test_download_image_pairs_each_section_with_the_one_before(script: Script, volume: str, tmp_path: Path) -> None:
    done = script("download_image.py", *stretch_arguments(volume, tmp_path, mips="0 1", patch_sizes="32 16"))
    assert done.returncode == 0, done.stderr
    voxels = np.random.default_rng(0).integers(1, 255, (128, 128, 4), dtype=np.uint8)
    with h5py.File(tmp_path / "x16_y32_z1_MIP0.h5") as file:
        for index, z in enumerate((1, 2, 3)):
            np.testing.assert_array_equal(file["main"][index, 0], voxels[16:48, 32:64, z])
            np.testing.assert_array_equal(file["main"][index, 1], voxels[16:48, 32:64, z - 1])
    with h5py.File(tmp_path / "x16_y32_z1_MIP1.h5") as file:
        np.testing.assert_array_equal(file["main"][0, 0], voxels[16:48:2, 32:64:2, 1])
        assert file["start"][0].tolist() == [[16, 32, 1], [16, 32, 0]]


def test_download_image_zeroes_defects(script: Script, volume: str, tmp_path: Path) -> None:
    defects = np.zeros((128, 128, 4), np.uint8)
    defects[20:25, 40:60] = 3
    path = make_layer(tmp_path / "defects", {0: defects})
    change = {"cv_path_defects": path, "mask_val": 3}
    done = script("download_image.py", *stretch_arguments(volume, tmp_path, **change))
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "x16_y32_z1_MIP0.h5") as file:
        np.testing.assert_array_equal(file["main"][0, 0] == 0, defects[16:48, 32:64, 1] >= 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_end": 6}, "pairs[3].src, section 4: box wholly outside the volume of image"),
        ({"mips": "0 3"}, "has no MIP 3: it has 0, 1"),
        ({"mips": "0 0"}, "a MIP is there twice"),
        ({"mask_val": 3}, "--cv_path_defects and --mask_val go together"),
        ({"x_offset": 2**70}, "--x_offset 1180591620717411303424 lies beyond any volume"),
        ({"z_end": 10**12}, "more than 20,000,000 sections"),
    ],
)
def test_download_image_refuses(
    change: dict[str, object], message: str, fails: Fails, volume: str, tmp_path: Path
) -> None:
    change = {"mips": "0 1", "patch_sizes": "32 16", **change}
    assert message in fails(2, "download_image.py", *stretch_arguments(volume, tmp_path, **change))
    assert not list(tmp_path.glob("*.h5"))


def test_values_are_parsed_at_the_boundary() -> None:
    assert cli.numbers("0,1,3") == (0, 1, 3)
    assert [cli.decimals(text) for text in ("none", "binary", "6")] == [None, "binary", 6]
    assert [cli.step(text) for text in ("1/2048", "0.00048828125", "1", "2/8")] == [2**-11, 2**-11, 1, 0.25]
    assert cli.json_object('{"finetune_iter": 50}') == {"finetune_iter": 50}
    for parse, text in [
        (cli.numbers, "0,0"),
        (cli.numbers, "-1"),
        (cli.positive, "0"),
        (cli.level, "one"),
        (cli.decimals, "7"),
        (cli.decimals, "-1"),
        (cli.decimals, "octal"),
        *[
            (cli.step, text)
            for text in ("0", "-1/2", "2", "1/3", "1/0", "0.0005", "nan", "half", "1/2048/2", "1/33554432")
        ],
        (cli.threshold, "nan"),
        (cli.threshold, "high"),
        (cli.json_object, "[1]"),
        (cli.json_object, "{"),
    ]:
        with pytest.raises(cli.argparse.ArgumentTypeError):
            parse(text)


def test_a_volume_without_credentials_is_told_of(fails: Fails, template: Path, points: Path, tmp_path: Path) -> None:
    spec = json.loads(template.read_text())
    spec["image"]["path"] = "gs://a-bucket-of-nobody/image"
    spec["pairs"] = [[{"x_start": 0, "y_start": 0, "z_start": z} for z in (1, 0)]]
    template.write_text(json.dumps(spec))
    environment = {"HOME": str(tmp_path), "NO_GCE_CHECK": "true", "GOOGLE_APPLICATION_CREDENTIALS": ""}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        line = fails(1, "make_dataset.py", "--spec_path", template, "--dst_path", tmp_path)
    assert line.startswith("make_dataset: failed: gs://a-bucket-of-nobody/image: no credentials were found: want ")


def test_without_the_environment_the_way_to_it_is_told(tmp_path: Path, template: Path) -> None:
    """A Python that has only its own library."""
    command = [sys.executable, "-S", ROOT / "create_spec.py", "--src_spec_path", template, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f" is not installed for {sys.executable}: activate the environment (. .venv/bin/activate), or " in line
    assert "pip install -r requirements.txt" in line


def test_verify_dataset_does_not_promise_to_go_on(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("curation.steps.verify_dataset.faults", interrupted)
    done = command("verify_dataset.py", "images.h5")
    assert (done.code, done.stderr) == (130, "verify_dataset: interrupted\n")
