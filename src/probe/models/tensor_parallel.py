"""A model whose blocks are divided between processes. Knows transformers' plans, ranks and what is whole; runs nothing.

transformers cuts the weights of attention and MLP between the processes and sums what they give inside the modules'
forwards, before any hook sees it. So the residual stream and what each block adds to it are whole, and the same bits,
in every process; heads and neurons are not. Every forward is one of all processes: each makes the same ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from probe.models.layers import find_blocks
from probe.models.sources import ModelSource
from probe.models.streams import Streams
from probe.values import ModelError

_PATIENCE = timedelta(hours=2)
"""How long one process waits for another, which may still read weights; where one has died nobody waits."""

_HEADS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value")


def require_plan(source: ModelSource, processes: int) -> None:
    """Refuse a model that transformers does not know how to divide so, before any weight is read.

    Raises:
        ModelError: no plan for its blocks, or heads that cannot be divided evenly.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = source.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        said = str(error).strip().splitlines()
        raise ModelError(f"{source.folder} does not load as a decoder: {said[0] if said else error!r}") from error
    names = {id(module): name for name, module in model.named_modules()}
    stack = names[id(find_blocks(model))]
    plan: dict[str, str] = dict(model.tp_plan or {})
    inside = {name: style for name, style in plan.items() if name.startswith(f"{stack}.")}
    if not inside:
        raise ModelError(
            f"transformers has no plan to divide the blocks of {type(model).__name__} between {processes} processes; "
            "leave tensor_parallel out and use device_map: auto, which lays whole blocks on several devices"
        )
    if not any(name.endswith(_HEADS) and style == "colwise" for name, style in inside.items()):
        return
    text = config.get_text_config(decoder=True)
    for key, words in (("num_attention_heads", "heads"), ("num_key_value_heads", "heads of keys and values")):
        heads = getattr(text, key, None)
        if isinstance(heads, int) and heads % processes:
            raise ModelError(
                f"{type(model).__name__} has {heads} {words}, which {processes} processes cannot share evenly; "
                "choose a tensor_parallel that divides them, or use device_map: auto"
            )


def own_device(kind: str) -> torch.device:
    """The device of this process of a group, which is the current one from now on.

    To be asked for before anything is done on a device: else every process would take memory on the first.
    """
    if kind != "cuda":
        return torch.device(kind)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def join(processes: int, device: torch.device) -> torch.device:
    """Meet the other processes of the group; the device of this one.

    Raises:
        ModelError: this process is not one of so many, or its kind of device cannot be used so.
    """
    found = int(os.environ.get("WORLD_SIZE", "1"))
    if found != processes:
        raise ModelError(
            f"tensor_parallel: {processes} divides a model between {processes} processes, which only the workers of "
            "run, capture and swap are, and this one reads the model alone; use device_map: auto here"
        )
    if device.type not in ("cpu", "cuda") or torch.backends.mps.is_available():
        kind = "mps" if device.type == "cpu" else device.type
        raise ModelError(f"transformers divides a model on CUDA and on CPUs, and not where there is {kind}")
    own = own_device(device.type)
    if not dist.is_initialized():
        backend, bound = ("nccl", own) if own.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=_PATIENCE, device_id=bound)
    return own


def divided(processes: int) -> dict[str, Any]:
    """The arguments with which transformers' loaders divide a model."""
    from transformers.distributed.configuration_utils import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=processes)}


def processes_of(model: Any) -> int:
    """Between how many processes a loaded model is divided."""
    return int(getattr(model, "tp_size", None) or 1)


@contextmanager
def first_forward(model: Any) -> Iterator[None]:
    """What a model that cannot be divided so says in its first forward is told as a refusal.

    Raises:
        ModelError: instead of what a module says of shapes; the loss of another process is raised as it is.
    """
    processes = processes_of(model)
    try:
        yield
    except RuntimeError as error:
        if processes == 1 or isinstance(error, dist.DistError) or "gloo" in str(error):
            raise
        said = str(error).strip().splitlines()
        raise ModelError(
            f"{type(model).__name__} does not run between {processes} processes ({said[0] if said else error!r}); "
            "choose another tensor_parallel, or use device_map: auto"
        ) from error


def whole_streams(streams: Streams, blocks: nn.ModuleList, processes: int) -> Streams:
    """The streams without the heads' outputs, where a process has only those of its own heads."""
    if processes == 1 or "head_out" not in streams.widths:
        return streams
    for block, parts in zip(blocks, streams.blocks, strict=True):
        if parts is None or parts.heads is None:
            continue
        weight = block.get_submodule(parts.heads).weight
        assert isinstance(weight, Tensor)
        if parts.head_width != weight.shape[-1]:  # the shape of the whole
            widths = {name: width for name, width in streams.widths.items() if name != "head_out"}
            why = f"its heads are divided between {processes} processes"
            return replace(streams, widths=widths, missing={**streams.missing, "head_out": why})
    return streams


def gathered(weight: Tensor) -> Tensor:
    """A weight as a whole; every process must ask for it."""
    whole: Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return whole


@dataclass(frozen=True)
class Ranks:
    """The processes that hold a model together, or the one that holds it alone; every process calls the same methods
    in the same order."""

    count: int
    device: torch.device

    def first_says(self, flags: Sequence[bool]) -> list[bool]:
        """What the first process says, of flags that the others may see otherwise."""
        said = torch.tensor(list(flags), dtype=torch.uint8, device=self.device)
        if self.count > 1 and len(flags):
            dist.broadcast(said, src=0)
        return [bool(flag) for flag in said.tolist()]

    def require_same(self, digest: bytes, what: str) -> None:
        """Refuse what the processes did not find alike, to the bit.

        Raises:
            ModelError: the digests differ.
        """
        if self.count == 1:
            return
        own = torch.tensor(list(digest), dtype=torch.uint8, device=self.device)
        every = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(every, own)
        if any(not torch.equal(other, every[0]) for other in every):
            raise ModelError(
                f"the {self.count} processes that hold the model together have not found the same in {what}, so that "
                "nothing of it is kept; use device_map: auto, and report it with the model's config.json"
            )
