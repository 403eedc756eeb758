"""A model over several devices: how it is asked for, and where accelerate has laid it. Knows modules; runs nothing."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from probe.values import ModelError

_OFFLOADED = ("cpu", "disk")


@dataclass(frozen=True)
class Spread:
    """Over which devices a model is to lie, where that is more than one.

    ``device_map`` lays whole blocks on devices, as accelerate does by that name. ``tensor_parallel`` cuts every block
    into so many parts.

    Raises:
        ModelError: both are asked for.
    """

    device_map: str | None = None
    tensor_parallel: int | None = None

    def __post_init__(self) -> None:
        if self.device_map is not None and self.tensor_parallel is not None:
            raise ModelError("a model is loaded with device_map or with tensor_parallel, found both; leave one out")

    def __bool__(self) -> bool:
        return self.device_map is not None or self.tensor_parallel is not None

    def require(self, backend: str) -> None:
        """Refuse what cannot be loaded so, before weights are read.

        Raises:
            ModelError: a backend that reads one device only, or a missing library.
        """
        if not self:
            return
        asked = "tensor_parallel" if self.device_map is None else "device_map"
        if backend != "hf":
            raise ModelError(f"only the backend hf reads a model with {asked}, found {backend!r}; use --backend hf")
        if importlib.util.find_spec("accelerate") is None:
            raise ModelError(
                f"{asked} needs the package accelerate, which is not installed; "
                f'pip install "persona-probe[big]", or leave {asked} out'
            )


ONE_DEVICE = Spread()


@dataclass(frozen=True)
class DeviceMap:
    """Where the weights of a loaded model lie.

    ``blocks`` has for each block the device that holds its weights: ``cuda:0``, or ``cpu`` (main memory) and ``disk``.
    ``fetched`` are the bytes of weights that lie elsewhere than where they are computed with, by ``cpu`` and ``disk``:
    each forward fetches them.
    """

    blocks: tuple[str, ...]
    fetched: Mapping[str, int]

    def __str__(self) -> str:
        """``cuda:0 x 16 blocks, cuda:1 x 16 blocks``; ``cpu`` is main memory."""
        runs = ((device, len(list(run))) for device, run in groupby(self.blocks))
        return ", ".join(f"{device} x {n} block{'s' if n > 1 else ''}" for device, n in runs)

    @property
    def told(self) -> str:
        """The same as a line for whoever runs it, with what is fetched."""
        places = {"cpu": "main memory", "disk": "disk"}
        parts = [f"{n / 1e9:.3g} GB from {places[name]}" for name, n in self.fetched.items()]
        slow = f"; each forward fetches {' and '.join(parts)}, which is slow and changes nothing else" if parts else ""
        return f"the model lies on {self}{slow}"

    def shares(self, main: torch.device) -> dict[torch.device, float]:
        """The part of the blocks that each device computes; ``main`` computes also those that are fetched."""
        own = [str(main) if device in _OFFLOADED else device for device in self.blocks]
        return {torch.device(name): own.count(name) / len(own) for name in dict.fromkeys((str(main), *own))}


def device_map_of(model: Any, blocks: nn.ModuleList) -> DeviceMap | None:
    """Where accelerate has laid a model; None where it has not, or all of it on one device.

    Raises:
        ModelError: a block is divided between devices that compute.
    """
    if not hasattr(model, "_hf_hook"):
        return None
    laid: dict[str, str] = {name: _device_name(device) for name, device in model.hf_device_map.items()}
    names = {id(module): name for name, module in model.named_modules()}
    main = str(main_device(model))
    own = [_devices_below(names[id(block)], laid) for block in blocks]
    for b, devices in enumerate(own):
        computing = {main if device in _OFFLOADED else device for device in devices}
        if len(computing) > 1:
            raise ModelError(
                f"block {b} of {type(model).__name__} is divided between {', '.join(sorted(computing))}, which its "
                "forward cannot do; transformers does not know it as one piece, so leave device_map out"
            )
    fetched = dict.fromkeys((name for name in _OFFLOADED if name != main), 0)
    for name, weight in model.named_parameters():
        if (device := _lies_on(name, laid)) in fetched:
            fetched[device] += weight.numel() * weight.itemsize
    blocks_on = tuple(max(devices, key=lambda name: (name in _OFFLOADED, name)) for devices in own)
    return DeviceMap(blocks_on, {name: n for name, n in fetched.items() if n})


def main_device(model: Any) -> torch.device:
    """The device that a model takes token ids on, and gives its logits on.

    Where weights are fetched for each forward the first of them says nothing; accelerate's hook on the model does.
    """
    hook = getattr(model, "_hf_hook", None)
    return torch.device(model.device if hook is None else _device_name(hook.execution_device))


def require_room(model: Any, wanted: torch.device) -> None:
    """Refuse a model for none of which there was room where it is to be computed.

    Raises:
        ModelError: it would be computed on another kind of device, in a dtype that was meant for this one.
    """
    found = main_device(model)
    if found.type != wanted.type:
        raise ModelError(
            f"device_map found no room for any block on {wanted.type}, and would compute on {found.type}; free its "
            "memory, or choose the device yourself and leave device_map out"
        )


def load_over(load: Callable[..., tuple[Any, Any]], device_map: str) -> tuple[Any, Any]:
    """What ``load``, which is one of transformers' loaders, gives with the arguments that lay a model on devices.

    Weights that must be written anew to be fetched from disk go to a folder below the system's temporary one, which is
    gone when the model is.
    """
    folder = tempfile.mkdtemp(prefix="probe-weights-")
    log = logging.getLogger("accelerate.big_modeling")
    log.addFilter(_says_more)
    try:
        model, found = load(device_map=device_map, offload_folder=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        log.removeFilter(_says_more)
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model, found


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """While weights of a module are read: they stand where it computes, though it may fetch them for each forward."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def _says_more(record: logging.LogRecord) -> bool:
    """Not that weights are fetched, which accelerate tells without saying how many; everything else."""
    return "on the meta device" not in record.getMessage()


def _lies_on(name: str, laid: Mapping[str, str]) -> str:
    """The device of a module or a weight: that of the longest name in the map that it begins with."""
    above = [own for own in laid if own in ("", name) or name.startswith(f"{own}.")]
    return laid[max(above, key=len)] if above else ""


def _devices_below(name: str, laid: Mapping[str, str]) -> list[str]:
    """The devices of a module, as a whole or in parts."""
    parts = {device for own, device in laid.items() if own.startswith(f"{name}.")}
    return sorted(parts or {_lies_on(name, laid)})


def _device_name(device: Any) -> str:
    """A device as accelerate names it: devices of the accelerator by their numbers."""
    if device == "disk":
        return "disk"
    kind = torch.accelerator.current_accelerator()
    return str(torch.device(kind.type if kind else "cuda", device) if isinstance(device, int) else torch.device(device))
