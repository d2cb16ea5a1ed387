"""Where generate_fields runs its module: devices, the cores of each worker, and number types."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from commands import Command, Script
from small_jobs import ONES, Refused, contents, fields_arguments, made_folder, put_main, pyramid_of

from curation.errors import UsageError
from curation.steps.devices import Threads, Workers, find_workers

X, Y = 12, 8


def images(pairs: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(pairs, 2, X, Y)).astype(np.float32)


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., list[object]]:
    """generate_fields.py's arguments over some pairs, with the module given and no rounding."""
    made_folder(tmp_path / "shards")

    def arguments(*more: object, create: str = ONES, pairs: int = 3, **changes: object) -> list[object]:
        pyramid_of(tmp_path, create)
        path = put_main(tmp_path / "images.h5", images(pairs))
        return fields_arguments(tmp_path, path, None, *more, **{"field_decimals": "none", **changes})

    return arguments


def field_of(folder: Path) -> np.ndarray:
    with h5py.File(folder / "shards" / "0_1.h5") as file:
        return file["main"][0]


# Workers and cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a machine of so many cores and GPUs, of some compute capability."""

    def make(cores: int, gpus: int = 0, capability: tuple[int, int] = (8, 0)) -> None:
        monkeypatch.setattr("curation.steps.devices.usable_cores", lambda: cores)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Old GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)

    return make


def test_gpus_have_a_worker_each_and_share_the_cores(machine: Callable[..., None]) -> None:
    machine(cores=16, gpus=4)
    assert find_workers((0, 2), None, "float32", 100) == Workers(("cuda:0", "cuda:2"), 8, 100)
    assert find_workers(None, None, "float32", 100) == Workers(("cuda:0", "cuda:1", "cuda:2", "cuda:3"), 4, 100)
    assert str(find_workers((0, 2), None, "float32", 100)) == "cuda:0, cuda:2; 8 cores each"
    with pytest.raises(UsageError, match="--gpu 0,4: CUDA sees 4 GPUs here"):
        find_workers((0, 4), None, "float32", 100)


def test_workers_on_the_cpu_divide_the_cores_that_may_be_used(machine: Callable[..., None]) -> None:
    machine(cores=2, gpus=0)
    assert find_workers(None, None, "float32", 100) == Workers(("cpu", "cpu"), 1, 100)
    assert find_workers(None, 3, "float32", 100).cores == 1
    machine(cores=16)
    assert find_workers(None, 3, "float32", 100).cores == 5
    assert find_workers(None, 8, "float32", 2).cores == 8  # two are enough for two shards
    assert str(find_workers(None, 8, "float32", 2)) == "8 on cpu; 8 cores each"


def test_a_worker_reads_and_encodes_in_as_many_threads_as_it_has_cores_within_limits() -> None:
    assert Workers(("cpu",) * 2, 1, 1000).threads == Threads(reading=1, encoding=1)
    assert Workers(("cuda:0",), 3, 1000).threads == Threads(reading=3, encoding=3)
    assert Workers(("cuda:0",), 64, 1000).threads == Threads(reading=4, encoding=8)
    assert Workers(("cuda:0", "cuda:1"), 16, 32).threads.reading == 2  # so that nobody takes what others wait for
    assert Workers(("cuda:0", "cuda:1"), 16, 3).threads.reading == 1


TELLING = """
import json, os, torch
def create():
    def forward(s, t):
        libraries = [os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")]
        told = [torch.get_num_threads(), torch.get_num_interop_threads(), libraries]
        with open("TOLD", "w") as file:
            json.dump(told, file)
        return torch.ones(1, 2, *s.shape[2:])
    return forward
"""


@pytest.mark.parametrize(("mine", "expected"), [({}, "2"), ({"OMP_NUM_THREADS": "1"}, "1")])
def test_the_threads_of_a_worker_are_its_share_of_the_cores(
    mine: dict[str, str], expected: str, run_of: Callable[..., list[object]], script: Script, tmp_path: Path
) -> None:
    told = tmp_path / "told.json"
    create = TELLING.replace("TOLD", str(told))
    # A machine of 4 cores, for a script in a process of its own.
    (tmp_path / "sitecustomize.py").write_text("import os\nos.sched_getaffinity = lambda pid: set(range(4))\n")
    path = ":".join([str(tmp_path), *filter(None, sys.path[1:])])
    done = script("generate_fields.py", *run_of(create=create, cpu_workers=2), PYTHONPATH=path, **mine)
    assert done.returncode == 0, done.stderr
    assert json.loads(told.read_text()) == [2, 2, [expected, "2", "2"]]


# Precision

# A network of one layer, whose field says which number type it computed in.
NETWORK = """
import torch
class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(2, 2, 3, padding=1)
    def forward(self, s, t):
        return self.layer(torch.cat([s, t], 1))
def create(): return Network()
"""


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["package", "TorchScript"])
def test_the_module_computes_in_the_type_that_was_asked_for_and_fields_are_float32(
    precision: str, kind: str, run_of: Callable[..., list[object]], command: Command, tmp_path: Path
) -> None:
    if precision not in supported():
        pytest.skip("this build of torch does not compute in it")
    arguments = run_of("--precision", precision, create=NETWORK)
    names: dict[str, Any] = {}
    exec(NETWORK, names)
    torch.manual_seed(0)
    network = names["create"]()
    if kind == "TorchScript":
        folder = tmp_path / "pyramid" / "0_mip3in_small"
        (folder / "create.py").unlink()
        scripted = torch.jit.trace(network, (torch.ones(1, 1, X, Y), torch.ones(1, 1, X, Y)))
        scripted.save(str(folder / "none.pt"))
    done = command("generate_fields.py", *arguments)
    assert done.code == 0, done.stderr
    source, target = torch.from_numpy(images(1)[0])[:, None, None]
    with torch.no_grad():
        exact = network(source, target)[0].numpy()
        with torch.autocast("cpu", getattr(torch, precision)):
            reference = network(source, target)[0].float().numpy()
    found = field_of(tmp_path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, reference)
    assert 0 < np.abs(found - exact).max() < 0.05


def supported() -> list[str]:
    found = []
    for precision in ("bfloat16", "float16"):
        try:
            find_workers(None, 1, precision, 1)
            found.append(precision)
        except UsageError:
            pass
    return found


FINETUNING = """
import torch
class Finetuning(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 4, 3, padding=1)
    def forward(self, s, t):
        moves = torch.zeros(1, 2, *s.shape[2:], requires_grad=True)
        optimizer = torch.optim.Adam([moves], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            x = torch.linspace(-1, 1, s.shape[2])[:, None] + moves[0, 1] * 2 / s.shape[2]
            y = torch.linspace(-1, 1, s.shape[3])[None, :] + moves[0, 0] * 2 / s.shape[3]
            warped = torch.nn.functional.grid_sample(s, torch.stack([y, x], -1)[None], align_corners=True)
            loss = (self.layer(warped) - self.layer(t)).square().mean()
            loss.backward()
            optimizer.step()
        return moves
def create(): return Finetuning()
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_module_that_finetunes_by_gradients_works_in_another_precision_too(
    precision: str, run_of: Callable[..., list[object]], command: Command, tmp_path: Path
) -> None:
    done = command("generate_fields.py", *run_of("--precision", precision, create=FINETUNING))
    assert done.code == 0, done.stderr
    found = field_of(tmp_path)
    assert np.isfinite(found).all()
    assert 0.1 < np.abs(found).mean() < 1  # five steps of 0.1


def test_float32_changes_nothing_and_is_not_named_in_the_origin(
    run_of: Callable[..., list[object]], command: Command, refused: Refused, tmp_path: Path
) -> None:
    arguments = run_of(create=NETWORK)
    assert command("generate_fields.py", *arguments).code == 0
    shard = tmp_path / "shards" / "0_1.h5"
    with h5py.File(shard) as file:
        assert "precision" not in json.loads(file.attrs["provenance"])
    before = contents(shard)
    assert "done already" in command("generate_fields.py", *arguments, "--precision", "float32").stdout
    shard.unlink()
    assert command("generate_fields.py", *arguments, "--precision", "float32").code == 0
    assert contents(shard) == before
    line = refused("generate_fields.py", *arguments, "--precision", "bfloat16")
    assert "made with another precision; --update" in line


@pytest.mark.parametrize(("precision", "capability"), [("bfloat16", (7, 5)), ("float16", (5, 0))])
def test_a_gpu_that_does_not_compute_in_a_type_is_told_before_any_work(
    precision: str,
    capability: tuple[int, int],
    machine: Callable[..., None],
    run_of: Callable[..., list[object]],
    refused: Refused,
    tmp_path: Path,
) -> None:
    machine(cores=2, gpus=1, capability=capability)
    line = refused("generate_fields.py", *run_of("--gpu", 0, "--precision", precision, cpu_workers=None))
    assert f"--precision {precision}: cuda:0 (Old GPU) does not compute in it: take float32 or " in line
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_cpu_that_does_not_compute_in_a_type_is_told_before_any_work(
    run_of: Callable[..., list[object]], refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", missing)
    line = refused("generate_fields.py", *run_of("--precision", "float16"))
    assert "--precision float16: cpu (the CPU, with this build of torch) does not compute in it: take float32" in line
    assert list((tmp_path / "shards").iterdir()) == []


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_field_of_a_smaller_type_is_stored_as_float32(
    name: str, run_of: Callable[..., list[object]], command: Command, tmp_path: Path
) -> None:
    create = f"import torch\ndef create(): return lambda s, t: torch.full((1, 2, 12, 8), 1.5, dtype=torch.{name})"
    assert command("generate_fields.py", *run_of(create=create)).code == 0
    np.testing.assert_array_equal(field_of(tmp_path), np.full((2, X, Y), 1.5, np.float32))
