"""Faults 40 to 54 of docs/faults.md: running aligner modules, and joining their shards."""

import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import Command, Script
from small_jobs import (
    PLUS_ONE,
    Refused,
    fields_arguments,
    made_folder,
    put_main,
    put_older_fields,
    pyramid_of,
    tree,
)

from curation.aligners.memory import OutOfMemoryError
from curation.aligners.pyramid import Module
from curation.errors import WorkError
from curation.steps.devices import Workers
from curation.steps.field_inputs import PairInputs
from curation.steps.field_work import Failure, FieldWork, GenerateFieldsOptions
from curation.steps.kept_fields import KeptFields

X, Y = 12, 8
Arguments = Callable[..., list[object]]


def fields(pairs: int, seed: int = 0, shape: tuple[int, int] = (X, Y)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(pairs, 2, *shape)).astype(np.float32)


@pytest.fixture
def run_of(tmp_path: Path) -> Arguments:
    """generate_fields.py's arguments over `pairs` images and priors of MIP 3, with the module given."""
    made_folder(tmp_path / "shards")

    def arguments(*more: object, pairs: int = 5, create: str = PLUS_ONE, **changes: object) -> list[object]:
        pyramid_of(tmp_path, create)
        images = put_main(tmp_path / "images.h5", fields(pairs))
        prior = put_main(tmp_path / "prior.h5", fields(pairs, seed=1))
        return fields_arguments(tmp_path, images, prior, *more, **{"field_decimals": "none", **changes})

    return arguments


Joined = Callable[[], np.ndarray]


@pytest.fixture
def joined(tmp_path: Path, command: Command) -> Joined:
    """The shards' fields, joined by concat_fields.py."""

    def join() -> np.ndarray:
        done = command("concat_fields.py", "--temp_dir", tmp_path / "shards", "--dst_path", tmp_path / "joined.h5")
        assert done.code == 0, done.stderr
        with h5py.File(tmp_path / "joined.h5") as file:
            return file["main"][:]

    return join


# generate_fields


@pytest.mark.parametrize(("pairs", "workers"), [(1, 2), (3, 2), (37, 2), (37, 1)])
def test_40_each_pair_once_however_many_workers(
    pairs: int, workers: int, run_of: Arguments, command: Command, joined: Joined
) -> None:
    done = command("generate_fields.py", *run_of(pairs=pairs, cpu_workers=workers))
    assert done.code == 0, done.stderr
    np.testing.assert_array_equal(joined(), fields(pairs, seed=1) + 1)


@pytest.mark.parametrize(
    ("prior", "mip", "said"),
    [
        (fields(4), 3, "want the same shape"),
        (fields(5, shape=(X, Y + 1)), 3, "want the same shape"),
        (fields(5), 2, "is of MIP 2, not src_mip 3"),
    ],
)
def test_41_image_and_prior_that_differ(
    prior: np.ndarray, mip: int, said: str, run_of: Arguments, refused: Refused, tmp_path: Path
) -> None:
    line = refused("generate_fields.py", *run_of(prev_field_path=put_main(tmp_path / "other.h5", prior, mip)))
    assert "other.h5" in line
    assert said in line


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        (
            "0_mip3in_b",
            {"other.pt": b""},
            "no create.py and no none.pt, none.pt2 or none.onnx; checkpoints there: other.pt",
        ),
        ("1_mip3in_b", {"none.pt": b"torn"}, "no module of stage 0; there is 1_mip3in_b"),
        ("0_mip4in_b", {"none.pt": b"torn"}, "takes images of MIP 4, not src_mip 3"),
    ],
)
def test_42_a_module_that_cannot_be_taken(
    name: str, files: dict[str, bytes], said: str, run_of: Arguments, refused: Refused, tmp_path: Path
) -> None:
    arguments = run_of()
    shutil.rmtree(tmp_path / "pyramid")
    for file, content in files.items():
        made_folder(tmp_path / "pyramid")
        (made_folder(tmp_path / "pyramid" / name) / file).write_bytes(content)
    assert said in refused("generate_fields.py", *arguments)
    assert not list((tmp_path / "shards").iterdir())


def test_42_a_corrupt_checkpoint(run_of: Arguments, refused: Refused, tmp_path: Path) -> None:
    arguments = run_of()
    module = tmp_path / "pyramid" / "0_mip3in_small"
    (module / "create.py").unlink()
    (module / "none.pt").write_bytes(b"torn")
    assert "none.pt: not a TorchScript file" in refused("generate_fields.py", *arguments)
    assert not list((tmp_path / "shards").iterdir())


def _save_weights(path: Path, how: str) -> None:
    weights = torch.nn.Linear(2, 2)
    if how == "pickle":
        path.write_bytes(pickle.dumps({"weight": [1.0]}))
    else:
        torch.save(
            weights if how == "module" else weights.state_dict(),
            path,
            _use_new_zipfile_serialization=how != "before torch 1.6",
        )


@pytest.mark.parametrize("how", ["state_dict", "module", "before torch 1.6", "pickle"])
def test_42_weights_where_torchscript_is_wanted(how: str, run_of: Arguments, refused: Refused, tmp_path: Path) -> None:
    arguments = run_of()
    module = tmp_path / "pyramid" / "0_mip3in_small"
    (module / "create.py").unlink()
    _save_weights(module / "none.pt", how)
    assert refused("generate_fields.py", *arguments) == (
        f"generate_fields: error: {module}/none.pt: holds weights (a state_dict), not a TorchScript file: "
        "want one made by torch.jit.save, or a create.py that loads them"
    )


@pytest.mark.parametrize(
    ("create", "known"),
    [
        ("def create(checkpoint_name, finetune_iter=3, step=1): pass", "checkpoint_name, finetune_iter, step"),
        ("def create(): pass", "no parameter"),
    ],
)
def test_42_parameters_that_create_does_not_take(
    create: str, known: str, run_of: Arguments, refused: Refused, command: Command, tmp_path: Path
) -> None:
    arguments = run_of(create=create, model_params='{"finetune_itre": 5, "other": 1}')
    done = command("generate_fields.py", *arguments)
    assert (done.code, done.stdout) == (2, "")
    assert done.line == (
        f"generate_fields: error: {tmp_path}/pyramid/0_mip3in_small: create does not take finetune_itre, other of "
        f"--model_params: it takes {known}"
    )
    assert not list((tmp_path / "shards").iterdir())


def test_42_parameters_for_a_torchscript_file(run_of: Arguments, refused: Refused, tmp_path: Path) -> None:
    arguments = run_of(model_params='{"finetune_iter": 5}')
    module = tmp_path / "pyramid" / "0_mip3in_small"
    (module / "create.py").unlink()
    torch.jit.script(torch.nn.Identity()).save(str(module / "none.pt"))
    assert refused("generate_fields.py", *arguments) == (
        f"generate_fields: error: {module}/none.pt is a TorchScript file, which takes no --model_params: "
        "leave them out, or add a create.py that takes them"
    )


PRINTING = """
import os, subprocess, ctypes, torch
print("at import")

def create():
    print("at creation")
    def forward(s, t, src_agg_field):
        print("as it runs")
        ctypes.CDLL(None).puts(b"in C")
        subprocess.run(["echo", "in a process of its own"])
        return src_agg_field
    return forward
"""


@pytest.mark.parametrize("more", [["--cpu_workers", "1"], ["--cpu_workers", "2"], ["--dry_run"]])
def test_what_a_module_prints_goes_to_stderr(more: list[str], run_of: Arguments, script: Script) -> None:
    done = script("generate_fields.py", *run_of(*more, create=PRINTING, cpu_workers=None))
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} <= {
        *("module", "workers", "precision", "tiles", "output", "pairs", "shards", "tried", "not"),
        *("correlation", "by", "least", "displacement", "folded"),
    }
    for line in ("at import", "at creation", "as it runs", "in C", "in a process of its own"):
        assert line in done.stderr


# --dry_run tries the module


@pytest.mark.parametrize(
    ("create", "code", "said"),
    [
        ("def create(): return (", 1, "could not be loaded: create.py, line 1: def create(): return (: SyntaxError: "),
        ("def create(): return lambda s, t: s", 1, "failed: pair 1, 12 x 8 pixels: "),
        ("def create(): return lambda s, t: s", 1, "returned torch.float32 of shape (1, 1, 12, 8): want float32 of"),
        ("def create(): return lambda s, t: 1 / 0", 1, "1 / 0: ZeroDivisionError: division by zero"),
    ],
)
def test_43_a_dry_run_tries_the_module_on_the_first_pair_that_is_not_black(
    create: str, code: int, said: str, run_of: Arguments, command: Command, tmp_path: Path
) -> None:
    images = fields(5)
    images[0, 1] = 0
    arguments = run_of(create=create, image_path=put_main(tmp_path / "black.h5", images))
    done = command("generate_fields.py", *arguments, "--dry_run")
    assert (done.code, done.stdout) == (code, "")
    assert said in done.line
    assert command("generate_fields.py", *arguments).code == code
    assert not list((tmp_path / "shards").glob("[1-9]*.h5"))


def test_a_dry_run_says_what_the_module_was_tried_on(run_of: Arguments, command: Command, tmp_path: Path) -> None:
    images = fields(3)
    images[:2, 0] = 0
    arguments = run_of(image_path=put_main(tmp_path / "black.h5", images), pairs=3)
    assert (
        "tried            on pair 2, without an error" in command("generate_fields.py", *arguments, "--dry_run").stdout
    )
    images[2] = 0
    arguments = run_of(image_path=put_main(tmp_path / "all_black.h5", images), pairs=3)
    assert "\ntried " not in command("generate_fields.py", *arguments, "--dry_run").stdout


def test_a_dry_run_of_what_is_done_tries_nothing(run_of: Arguments, command: Command, tmp_path: Path) -> None:
    counting = f"open({str(tmp_path / 'notes.txt')!r}, 'a').write('loaded ')\n{PLUS_ONE}"
    arguments = run_of(create=counting)
    assert command("generate_fields.py", *arguments).code == 0
    assert "5, done already" in command("generate_fields.py", *arguments, "--dry_run").stdout
    assert (tmp_path / "notes.txt").read_text() == "loaded "


def test_42_two_modules_of_one_stage(run_of: Arguments, refused: Refused, tmp_path: Path) -> None:
    arguments = run_of()
    pyramid_of(tmp_path, name="0_mip3in_twin")
    line = refused("generate_fields.py", *arguments)
    assert "more than one module of stage 0; there is 0_mip3in_small, 0_mip3in_twin" in line


@pytest.mark.parametrize(
    ("create", "said"),
    [
        (
            "import torch\nraise RuntimeError('no weights')",
            "could not be loaded: create.py, line 2: raise RuntimeError('no weights'): RuntimeError: no weights",
        ),
        (
            "def create():\n    return lambda s, t: (1",
            "could not be loaded: create.py, line 2: return lambda s, t: (1: SyntaxError: '(' was never closed",
        ),
        ("import nowhere_at_all", "create.py, line 1: import nowhere_at_all: ModuleNotFoundError: No module named"),
        ("x = 1", "create.py has no function create"),
        ("def create(): return 7", "create returned int"),
        ("def create(): return lambda s, t: None", "0_mip3in_small: returned NoneType"),
        ("def create(): return lambda s, t: 'field'", "0_mip3in_small: returned str"),
        ("def create(): return lambda s, t: s", "returned torch.float32 of shape (1, 1, 12, 8)"),
        (
            "def create(): return lambda s, t: 1 / 0",
            "5 of 5 pairs failed: pairs 0-4; the first: pair 0, 12 x 8 pixels: ",
        ),
        (
            "def create(): return lambda s, t: 1 / 0",
            "create.py, line 1: def create(): return lambda s, t: 1 / 0: ZeroDivisionError: division by zero",
        ),
        (
            "raise SystemExit(0)",
            "0_mip3in_small: could not be loaded: create.py, line 1: raise SystemExit(0): SystemExit: 0",
        ),
        (
            "def create(): return lambda s, t: exit()",
            "5 of 5 pairs failed: pairs 0-4; the first: pair 0, 12 x 8 pixels: ",
        ),
        (
            "import torch\ndef create(): return lambda s, t: torch.ones(1, 2, 12, 8, device='meta')",
            "5 of 5 pairs failed",
        ),
    ],
)
def test_43_a_bad_module_is_named(create: str, said: str, run_of: Arguments, failed: Refused, tmp_path: Path) -> None:
    line = failed("generate_fields.py", *run_of(create=create))
    assert "0_mip3in_small" in line
    assert said in line
    assert not list((tmp_path / "shards").iterdir())


# Fails on the pairs whose source begins with a number that FAILING has, in a neighbour that calls torch.
FAILS_ON = """
import torch, neighbour

def create():
    def forward(src_img, tgt_img, src_agg_field):
        neighbour.check(src_img)
        return src_agg_field + 1
    return forward
"""
NEIGHBOUR = """
import torch

def check(image):
    wrong = image[0, 0, 0, 0] in torch.tensor(FAILING)
    if wrong:
        torch.zeros(2).view(
            3, 5)
"""
SAID = "pair {}, 12 x 8 pixels: {}: neighbour.py, line 7: torch.zeros(2).view(: RuntimeError: shape '[3, 5]' is invalid"


@pytest.fixture
def failing(run_of: Arguments, tmp_path: Path) -> Arguments:
    """generate_fields.py's arguments over 16 pairs, on some of which the module fails."""

    def arguments(*more: object, on: Sequence[int], **changes: object) -> list[object]:
        images = fields(16)
        images[:, 0, 0, 0] = np.arange(16)
        path = put_main(tmp_path / "numbered.h5", images)
        given = run_of(*more, pairs=16, create=FAILS_ON, image_path=path, **changes)
        code = NEIGHBOUR.replace("FAILING", str([*map(float, on)]))
        (tmp_path / "pyramid" / "0_mip3in_small" / "neighbour.py").write_text(code)
        return given

    return arguments


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("debug", [False, True])
def test_43_the_first_failure_is_told_at_once_and_all_in_the_end(
    workers: int,
    debug: bool,
    failing: Arguments,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("curation.progress.LINE_EVERY_S", 0.0)
    more = ["--debug"] if debug else []
    done = command("generate_fields.py", *failing(*more, on=[4, 9, 12], cpu_workers=workers))
    assert done.code == 1
    lines = done.stderr.replace("\r", "\n").splitlines()
    said = [SAID.format(pair, tmp_path / "pyramid" / "0_mip3in_small") for pair in (4, 9, 12)]
    at_once = [line for line in lines if line.startswith(tuple(said))]
    assert len(at_once) == 1
    assert done.line.startswith(f"generate_fields: failed: 3 of 16 pairs failed: pairs 4, 9, 12; the first: {said[0]}")
    assert any("16 of 16" in line for line in lines[lines.index(at_once[0]) :])  # progress is shown after it too
    first = lines[: lines.index(at_once[0])]
    assert any("Traceback" in line for line in first) == debug
    assert any("return self._call_impl" in line or "in forward" in line for line in first) == debug


@pytest.mark.parametrize("workers", [1, 2])
def test_43_too_many_failures_end_the_run(workers: int, failing: Arguments, failed: Refused, tmp_path: Path) -> None:
    line = failed("generate_fields.py", *failing("--max_failures", 3, on=range(1, 16), cpu_workers=workers))
    assert "3 of 16 pairs failed: pair" in line
    assert "; stopped there, as --max_failures says; the first: pair " in line


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["nan", "prior"])
def test_43_failed_pairs_get_the_field_that_was_asked_for(
    how: str, workers: int, failing: Arguments, command: Command, joined: Joined, tmp_path: Path
) -> None:
    arguments = failing("--failed", how, on=[4, 9, 12], cpu_workers=workers)
    done = command("generate_fields.py", *arguments)
    assert done.code == 0, done.stderr
    assert "failed           3 (pairs 4, 9, 12)" in done.stdout
    expected = fields(16, seed=1) + 1
    expected[[4, 9, 12]] = np.nan if how == "nan" else fields(16, seed=1)[[4, 9, 12]]
    np.testing.assert_array_equal(joined(), expected)
    with h5py.File(tmp_path / "joined.h5") as file:
        assert np.flatnonzero(file["failed"][:]).tolist() == [4, 9, 12]
        assert "failed" not in file.attrs
    assert command("verify_dataset.py", *(tmp_path / "shards").iterdir(), tmp_path / "joined.h5").code == 0
    again = command("generate_fields.py", *arguments)
    assert "16, done already" in again.stdout
    assert "failed           3 (pairs 4, 9, 12)" in again.stdout


def test_43_the_prior_of_a_failed_pair_is_as_it_was_before_the_module_wrote_to_it(
    run_of: Arguments, command: Command, joined: Joined
) -> None:
    writing = "def create(): return lambda s, t, src_agg_field: src_agg_field.fill_(7) / (1 / 0)"
    assert command("generate_fields.py", *run_of("--failed", "prior", create=writing)).code == 0
    np.testing.assert_array_equal(joined(), fields(5, seed=1))


def test_43_failed_pairs_without_a_prior_are_0(failing: Arguments, command: Command, joined: Joined) -> None:
    arguments = failing("--failed", "prior", on=[1, *range(3, 16)], prev_field_path=None, max_failures=20)
    assert command("generate_fields.py", *arguments).code == 0
    assert not joined().any()


def test_43_a_run_that_failed_goes_on_with_another_way_but_two_ways_are_not_mixed(
    failing: Arguments, command: Command, failed: Refused, refused: Refused, joined: Joined, tmp_path: Path
) -> None:
    arguments = failing(on=[4, 9])
    failed("generate_fields.py", *arguments)
    done = command("generate_fields.py", *arguments, "--failed", "nan")
    assert "16, 14 of them found done" in done.stdout
    for other in ([], ["--failed", "prior"]):
        line = refused("generate_fields.py", *arguments, *other)
        assert "4_5.h5: made with another failed; --update keeps the fields that are still right, or" in line
    done = command("generate_fields.py", *arguments, "--failed", "prior", "--update")
    assert "fields           0 kept, 2 made" in done.stdout
    assert not np.isnan(joined()).any()


def test_43_an_update_runs_failed_pairs_anew(
    failing: Arguments, command: Command, joined: Joined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.datasets.shards.FEWEST_SHARDS", 4)  # so that a shard has other pairs too
    now = tmp_path / "now.txt"
    arguments = failing("--failed", "nan", on=[])
    code = NEIGHBOUR.replace("torch.tensor(FAILING)", f"torch.tensor(eval(open({str(now)!r}).read()))")
    (tmp_path / "pyramid" / "0_mip3in_small" / "neighbour.py").write_text(code)
    now.write_text("[4.0, 9.0]")
    assert "failed           2 (pairs 4, 9)" in command("generate_fields.py", *arguments).stdout
    now.write_text("[2.0, 9.0]")  # 2 is not run again
    done = command("generate_fields.py", *arguments, "--update")
    assert "fields           6 kept, 2 made" in done.stdout
    assert "failed           1 (pair 9)" in done.stdout
    assert "16, done already" in command("generate_fields.py", *arguments).stdout
    now.write_text("[2.0]")
    assert "\nfailed  " not in command("generate_fields.py", *arguments, "--update").stdout
    np.testing.assert_array_equal(joined(), fields(16, seed=1) + 1)


def test_44_nan_is_stored_exactly_and_counted(
    run_of: Arguments, command: Command, joined: Joined, tmp_path: Path
) -> None:
    prior = fields(5, seed=1)
    prior[3, 0, 2, 2] = np.nan
    prior[3, 1, 4, 4] = np.inf
    arguments = run_of(prev_field_path=put_main(tmp_path / "nan.h5", prior))
    done = command("generate_fields.py", *arguments)
    assert "not finite       1 fields" in done.stdout
    assert joined().tobytes() == (prior + 1).tobytes()


def test_45_equal_mips_change_nothing(run_of: Arguments, command: Command, joined: Joined) -> None:
    assert command("generate_fields.py", *run_of(src_mip=3, dst_mip=3)).code == 0
    assert joined().tobytes() == (fields(5, seed=1) + 1).tobytes()


def test_45_a_coarser_dst_mip(run_of: Arguments, refused: Refused) -> None:
    assert "src_mip 3 is finer than dst_mip 4" in refused("generate_fields.py", *run_of(dst_mip=4))


def test_46_a_gpu_where_there_is_no_cuda(run_of: Arguments, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # which it is not on most machines anyway
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    line = refused("generate_fields.py", *run_of("--gpu", 0, cpu_workers=None))
    assert "--gpu 0: CUDA sees 0 GPUs here" in line
    assert "on the CPU with --cpu_workers N" in line


# Holds a large tensor, as modules do, while memory runs out on the pair whose source begins with 7.
OUT_OF_MEMORY = """
import gc, torch, weakref
held = []
def create():
    def forward(s, t):
        assert not any(tensor() is not None for tensor in held)
        if s[0, 0, 0, 0] == 7:
            large = torch.ones(1000)
            held.append(weakref.ref(large))
            raise ERROR
        return torch.ones(1, 2, *s.shape[2:])
    return forward
"""
ON_GPU = "CUDA out of memory. Tried to allocate 80.00 GiB"
ON_CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."


@pytest.mark.parametrize(
    ("error", "workers", "remedy"),
    [
        (f'torch.OutOfMemoryError("{ON_GPU}")', 1, "--tile 6, which runs a pair in parts"),
        (f'torch.cuda.OutOfMemoryError("{ON_GPU}")', 2, "--tile 6, which runs a pair in parts or fewer --cpu_workers"),
        (f'RuntimeError("{ON_GPU}")', 1, "--tile 6, which runs a pair in parts"),
        (f'RuntimeError("{ON_CPU}")', 2, "--tile 6, which runs a pair in parts or fewer --cpu_workers"),
        ('MemoryError("no more")', 1, "--tile 6, which runs a pair in parts"),
    ],
)
def test_47_out_of_memory_names_the_pair_and_the_remedy_and_others_go_on(
    error: str, workers: int, remedy: str, run_of: Arguments, failed: Refused, tmp_path: Path
) -> None:
    images = fields(5)
    images[3, 0, 0, 0] = 7
    create = OUT_OF_MEMORY.replace("ERROR", error)
    arguments = run_of(create=create, image_path=put_main(tmp_path / "large.h5", images), cpu_workers=workers)
    line = failed("generate_fields.py", *arguments)
    assert "1 of 5 pairs failed: pair 3; the first: pair 3, 12 x 8 pixels" in line
    assert error.split('"')[1] in line
    assert line.endswith(f"; to need less memory, give {remedy}")
    assert sorted(tree(tmp_path / "shards")) == ["0_1.h5", "1_2.h5", "2_3.h5", "4_5.h5"]


def test_47_the_remedies_on_a_gpu_are_tiles_and_half_the_precision() -> None:
    inputs = PairInputs(np.ones((2, 1024, 512), np.float32), None)
    for changes, remedy in (
        ({}, "--tile 512, which runs a pair in parts or --precision bfloat16"),
        ({"tile": 256, "precision": "bfloat16"}, "--tile 128, which runs a pair in parts"),
    ):
        options = GenerateFieldsOptions("", "", None, "", 0, "", 3, 3, **changes)
        work = FieldWork(options, Module(Path(), 0, 3), {}, KeptFields(), Workers(("cuda:0", "cuda:1"), 1))
        assert Failure.of(3, inputs, OutOfMemoryError("full"), work).text.endswith(f"less memory, give {remedy}")
    assert not Failure.of(3, inputs, WorkError("broken"), work).memory


# concat_fields


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., Path]:
    """Puts shards of the given ranges of 10 pairs into a folder: `main` alone, as the older tool wrote them."""

    def put(*ranges: tuple[int, int]) -> Path:
        folder = made_folder(tmp_path / "shards")
        for first, last in ranges:
            put_main(folder / f"{first}_{last}.h5", fields(10)[first:last], None)
        return folder

    return put


@pytest.fixture
def no_join(tmp_path: Path, refused: Refused) -> Callable[[], str]:
    """concat_fields.py must refuse the shards, and write nothing; gives its line."""

    def run() -> str:
        made_folder(tmp_path / "out")
        line = refused("concat_fields.py", "--temp_dir", tmp_path / "shards", "--dst_path", tmp_path / "out" / "j.h5")
        assert list((tmp_path / "out").iterdir()) == []
        return line

    return run


def test_48_no_shards(shards: Callable[..., Path], no_join: Callable[[], str]) -> None:
    shards()
    assert "shards: no shards there" in no_join()


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ([(0, 3), (5, 10)], "pairs 3 to 4 are missing"),
        ([(0, 6), (4, 10)], "pairs 4 to 5 are there twice"),
        ([(0, 10), (0, 3)], "pairs 0 to 2 are there twice"),
    ],
)
def test_49_a_gap_or_an_overlap_is_named_by_its_range(
    ranges: list[tuple[int, int]], said: str, shards: Callable[..., Path], no_join: Callable[[], str]
) -> None:
    shards(*ranges)
    assert said in no_join()


@pytest.mark.parametrize("difference", ["shape", "dtype", "origin"])
def test_50_shards_that_differ_are_both_named(
    difference: str, shards: Callable[..., Path], no_join: Callable[[], str]
) -> None:
    folder = shards((0, 3), (3, 10))
    main = fields(7, shape=(X, Y + 1)) if difference == "shape" else fields(7)
    put_main(folder / "3_10.h5", main.astype(np.float64 if difference == "dtype" else np.float32), None)
    if difference == "origin":
        for name in ("0_3.h5", "3_10.h5"):
            with h5py.File(folder / name, "r+") as file:
                file.attrs["identity"] = f'{{"module": "{name}"}}'
    line = no_join()
    assert "3_10.h5" in line
    assert difference == "dtype" or "0_3.h5" in line


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", "not a readable HDF5 file"),
        ("not HDF5", "not a readable HDF5 file"),
        ("empty", "not a readable HDF5 file"),
        ("short", "holds 6 pairs, but its name says 7"),
    ],
)
def test_51_an_unfinished_shard_is_named(
    damage: str, said: str, shards: Callable[..., Path], no_join: Callable[[], str]
) -> None:
    path = shards((0, 3), (3, 10)) / "3_10.h5"
    if damage == "short":
        put_main(path, fields(6), None)
    else:
        content = {"truncated": path.read_bytes()[:2000], "not HDF5": b"notes", "empty": b""}
        path.write_bytes(content[damage])
    assert f"3_10.h5: {said}" in no_join()


def test_52_stray_files_are_left_alone_and_said(shards: Callable[..., Path], command: Command, tmp_path: Path) -> None:
    folder = shards((0, 10))
    (folder / "notes.txt").write_text("mine")
    (folder / "other.h5").write_text("not a shard by its name")
    done = command("concat_fields.py", "--temp_dir", folder, "--dst_path", tmp_path / "joined.h5")
    assert done.code == 0
    assert "not shards, left alone: notes.txt, other.h5" in done.stdout
    assert (folder / "notes.txt").read_text() == "mine"


def test_53_nan_and_infinity_are_joined_bit_for_bit(shards: Callable[..., Path], joined: Joined) -> None:
    folder = shards((0, 3))
    main = fields(7)
    # A quiet NaN, another with a payload, a signalling one, infinities, and the negative zero.
    odd = np.array([0x7FC00000, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000], np.uint32)
    main[2, 1, 3, : odd.size] = odd.view(np.float32)
    put_main(folder / "3_10.h5", main, None)
    assert joined().tobytes() == np.concatenate([fields(10)[:3], main]).tobytes()


def test_54_shards_of_the_older_tool(shards: Callable[..., Path], joined: Joined, tmp_path: Path) -> None:
    folder = shards()
    for first, last in ((0, 3), (3, 10)):
        put_older_fields(folder / f"{first}_{last}.h5", fields(10)[first:last])
    with h5py.File(folder / "0_3.h5") as one, h5py.File(folder / "3_10.h5") as other:
        read = np.concatenate([one["main"][:], other["main"][:]])
    assert joined().tobytes() == read.tobytes()
    with h5py.File(tmp_path / "joined.h5") as file:
        assert (file["main"].compression, file["main"].shuffle, file["main"].scaleoffset) == ("gzip", True, None)
