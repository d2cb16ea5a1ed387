"""Exported models: TorchScript files and programs of torch.export; ONNX files are loaded by `onnx_model`.

Where there is no prior, a model that cannot do without one gets zeros.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from .inputs import ROLES, Axis, Input, in_a_line, roles_of, values_of
from .models import FLAGS, PRIOR, SOURCE, TARGET, Model, placed
from .onnx_model import OnnxModel


def load_exported(path: Path, device: torch.device) -> Model:
    """The model in a file; a `UsageError` if it is not what its suffix says, or takes other inputs."""
    loaders: Mapping[str, Callable[[Path, torch.device], Model]] = {
        ".pt": ScriptModel,
        ".pt2": ProgramModel,
        ".onnx": OnnxModel,
    }
    return loaders[path.suffix](path, device)


class ScriptModel:
    """A TorchScript file."""

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            loaded = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, OSError) as error:
            raise UsageError(f"{path}: not a TorchScript file: {in_a_line(error)}") from None
        self._model = placed(loaded, device)
        arguments = loaded.forward.schema.arguments[1:]  # but for the module itself
        required = [argument for argument in arguments if not argument.has_default_value()]
        self._required = roles_of(path, [argument.name for argument in required])
        self._optional = [argument.name for argument in arguments if argument not in required]
        kinds = dict(zip(self._required, (argument.type.kind() for argument in required), strict=True))
        self._takes_no_none = kinds.get(PRIOR) == "TensorType"  # rather than OptionalType

    def __call__(self, source: torch.Tensor, target: torch.Tensor, prior: torch.Tensor | None) -> Any:
        """What the model returns; see `Model`."""
        values = values_of(source, target, prior, zeros=self._takes_no_none)
        optional = {name: values[name] for name in self._optional if name in ROLES}
        return self._model(*(values[role] for role in self._required), **optional)


class ProgramModel:
    """A program of torch.export."""

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            program = _on_device(torch.export.load(path), device)
            module = program.module()
        except Exception as error:  # torch has no class of errors for a file that it cannot read
            raise UsageError(f"{path}: not a program that this version of torch can load: {in_a_line(error)}") from None
        for weights in module.parameters():
            weights.requires_grad_(False)
        self._path, self._module = path, module
        self._structure = program.call_spec.in_spec
        nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
        examples = {name: nodes[name].meta.get("val") for name in names}  # what is no tensor is fixed
        tensors = [name for name in names if isinstance(examples[name], torch.Tensor)]
        roles = dict(zip(tensors, roles_of(path, tensors), strict=True))
        self._inputs = {name: _input(name, roles[name], examples[name], program.range_constraints) for name in tensors}
        self._examples = examples
        for name in FLAGS:
            if examples.get(name):
                raise UsageError(f"{path}: was exported with {name}={examples[name]}: export it with {name}=False")
        for name in tensors:
            if roles[name] in (SOURCE, TARGET) and not nodes[name].users:
                raise UsageError(
                    f"{path}: does not use {name}: export it with a tensor of its own for each input, for torch takes "
                    "two inputs that are one tensor for the same"
                )

    def __call__(self, source: torch.Tensor, target: torch.Tensor, prior: torch.Tensor | None) -> Any:
        """What the model returns; see `Model`."""
        if prior is not None and PRIOR in self._examples and PRIOR not in self._inputs:
            raise UsageError(f"{self._path}: was exported with {PRIOR}=None, but there is a prior: export it with one")
        values = values_of(source, target, prior)
        given = dict(self._examples)
        for name, each in self._inputs.items():
            tensor = values[each.role]
            each.check(self._path, tensor.shape)
            given[name] = tensor.to(each.dtype)
        arguments, keywords = torch.utils._pytree.tree_unflatten(list(given.values()), self._structure)
        return self._module(*arguments, **keywords)


def _on_device(program: Any, device: torch.device) -> Any:
    """The program on a device; untouched, if all of it is on the CPU and shall be."""
    from torch.export.passes import move_to_device_pass

    values = [*program.state_dict.values(), *program.constants.values()]
    values += [node.meta.get("val") for node in program.graph.nodes]
    devices = {value.device.type for value in values if isinstance(value, torch.Tensor)}
    return program if devices | {device.type} == {"cpu"} else move_to_device_pass(program, str(device))


def _input(name: str, role: str, example: torch.Tensor, limits: Mapping[Any, Any]) -> Input:
    return Input(name, role, example.dtype, tuple(_axis(size, limits) for size in example.shape))


def _axis(size: Any, limits: Mapping[Any, Any]) -> Axis:
    """The sizes along an axis, which torch knows as a number, as a symbol or as a multiple of one."""
    if isinstance(size, int):
        return Axis(size, size)
    expression = size.node.expr
    symbol = next(iter(expression.free_symbols))
    step = expression.coeff(symbol)
    limit = limits.get(symbol)
    if expression != step * symbol or not step.is_Integer or step < 1 or limit is None:
        return Axis()  # whatever else torch allows, it checks itself
    first, last = (int(end) * int(step) if end.is_Integer else None for end in (limit.lower, limit.upper))
    return Axis(first or 0, last, int(step))
