"""A model that the processes of a group hold together, read in each of them, for tests. Writes what each has read.

    work = Work("tests.models.divided_models:read", json.dumps([folder, n]))

A row is a folder of a model. What process k reads of it stands in ``folder/NAME.k.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.distributed.parallel_utils import _use_local_dtensor_params
from transformers.distributed.tensor_parallel import ColwiseParallel, RowwiseParallel

from probe.engines import Ticket
from probe.engines.groups import rank
from probe.models import find_model, loading
from probe.models.edits import Edit
from probe.models.hf import HFBackend
from probe.models.loading import load_backend
from probe.models.points import HookPoint
from probe.models.protocol import Backend
from probe.models.readout import find_readout
from probe.models.spread import ONE_DEVICE, Spread
from tests.models.backend_parity import LENGTHS, forward, points_of
from tests.tiny_models import VOCABULARY

CHOSEN = (5, 17, 400)


def loaded(folder: Path, spread: Spread = ONE_DEVICE) -> Backend:
    """A model in fp32 on the CPU, checked."""
    source = find_model(str(folder))
    return load_backend(source, backend="hf", dtype="float32", device="cpu", attention=None, spread=spread)


def found(backend: Backend) -> dict[str, torch.Tensor]:
    """Every stream but the heads' outputs, without and with edits; the rows of the unembedding for some tokens."""
    points = tuple(point for point in points_of(backend) if point.stream != "head_out")
    tensors = {}
    for name, edits in (("plain", ()), ("edited", edits_of(backend))):
        read = forward(backend, points, edits=edits)
        tensors |= {f"{name}.logits": read.logits}
        tensors |= {f"{name}.{stream}": value for stream, value in read.values.items()}
        tensors |= {f"{name}.mean.{stream}": value for stream, value in read.means.items()}
    readout = find_readout(backend, CHOSEN)
    if readout is not None:
        tensors |= {f"readout.{name}": torch.from_numpy(value.copy()) for name, value in readout.tensors().items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def edits_of(backend: Backend) -> tuple[Edit, ...]:
    """Something added to the residual and to what attention and MLP add, at the last tokens of one row."""
    where = torch.zeros(2, LENGTHS[0], dtype=torch.bool)
    where[0, -3:] = True
    generator = torch.Generator().manual_seed(3)
    width = backend.facts.widths["resid"]
    streams = [stream for stream in ("resid", "attn_out", "mlp_out") if stream in backend.facts.widths]
    return tuple(
        Edit(HookPoint(stream, 1), "add", where, vector=torch.randn(2, width, generator=generator))
        for stream in streams
    )


def held(backend: Backend) -> float:
    """Which part of the weights this process holds."""
    assert isinstance(backend, HFBackend)
    weights = list(backend.model.parameters())
    own = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in weights]
    return sum(weight.numel() for weight in own) / sum(weight.numel() for weight in weights)


def read_wrongly_divided(opening: str, ticket: Ticket) -> Mapping[str, object]:
    """Read a model whose sums have a bias from every process, or whose logits are each those of the token before.

    The opening has, beside what it has for ``read``, which of both, and whether parts are compared with the whole.
    """
    folder, n, where, checked = json.loads(opening)

    @contextmanager
    def bias_in_every_part(_style: Any, module: Any, _mesh: Any) -> Iterator[None]:
        with _use_local_dtensor_params(module):
            yield

    def shifted(_style: Any, _module: Any, output: Any, _mesh: Any) -> Any:
        logits = whole_output(_style, _module, output, _mesh)
        return logits.roll(1, -1) if logits.shape[-1] == VOCABULARY else logits

    if where == "unembedding":
        whole_output = ColwiseParallel.transform_output_post_forward
        ColwiseParallel.transform_output_post_forward = shifted
    else:
        RowwiseParallel.context_around_forward = bias_in_every_part
    if not checked:
        loading.check_divided = lambda model, blocks: None
    return read(json.dumps([folder, n]), ticket)


def read(opening: str, ticket: Ticket) -> Mapping[str, object]:
    """Read the models of a ticket; why heads are missing, of which kind the cache is, and what part is held here."""
    folder, n = json.loads(opening)
    told: dict[str, object] = {}
    for row in ticket.rows:
        backend = loaded(Path(row), Spread(tensor_parallel=n))
        name = Path(row).name
        save_file(found(backend), Path(folder) / f"{name}.{rank()}.safetensors")
        facts = backend.facts
        told[name] = [facts.tensor_parallel, facts.missing.get("head_out", ""), facts.caching, held(backend)]
    return told
