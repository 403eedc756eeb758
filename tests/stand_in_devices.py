"""Devices that are not there, with values: tensors on the CPU that say where they lie and refuse to meet others.

    with standing_in():                                        # cuda:0, cuda:1, ... can be named as devices
        a = torch.ones(2, device="cuda:0")
        a + torch.ones(2, device="cuda:1")                     # RuntimeError
        a.to("cuda:1") + torch.ones(2, device="cuda:1")        # computed, on the CPU, by the same kernels

Everything that a device would refuse is refused: tensors of two devices, or of one device and the CPU, in one
operation. What a device allows is allowed: copies, and numbers (tensors without a dimension) on the CPU. One rule is
stricter than CUDA's: indices on the CPU are refused too, since each would wait for the device.

Where torch sees real devices of that kind the tests that use this have nothing to add.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

KIND = "cuda"
_NUMBERS = {getattr(torch.Tensor, f"__{name}__") for name in ("bool", "int", "float", "index")}
_NUMBERS |= {torch.Tensor.item, torch.Tensor.tolist}
_COPIES = {torch.Tensor.copy_, torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class Standing(torch.Tensor):
    """A tensor that says it lies elsewhere; ``inner`` has its values, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device | None = None, requires_grad: bool = False) -> Any:
        if device is None:  # accelerate puts a weight where another of this class was
            return inner if isinstance(inner, Standing) else nn.Parameter(inner, requires_grad)
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=device
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):  # would ask for the device itself
            return _indexed(func, *args)
        if func in _NUMBERS:
            return func(args[0].inner)
        with torch._C.DisableTorchFunctionSubclass():
            try:
                return func(*args, **(kwargs or {}))
            except RuntimeError as error:
                if "not linked with support" not in str(error):
                    raise
            return _run(func, args, kwargs or {})

    def __repr__(self, *_args: Any, **_kwargs: Any) -> str:
        return f"{self.inner!r} on {self.device}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """So that what is made on a device that is not there is made at all.

    It takes the place of fake tensors, under which torch does not look for the device itself.
    """

    def __init__(self) -> None:
        super().__init__(_dispatch_key=None)
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.to, torch.ops.aten.type_as):  # comes whole in inference mode
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return _run(func, args, kwargs or {})


def _indexed(func: Any, own: torch.Tensor, at: Any, *value: Any) -> Any:
    """``own[at]``, or ``own[at] = value``, which between devices is a copy where ``at`` has slices and numbers only."""
    met = [each for each in tree_flatten(at)[0] if isinstance(each, torch.Tensor)]
    by_slices = not any(isinstance(each, list | torch.Tensor) for each in (at if isinstance(at, tuple) else (at,)))
    met += [each for each in value if isinstance(each, torch.Tensor) and each.dim() and not by_slices]
    _require_one_device(func, [own, *met])
    inner = [tree_map(_inner, each) for each in (own, at, *value)]
    found = func(*inner)
    return Standing(found, own.device) if isinstance(found, torch.Tensor) else found


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Standing) else value


def _require_one_device(func: Any, met: list[torch.Tensor]) -> None:
    devices = {each.device for each in met if each.dim() or isinstance(each, Standing)}
    if len(devices) > 1:
        raise RuntimeError(f"tensors on {', '.join(sorted(map(str, devices)))} meet in {func}")


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    met = [each for each in flat if isinstance(each, torch.Tensor)]
    if func not in _COPIES:
        _require_one_device(func, met)
    asked = kwargs.get("device")
    own_device = next((each.device for each in met if isinstance(each, Standing)), None)
    where = own_device if asked is None else torch.device(asked)
    if func in (torch.Tensor.copy_, torch.ops.aten.copy_.default):
        where = args[0].device
    inner_args, inner_kwargs = tree_unflatten([_inner(each) for each in flat], spec)
    if asked is not None and torch.device(asked).type == KIND:
        inner_kwargs["device"] = torch.device("cpu")
    if func is torch.ops.aten.histc.default:  # of whole numbers on CUDA only
        inner_args = (inner_args[0].float(), *inner_args[1:])
    found = func(*inner_args, **inner_kwargs)
    if where is None or where.type != KIND:
        return found
    # What is changed in place is given back as itself.
    own = {id(each.inner): each for each in met if isinstance(each, Standing)}

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, Standing):
            return value
        return own[id(value)] if id(value) in own else Standing(value, where)

    return tree_map(placed, found)


@contextmanager
def standing_in() -> Iterator[None]:
    """While devices of kind ``cuda`` can be computed on."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # data given as lists is made on the CPU and then moved
    try:
        with _Mode():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def laid_on(model: Any, blocks: nn.ModuleList, places: Sequence[str]) -> Any:
    """A model laid on devices by accelerate's own hooks: block b on ``places[b]``.

    What stands before the blocks is on the first of them, which takes the token ids, what follows on the last; a tied
    unembedding is where the embedding is.
    """
    from accelerate import dispatch_model

    device_map = dict(_places(model, "", {id(block): place for block, place in zip(blocks, places, strict=True)}))
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        device_map[next(name for name, module in model.named_modules() if module is head)] = places[0]
    skipped = model._skip_keys_device_placement
    return dispatch_model(model, device_map, main_device=places[0], skip_keys=skipped, force_hooks=True)


def _places(module: nn.Module, name: str, own: dict[int, str]) -> Iterator[tuple[str, str]]:
    """The map's names: blocks, and the largest modules without one."""
    order = [*own.values()]
    passed = False
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        inside = any(id(each) in own for each in child.modules())
        if id(child) in own:
            yield path, own[id(child)]
        elif inside:
            yield from _places(child, path, own)
        else:
            yield path, order[-1] if passed or not name else order[0]
        passed = passed or inside
