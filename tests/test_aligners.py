"""Aligner modules, one by one: what may lie in a module's folder, how it is loaded, and what it is called with."""

import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchfields
from commands import ROOT
from small_jobs import made_folder
from torch.export import Dim

from curation.aligners.aligner import Aligner
from curation.aligners.exported import _on_device
from curation.aligners.onnx_model import OnnxModel
from curation.aligners.pyramid import Module, content_hash, find_module
from curation.errors import UsageError, WorkError

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of its own ways as it exports
X, Y = 12, 8


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


SOURCE, TARGET, PRIOR = random(X, Y), random(X, Y, seed=1), random(2, X, Y, seed=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty module folder of stage 0 at MIP 3."""
    return made_folder(made_folder(tmp_path / "pyramid") / "0_mip3in_test")


def aligner(folder: Path, checkpoint_name: str = "net", **params: Any) -> Aligner:
    """The aligner in a module folder, which is the only one of its pyramid."""
    return Aligner(find_module(folder.parent, 0, 3, checkpoint_name), checkpoint_name, params, "cpu")


def field(folder: Path, prior: np.ndarray | None = PRIOR) -> np.ndarray:
    """What the aligner in a module folder finds for the images above."""
    made: np.ndarray = aligner(folder)(SOURCE, TARGET, prior)
    return made


def refused(folder: Path) -> str:
    """What is said of a module folder from which no aligner is loaded."""
    with pytest.raises(UsageError) as raised:
        aligner(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def put(folder: Path, create: str, files: Mapping[str, str] = MappingProxyType({})) -> Path:
    """The folder, with `create.py` and other files in it, by their paths."""
    for name, text in {"create.py": create, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


# Exported models


class Network(torch.nn.Module):
    """The prior, and a convolution of both images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = torch.nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, src_img: torch.Tensor, tgt_img: torch.Tensor, src_agg_field: torch.Tensor) -> torch.Tensor:
        return src_agg_field + self.layer(torch.cat([src_img, tgt_img], dim=1))


class Renamed(Network):
    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return c + self.layer(torch.cat([a, b], dim=1))


class Swapped(Network):
    def forward(self, src_agg_field: torch.Tensor, tgt_img: torch.Tensor, src_img: torch.Tensor) -> torch.Tensor:
        return src_agg_field + self.layer(torch.cat([src_img, tgt_img], dim=1))


class Priorless(Network):
    def forward(self, src_img: torch.Tensor, tgt_img: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.layer(torch.cat([src_img, tgt_img], dim=1))  # type: ignore[no-any-return]


def by_hand(prior: np.ndarray | None) -> np.ndarray:
    """What Network finds for the images above."""
    with torch.no_grad():
        source, target = (torch.from_numpy(image)[None, None] for image in (SOURCE, TARGET))
        start = torch.zeros(1, 2, X, Y) if prior is None else torch.from_numpy(prior)[None]
        return Network()(source, target, start)[0].numpy()  # type: ignore[no-any-return]


def examples(model: torch.nn.Module, size: tuple[int, int] = (16, 24)) -> tuple[torch.Tensor, ...]:
    source, target, prior = torch.zeros(1, 1, *size), torch.zeros(1, 1, *size), torch.zeros(1, 2, *size)
    return {Swapped: (prior, target, source), Priorless: (source, target)}.get(type(model), (source, target, prior))


def export(path: Path, model: torch.nn.Module, varying: bool = True) -> Path:
    """Write a model in the form that the path's suffix says, with sizes that may vary or of 16 x 24 pixels alone."""
    given = examples(model.eval())
    sizes = tuple({2: Dim("X"), 3: Dim("Y")} for _ in given) if varying else None
    if path.suffix == ".pt":
        torch.jit.script(model).save(str(path))
    elif path.suffix == ".pt2":
        torch.export.save(torch.export.export(model, given, dynamic_shapes=sizes), path)
    else:
        torch.onnx.export(model, given, path, dynamic_shapes=sizes, verbose=False)
    return path


FORMS = (".pt", ".pt2", ".onnx")


@pytest.mark.parametrize("suffix", FORMS)
@pytest.mark.parametrize("model", [Network, Renamed, Swapped, Priorless])
@pytest.mark.parametrize("prior", [PRIOR, None], ids=["prior", "no prior"])
def test_an_exported_model_gives_what_it_gave_before(
    suffix: str, model: type[Network], prior: np.ndarray | None, folder: Path
) -> None:
    export(folder / f"net{suffix}", model())
    expected = by_hand(None if model is Priorless else prior)
    np.testing.assert_allclose(field(folder, prior), expected, rtol=0, atol=1e-6)
    assert field(folder, prior).tobytes() == field(folder, prior).tobytes()


def test_torchscript_that_takes_none_for_a_prior_gets_none(folder: Path) -> None:
    class Optional(torch.nn.Module):
        def forward(
            self, src_img: torch.Tensor, tgt_img: torch.Tensor, src_agg_field: torch.Tensor | None, train: bool = True
        ) -> torch.Tensor:
            value = 3.0 if src_agg_field is None else 5.0
            return torch.full((1, 2, src_img.shape[2], src_img.shape[3]), value + 10.0 * float(train))

    export(folder / "net.pt", Optional())
    assert (field(folder, None) == 3).all()
    assert (field(folder) == 5).all()


class Flagged(Network):
    def forward(  # type: ignore[override]
        self,
        src_img: torch.Tensor,
        tgt_img: torch.Tensor,
        src_agg_field: torch.Tensor | None = None,
        train: bool = True,
    ) -> torch.Tensor:
        made: torch.Tensor = self.layer(torch.cat([src_img, tgt_img], dim=1))
        made = made if src_agg_field is None else made + src_agg_field
        return made + 1 if train else made


def export_flagged(path: Path, prior: torch.Tensor | None, train: bool) -> None:
    images = torch.zeros(1, 1, X, Y), torch.zeros(1, 1, X, Y)
    program = torch.export.export(Flagged(), images, {"src_agg_field": prior, "train": train})
    torch.export.save(program, path)


def test_a_program_gets_the_keywords_with_which_it_was_exported(folder: Path) -> None:
    export_flagged(folder / "net.pt2", torch.zeros(1, 2, X, Y), False)
    np.testing.assert_allclose(field(folder), by_hand(PRIOR), rtol=0, atol=1e-6)
    export_flagged(folder / "net.pt2", None, False)
    np.testing.assert_allclose(field(folder, None), by_hand(None), rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match=r"net.pt2: was exported with src_agg_field=None, but there is a prior"):
        field(folder)
    export_flagged(folder / "net.pt2", None, True)
    assert refused(folder).endswith("net.pt2: was exported with train=True: export it with train=False")


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_size_that_a_model_does_not_take_is_told(suffix: str, folder: Path) -> None:
    export(folder / f"net{suffix}", Network(), varying=False)
    with pytest.raises(UsageError) as raised:
        field(folder)
    assert str(raised.value) == (
        f"{folder}/net{suffix}: takes src_img of 1 x 1 x 16 x 24, and here it is 1 x 1 x 12 x 8: export the model "
        "with sizes that may vary, or use boxes of a size that it takes"
    )
    model = aligner(folder)
    assert model(random(16, 24), random(16, 24), None).shape == (2, 16, 24)


def test_the_multiple_that_a_program_wants_is_told(folder: Path) -> None:
    sizes = {2: 8 * Dim("X", max=100), 3: 8 * Dim("Y")}
    program = torch.export.export(Network(), examples(Network()), dynamic_shapes=(sizes, sizes, sizes))
    torch.export.save(program, folder / "net.pt2")
    with pytest.raises(UsageError, match=r"takes src_img of 1 x 1 x \(a multiple of 8, \d+ to 800\) x \(a multiple of"):
        field(folder)
    assert aligner(folder)(random(32, 16), random(32, 16), None).shape == (2, 32, 16)


def test_inputs_that_cannot_be_told_are_named(folder: Path) -> None:
    class Four(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
            return a + b + c + d

    for suffix in FORMS:
        path = folder / f"net{suffix}"
        if suffix == ".pt":
            torch.jit.script(Four()).save(str(path))
        elif suffix == ".pt2":
            torch.export.save(torch.export.export(Four().eval(), tuple(torch.zeros(4, 4))), path)
        else:
            torch.onnx.export(Four().eval(), tuple(torch.zeros(4, 4)), path, verbose=False)
        assert refused(folder) == (
            f"{path}: takes a, b, c, d: want src_img, tgt_img and src_agg_field, or two or three inputs of other "
            "names in this order"
        )
        path.unlink()


def test_an_onnx_file_of_several_outputs_gives_the_one_named_field(folder: Path) -> None:
    class Two(Network):
        def forward(self, src_img: torch.Tensor, tgt_img: torch.Tensor, src_agg_field: torch.Tensor) -> Any:
            return src_img * 2, super().forward(src_img, tgt_img, src_agg_field)

    model, given = Two().eval(), examples(Network(), (X, Y))
    torch.onnx.export(model, given, folder / "net.onnx", output_names=["more", "field"], verbose=False)
    np.testing.assert_allclose(field(folder), by_hand(PRIOR), rtol=0, atol=1e-6)
    torch.onnx.export(model, given, folder / "net.onnx", output_names=["more", "other"], verbose=False)
    assert refused(folder).endswith("net.onnx: returns more, other: want one output, or one that is named field")


def test_onnxruntime_has_the_threads_of_the_worker(folder: Path) -> None:
    path = export(folder / "net.onnx", Network())
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = OnnxModel(path, torch.device("cpu"))
            assert model._session.get_session_options().intra_op_num_threads == threads
    finally:
        torch.set_num_threads(before)


def test_without_onnxruntime_it_is_told_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(folder / "net.onnx", Network())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert refused(folder) == (
        f"{folder}/net.onnx: onnxruntime, which runs ONNX files, is not installed: pip install onnxruntime "
        "(onnxruntime-gpu to run them on GPUs)"
    )


def test_an_onnx_file_on_a_gpu_wants_an_onnxruntime_with_cuda(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(folder / "net.onnx", Network())
    begin = onnxruntime.InferenceSession
    with pytest.raises(UsageError, match=r"the onnxruntime that is installed has no CUDA: pip .* --cpu_workers N$"):
        OnnxModel(path, torch.device("cuda:1"))
    # One that has CUDA, but not its libraries, falls back to the CPU.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_: begin(path, providers=["CPUExecutionProvider"]))
    with pytest.raises(UsageError, match=r"finds no CUDA libraries of its version: install them, or run on the CPU"):
        OnnxModel(path, torch.device("cuda:1"))


def test_a_program_that_was_exported_with_one_tensor_for_both_images_is_told(folder: Path) -> None:
    image, _, prior = examples(Network())
    torch.export.save(torch.export.export(Network(), (image, image, prior)), folder / "net.pt2")
    assert refused(folder) == (
        f"{folder}/net.pt2: does not use src_img: export it with a tensor of its own for each input, for torch takes "
        "two inputs that are one tensor for the same"
    )


def test_a_program_is_moved_to_the_device(folder: Path) -> None:
    program = torch.export.load(export(folder / "net.pt2", Network()))
    assert _on_device(program, torch.device("cpu")) is program
    moved = _on_device(program, torch.device("meta"))
    assert {value.device.type for value in moved.state_dict.values()} == {"meta"}


# Which file is taken


def test_create_py_is_taken_before_any_checkpoint(folder: Path) -> None:
    for suffix in FORMS:
        (folder / f"net{suffix}").write_text("whatever")
    put(folder, "def create():\n    return lambda s, t, src_agg_field: src_agg_field + 4")
    np.testing.assert_array_equal(field(folder), PRIOR + 4)


def test_two_models_of_one_name_are_both_named(folder: Path) -> None:
    for suffix in (".pt", ".onnx"):
        export(folder / f"net{suffix}", Network())
    export(folder / "other.pt2", Network())
    assert refused(folder) == (
        f"{folder}: holds net.pt and net.onnx: want one file of this name, so that it is clear which model runs"
    )
    assert aligner(folder, "other")(SOURCE, TARGET, PRIOR).shape == PRIOR.shape


def test_checkpoints_of_all_kinds_are_listed(folder: Path) -> None:
    for name in ("a.pt", "b.onnx", "c.pt2", "d.onnx.data", "e.txt"):
        (folder / name).touch()
    assert refused(folder) == (
        f"{folder}: no create.py and no net.pt, net.pt2 or net.onnx; checkpoints there: a.pt, b.onnx, c.pt2"
    )


def weights(path: Path, how: str) -> None:
    if how == "pickle":
        path.write_bytes(pickle.dumps({"weight": [1.0]}))
    elif how == "safetensors":
        path.write_bytes((2).to_bytes(8, "little") + b"{}")
    else:
        torch.save(Network().state_dict(), path, _use_new_zipfile_serialization=how == "zip")


NAMES = {".pt": "a TorchScript file", ".pt2": "a program of torch.export", ".onnx": "an ONNX file"}
MAKERS = {".pt": "torch.jit.save", ".pt2": "torch.export.save", ".onnx": "torch.onnx.export"}


@pytest.mark.parametrize("how", ["zip", "before torch 1.6", "pickle", "safetensors"])
@pytest.mark.parametrize("suffix", FORMS)
def test_weights_are_told_from_a_model(suffix: str, how: str, folder: Path) -> None:
    weights(folder / f"net{suffix}", how)
    assert refused(folder) == (
        f"{folder}/net{suffix}: holds weights (a state_dict), not {NAMES[suffix]}: want one made by {MAKERS[suffix]}, "
        "or a create.py that loads them"
    )


@pytest.mark.parametrize("suffix", FORMS)
@pytest.mark.parametrize("right", FORMS)
def test_a_model_under_another_suffix_is_told(suffix: str, right: str, folder: Path) -> None:
    if suffix != right:
        shutil.move(export(folder / f"made{right}", Network()), folder / f"net{suffix}")
        said = f"{folder}/net{suffix}: is {NAMES[right]}, not {NAMES[suffix]}: name it net{right}"
        assert refused(folder) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty, not {}"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page, perhaps an error message that was saved, not {}"),
        (b"<html><body>Sign in", "is a web page, perhaps an error message that was saved, not {}"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS (git lfs pull gets the file it"),
        (b"PK\x03\x04 and so on", "is a file whose end is missing, not {}"),
    ],
)
@pytest.mark.parametrize("suffix", FORMS)
def test_what_is_no_model_is_told(suffix: str, content: bytes, said: str, folder: Path) -> None:
    (folder / f"net{suffix}").write_bytes(content)
    line = refused(folder)
    assert f"net{suffix}: {said.format(NAMES[suffix])}" in line
    assert line.endswith(f"not {NAMES[suffix]}: want one made by {MAKERS[suffix]}")


@pytest.mark.parametrize("suffix", FORMS)
def test_a_torn_model_is_told(suffix: str, folder: Path) -> None:
    path = export(folder / f"net{suffix}", Network())
    path.write_bytes(path.read_bytes()[:300])
    wanted = {".onnx": "net.onnx: onnxruntime cannot load it: "}.get(suffix, "is a file whose end is missing")
    assert wanted in refused(folder)


@pytest.mark.parametrize("suffix", FORMS)
def test_bytes_of_no_known_kind_are_told(suffix: str, folder: Path) -> None:
    (folder / f"net{suffix}").write_bytes(b"hello")
    wanted = {".onnx": "onnxruntime cannot load it: "}.get(suffix, f"not {NAMES[suffix]}: want one made by")
    assert f"net{suffix}: {wanted}" in refused(folder)


@pytest.mark.parametrize("name", ["net.pt2", "net.onnx", "net.onnx.data"])
def test_the_hash_of_a_module_covers_its_exported_models(name: str, folder: Path) -> None:
    (folder / "net.onnx").write_bytes(b"model")
    module = Module(folder, 0, 3)
    before = content_hash(module)
    (folder / name).write_bytes(b"changed")
    assert content_hash(module) != before


# Packages, with create.py


# As metroem's packages are: the network is at model.aligner.net, a flag hides the method `train` of torch's modules,
# and forward takes keywords alone. metroem itself, which is installed in real life, lies in the package's folder here.
CREATE = """
import argparse, logging, os, pathlib, sys
sys.path.append(os.path.dirname(__file__))
import torch
import metroem

device = "cuda" if torch.cuda.is_available() else "cpu"
logging.getLogger("metroem").addHandler(logging.StreamHandler(sys.stdout))

class Model(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        this_folder = pathlib.Path(__file__).parent.absolute()
        self.aligner = metroem.aligner.Aligner(model_folder=os.path.join(this_folder, "model"), **kwargs)

    def forward(self, **kwargs):
        return self.aligner.forward(**kwargs)

def create(**kwargs):
    return Model(**kwargs)

if __name__ == "__main__":
    argparse.ArgumentParser().parse_args()
"""
METROEM = {
    "metroem/__init__.py": "from . import aligner",
    "metroem/helpers.py": """
def smoothness(field):
    return (field[:, :, 1:] - field[:, :, :-1]).pow(2).mean() + (field[..., 1:] - field[..., :-1]).pow(2).mean()
""",
    "metroem/aligner.py": """
import logging, os
import torch, torchfields

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 2, 3, padding=1)
        self.state = {}

    def forward(self, x, in_field=None):
        found = self.conv(x)
        self.state["up"] = found
        return found if in_field is None else found + in_field

class Aligner(torch.nn.Module):
    def __init__(self, model_folder, checkpoint_name="checkpoint", pass_field=True, finetune=False, finetune_iter=100,
                 finetune_lr=0.1, finetune_sm=30.0, train=False, crop=1):
        super().__init__()
        self.net = Net()
        path = os.path.join(model_folder, f"{checkpoint_name}.state.pth.tar")
        self.net.load_state_dict(torch.load(path, map_location=torch.device("cpu")))
        self.net.name = checkpoint_name
        self.train = train
        self.pass_field, self.finetune = pass_field, finetune
        self.finetune_iter, self.finetune_lr, self.finetune_sm = finetune_iter, finetune_lr, finetune_sm
        print("loaded", path)

    def forward(self, src_img, tgt_img, src_agg_field=None, tgt_agg_field=None, train=None, return_state=False,
                **kwargs):
        from metroem import helpers
        self.net = self.net.cpu()
        if src_agg_field is not None:
            src_agg_field = src_agg_field.field().from_pixels()
            warped = src_agg_field(src_img)
            src_agg_field = src_agg_field.pixels()
        x = torch.cat((src_img if self.pass_field else warped, tgt_img), 1).float()
        with torch.no_grad():
            found = self.net.forward(x=x, in_field=src_agg_field).field()
        found = found.detach()
        found.requires_grad = True
        optimizer = torch.optim.Adam([found], lr=self.finetune_lr)
        for _ in range(min(5, self.finetune_iter)):
            loss = (found.from_pixels()(src_img) - tgt_img).pow(2).mean() + self.finetune_sm * helpers.smoothness(found)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        logging.getLogger("metroem").warning("finetuned")
        return (found.field(), self.net.state) if return_state else found.field()
""",
}


@pytest.fixture
def metroem(folder: Path) -> torch.nn.Conv2d:
    """The layer of the network of a metroem package, which is put into the folder."""
    put(folder, CREATE, METROEM)
    layer = torch.nn.Conv2d(2, 2, 3, padding=1)
    checkpoint = made_folder(folder / "model") / "net.state.pth.tar"
    weights = {f"conv.{name}": torch.nn.Parameter(value) for name, value in layer.state_dict().items()}
    torch.save(weights, checkpoint, _use_new_zipfile_serialization=False)
    return layer


def finetuned(layer: torch.nn.Conv2d, prior: np.ndarray | None) -> np.ndarray:
    """What the package of metroem finds for the images above, with the parameters that generate_fields gives it."""
    source, target = (torch.from_numpy(image)[None, None] for image in (SOURCE, TARGET))
    with torch.no_grad():
        found = layer(torch.cat([source, target], 1))
        if prior is not None:  # which metroem converts to other units and back
            found = found + torchfields.Field(torch.from_numpy(prior)[None]).from_pixels().pixels()
    found = torchfields.Field(found).requires_grad_(True)
    optimizer = torch.optim.Adam([found], lr=0.3)
    for _ in range(5):
        unlike = (found.from_pixels()(source) - target).pow(2).mean()
        bends = (found[:, :, 1:] - found[:, :, :-1]).pow(2).mean() + (found[..., 1:] - found[..., :-1]).pow(2).mean()
        loss = unlike + 60.0 * bends
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found.detach().as_subclass(torch.Tensor)[0].numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("prior", [PRIOR, None], ids=["prior", "no prior"])
def test_a_package_of_metroem_gives_what_a_direct_computation_does_bit_for_bit(
    prior: np.ndarray | None, folder: Path, metroem: torch.nn.Conv2d, capfd: pytest.CaptureFixture[str]
) -> None:
    before = dict(sys.modules), list(sys.path)
    assert field(folder, prior).tobytes() == finetuned(metroem, prior).tobytes()
    assert [name for name in sys.modules if name not in before[0] and "metroem" in name] == []
    assert sys.path == before[1]
    said = capfd.readouterr()
    assert said.out == ""
    assert "loaded" in said.err and "finetuned" in said.err


def test_a_flag_of_the_name_train_does_not_keep_a_model_from_evaluating(folder: Path, metroem: torch.nn.Conv2d) -> None:
    model: Any = aligner(folder)._model
    assert [part.training for part in model._model.modules()] == [False] * 4
    assert model._model.aligner.train is False


# Everything by which a package may get at files of its own, some of it only as it is called.
LAZY = """
import os, sys
from . import numbers_of_mine as relative
import numbers_of_mine
sys.path.append(os.path.join(os.path.dirname(__file__), "lib"))

def create(checkpoint_name):
    before = os.getcwd()
    def forward(src_img, tgt_img, src_agg_field):
        import lazily, deep.nested, plain.inner, inlib
        from . import lazily as relatively
        from plain import inner
        from deep.nested import VALUE
        kept = open(os.path.join(os.path.dirname(__file__), "kept.txt")).read()
        assert os.getcwd() != before
        numbers = [relative.VALUE, numbers_of_mine.VALUE, lazily.VALUE, relatively.VALUE, VALUE, inner.VALUE,
                   inlib.VALUE, int(kept)]
        assert len(set(numbers)) == 1, numbers
        return src_agg_field + numbers[0]
    return forward
"""


def lazy(folder: Path, value: int) -> Path:
    names = ("numbers_of_mine.py", "lazily.py", "deep/nested.py", "plain/inner.py", "lib/inlib.py")
    files = {"deep/__init__.py": "", "kept.txt": str(value), **dict.fromkeys(names, f"VALUE = {value}")}
    return put(folder, LAZY, files)


def test_two_packages_whose_files_have_the_same_names_do_not_mix(folder: Path, tmp_path: Path) -> None:
    other = made_folder(made_folder(tmp_path / "other") / "0_mip3in_test")
    models = aligner(lazy(folder, 3)), aligner(lazy(other, 70))
    before = set(sys.modules), list(sys.path), Path.cwd()
    for _ in range(3):
        for model, value in zip(models, (3, 70), strict=True):
            np.testing.assert_array_equal(model(SOURCE, TARGET, PRIOR), PRIOR + value)
            assert (set(sys.modules), list(sys.path), Path.cwd()) == before


def test_a_package_behind_a_link_keeps_its_files_to_itself(folder: Path, tmp_path: Path) -> None:
    folder.rmdir()
    folder.symlink_to(lazy(made_folder(tmp_path / "real"), 5))
    text = (tmp_path / "real" / "create.py").read_text()
    put(
        tmp_path / "real",
        text.replace("os.path.dirname(__file__)", "os.path.dirname(os.path.realpath(__file__))"),
    )
    before = set(sys.modules)
    np.testing.assert_array_equal(field(folder), PRIOR + 5)
    assert set(sys.modules) == before


def test_a_foreign_module_of_a_neighbours_name_stays_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = aligner(lazy(folder, 3))
    monkeypatch.syspath_prepend(str(put(made_folder(tmp_path / "foreign"), "", {"lazily.py": "VALUE = 9"})))
    lazily = import_module("lazily")
    np.testing.assert_array_equal(model(SOURCE, TARGET, PRIOR), PRIOR + 3)
    assert sys.modules["lazily"] is lazily
    del sys.modules["lazily"]


BY_NAME = {
    "keywords alone": "def forward(**given): return given['src_agg_field'] + given['src_img'] - 2 * given['tgt_img']",
    "keyword-only": "def forward(*, src_img, tgt_img, src_agg_field): return src_agg_field + src_img - 2 * tgt_img",
    "another order": "def forward(src_agg_field, tgt_img, src_img): return src_agg_field + src_img - 2 * tgt_img",
    "in order": "def forward(a, b, src_agg_field): return src_agg_field + a - 2 * b",
    "any in order": "def forward(*given, src_agg_field, **more): return src_agg_field + given[0] - 2 * given[1]",
}


@pytest.mark.parametrize("function", BY_NAME.values(), ids=BY_NAME)
def test_images_are_given_by_name_where_their_order_does_not_tell(function: str, folder: Path) -> None:
    put(folder, f"{function}\ndef create(): return forward")
    np.testing.assert_array_equal(field(folder), PRIOR + SOURCE - 2 * TARGET)


STRANGE = """
import torch

class Strange(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if CALLED:
            raise RuntimeError(f"no {function}")
        return super().__torch_function__(function, types, arguments, keywords or {})

CALLED = False

def create():
    def forward(src_img, tgt_img, src_agg_field):
        global CALLED
        made = (src_agg_field * 3).as_subclass(Strange)
        CALLED = True
        return made
    return forward
"""


def test_a_tensor_of_a_class_of_its_own_is_stored_as_its_plain_numbers(folder: Path) -> None:
    put(folder, STRANGE)
    np.testing.assert_array_equal(field(folder), PRIOR * 3)


@pytest.mark.parametrize("kind", ["tuple", "list"])
def test_more_than_the_field_is_refused(kind: str, folder: Path) -> None:
    put(folder, f"def create(): return lambda s, t, src_agg_field: {kind}([src_agg_field, 1])")
    with pytest.raises(WorkError, match=f"returned {kind}: want a field tensor of shape"):
        field(folder)


def test_weights_that_would_run_code_are_refused_at_a_call_too(folder: Path) -> None:
    loading = "import torch\ndef create(): return lambda s, t, src_agg_field: torch.load('{}/kept.pt')"
    put(folder, loading.format(folder))
    torch.save(Network(), folder / "kept.pt")
    with pytest.raises(WorkError, match=r"create.py, line 2: .*UnpicklingError: Weights only load failed"):
        field(folder)


ON_OTHER_WAYS = """
import sys
print("as it is imported", file=sys.__stdout__)

def create():
    def forward(src_img, tgt_img, src_agg_field):
        print("as it runs", file=sys.__stdout__)
        return src_agg_field
    return forward
"""


def test_what_is_printed_to_another_name_of_stdout_goes_to_stderr(folder: Path) -> None:
    path = put(folder, ON_OTHER_WAYS)
    code = (
        "import sys, numpy; from pathlib import Path; sys.path[:0] = sys.argv[2:]; import test_aligners as t\n"
        "print('before'); t.field(Path(sys.argv[1])); print('after')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, ROOT, ROOT / "tests"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["before", "after"]
    assert "as it is imported\nas it runs\n" in done.stderr
