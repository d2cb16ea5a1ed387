"""ONNX files, which onnxruntime runs. It is not among the requirements: only who has such files needs it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from .inputs import Axis, Input, in_a_line, roles_of, values_of

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": bool,
}
_ON_CPU = "run on the CPU with --cpu_workers N"


class OnnxModel:
    """An ONNX file. Its output is the one that is named `field`, or the only one."""

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UsageError(f"{path}: onnxruntime cannot be imported: {in_a_line(error)}") from None
        providers = _providers(onnxruntime, path, device)
        try:
            session = onnxruntime.InferenceSession(path, _options(onnxruntime), providers)
        except Exception as error:  # the classes of its errors have nothing in common
            raise UsageError(f"{path}: onnxruntime cannot load it: {in_a_line(error)}") from None
        if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise UsageError(f"{path}: onnxruntime finds no CUDA libraries of its version: install them, or {_ON_CPU}")
        self._path, self._session = path, session
        inputs = session.get_inputs()
        roles = roles_of(path, [each.name for each in inputs])
        self._inputs = [_input(path, each, role) for each, role in zip(inputs, roles, strict=True)]
        self._output = _output(path, [each.name for each in session.get_outputs()])

    def __call__(self, source: torch.Tensor, target: torch.Tensor, prior: torch.Tensor | None) -> Any:
        """The field that the model returns; see `Model`."""
        values = values_of(source, target, prior)
        given = {}
        for each in self._inputs:
            value = values[each.role]
            if isinstance(value, torch.Tensor):
                each.check(self._path, value.shape)
                value = value.cpu().numpy()
            given[each.name] = np.asarray(value, each.dtype)
        (field,) = self._session.run([self._output], given)
        return torch.from_numpy(field)


def _options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as the worker has set
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # errors are raised, too
    # Threads that wait for work leave the CPU to those that read and encode other pairs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _providers(onnxruntime: Any, path: Path, device: torch.device) -> list[Any]:
    if device.type != "cuda":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UsageError(
            f"{path}: the onnxruntime that is installed has no CUDA: pip uninstall onnxruntime, then pip install "
            f"onnxruntime-gpu; or {_ON_CPU}"
        )
    # By default, the convolution that is fastest in a trial is taken, which is not always the same one.
    cuda = {"device_id": device.index or 0, "cudnn_conv_algo_search": "DEFAULT"}
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]


def _input(path: Path, found: Any, role: str) -> Input:
    if found.type not in _TYPES:
        raise UsageError(f"{path}: its input {found.name} is {found.type}: want tensor(float)")
    axes = (Axis(size, size) if isinstance(size, int) else Axis() for size in found.shape)
    return Input(found.name, role, _TYPES[found.type], tuple(axes))


def _output(path: Path, names: Sequence[str]) -> str:
    if "field" in names:
        return "field"
    if len(names) != 1:
        raise UsageError(f"{path}: returns {', '.join(names)}: want one output, or one that is named field")
    return names[0]
