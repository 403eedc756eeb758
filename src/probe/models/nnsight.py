"""Decoders traced by nnsight, here or on NDIF. Knows where streams are; knows no text.

The model is the transformers model itself, shared and not changed. nnsight compiles the body of a ``with`` block from
this file's source and runs it while the model runs. Sent to NDIF, the body takes along what it names, and NDIF has not
this package: so it names tensors, numbers and nnsight's own objects only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probe.models.configuration import read_shape
from probe.models.edits import Edit
from probe.models.hf import ForwardInputs, HFBackend, facts_of
from probe.models.hooks import span_weights, upstream_first
from probe.models.layers import find_blocks
from probe.models.points import HookPoint
from probe.models.protocol import Forward, ModelFacts, Reads
from probe.models.sources import ModelSource
from probe.models.streams import BlockStreams, Streams
from probe.values import STREAMS, ModelError

NAME = "nnsight"
REMOTE = (False, "local", True)
"""Where traces run: here; here, by the way that leads to NDIF (packed up, unpacked, run); on NDIF."""


@dataclass(frozen=True, eq=False)
class _Place:
    """A module whose input (``given``) or output, times ``scale``, is a stream; in the order in which a block runs."""

    envoy: Any
    given: bool
    streams: tuple[str, ...]
    scale: float = 1.0


class _Traced:
    """What both backends here share: every forward is one trace."""

    facts: ModelFacts
    _traces: _Traces

    @torch.inference_mode()
    def forward(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch past_and_pos"],
        reads: Reads,
        *,
        cache: Any = None,
        edits: Sequence[Edit] = (),
    ) -> Forward:
        """See the protocol."""
        return self._traces.run(self.facts, ids, mask, reads, cache, edits)


class NNsightBackend(_Traced):
    """A model in this process, read and edited inside nnsight traces; one trace is one forward."""

    def __init__(self, hf: HFBackend, source: ModelSource, remote: bool | str = False) -> None:
        library = require_library()
        self.model = hf.model
        # What is packed up is a copy: a cache in it would not be the one that was passed.
        self.facts = replace(hf.facts, backend=NAME, caching="none" if remote else hf.facts.caching)
        if remote:
            traced = _pipeline(library, source, hf.model, device=hf.facts.device, dispatch=True)
        else:
            traced = library.NNsight(hf.model)
        places = _places(traced, hf.model, hf.streams.blocks)
        self._traces = _Traces(library.save, traced, places, hf.inputs, remote)


class NDIFBackend(_Traced):
    """A model that NDIF hosts; here is its configuration. Residual points are read, and no cache is passed."""

    def __init__(self, source: ModelSource) -> None:
        library = require_library()
        traced = _pipeline(library, source, source.id, revision=source.revision)
        model = traced._module  # on the meta device: modules without weights
        self.facts = _hosted_facts(model, source)
        places = _places(traced, model, [None] * self.facts.shape.n_layers)
        self._traces = _Traces(library.save, traced, places, ForwardInputs(model), True)


def require_library() -> Any:
    """nnsight. Importing it gives every object of this process a method ``save``.

    Raises:
        ModelError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what it imports; nothing that we call
            import nnsight
    except ModuleNotFoundError as error:
        if error.name != NAME:
            raise
        raise ModelError(
            f"backend {NAME!r} needs the package nnsight, which is not installed; "
            f'pip install "persona-probe[{NAME}]", or use --backend hf'
        ) from None
    return nnsight


@contextmanager
def answering(source: ModelSource) -> Iterator[None]:
    """The first traces of a model on NDIF, by which it is seen whether NDIF runs it at all.

    Raises:
        ModelError: it is not reached, or refuses.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # of nnsight, or of whatever it sends by (sockets, HTTP)
        said = str(error).strip().splitlines() or ["without a message"]
        raise ModelError(
            f"NDIF did not run {source.id} ({type(error).__name__}: {said[-1]}); see that the network reaches it, that "
            "it hosts this model, and that NDIF_API_KEY is set"
        ) from error


def _pipeline(library: Any, source: ModelSource, *model: Any, **settings: Any) -> Any:
    """What nnsight sends to NDIF is known there as a transformers pipeline; its tokenizer is not ours, and not used."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        str(source.folder), trust_remote_code=source.trust_remote_code, local_files_only=True
    )
    return library.TransformersModel(*model, task="text-generation", tokenizer=tokenizer, **settings)


def _hosted_facts(model: Any, source: ModelSource) -> ModelFacts:
    shape = read_shape(source)
    why = "of a model on NDIF this version reads residual points only"
    missing = {stream: why for stream in STREAMS if stream != "resid"}
    facts = facts_of(model, Streams((None,) * shape.n_layers, {"resid": shape.d_model}, missing), "none", NAME)
    return replace(facts, shape=shape, device=torch.device("cpu"))


def _places(traced: Any, model: Any, blocks: Sequence[BlockStreams | None]) -> list[list[_Place]]:
    """The places of each block, in the order in which it runs, and the one after the last."""
    modules = find_blocks(model)
    path = next(name for name, module in model.named_modules() if module is modules)
    envoys = [traced.get(f"{path}.{b}") for b in range(len(modules))]
    places = [list(_places_in(envoy, parts)) for envoy, parts in zip(envoys, blocks, strict=True)]
    return [*places, [_Place(envoys[-1], False, ("resid",))]]


def _places_in(envoy: Any, parts: BlockStreams | None) -> Iterator[_Place]:
    yield _Place(envoy, True, ("resid",))
    if parts is None:
        return
    if parts.heads is not None:
        yield _Place(envoy.get(parts.heads), True, ("head_out",))
    yield _Place(envoy.get(parts.attention.path), False, ("attn_out", "resid_mid"), parts.attention.scale)
    yield _Place(envoy.get(parts.mlp.path), False, ("mlp_out",), parts.mlp.scale)


class _Traces:
    """Forwards as nnsight traces."""

    def __init__(
        self, save: Any, traced: Any, places: list[list[_Place]], inputs: ForwardInputs, remote: bool | str
    ) -> None:
        self._save = save
        self._traced = traced
        self._places = places
        self._inputs = inputs
        self._remote = remote

    def run(
        self, facts: ModelFacts, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Sequence[Edit]
    ) -> Forward:
        """One forward; see the protocol."""
        facts.require((*reads.points, *(edit.point for edit in edits)))
        inputs, at = self._inputs.of(ids, mask, reads, cache, facts)
        met, steps = self._steps(reads, edits)
        read, averaged, output = self._trace(inputs, steps, reads)
        logits = output if self._remote else output.logits
        rows = torch.arange(at.shape[0], device=at.device)[:, None]
        return Forward(
            logits.to(at.device)[rows, at].float(),
            _by_stream(reads, met, read, at.device),
            {} if reads.spans is None else _by_stream(reads, met, averaged, at.device),
            None if facts.caching == "none" else self._inputs.cache_in(output),
        )

    def _steps(self, reads: Reads, edits: Sequence[Edit]) -> tuple[list[HookPoint], list[tuple[Any, ...]]]:
        """What is done at each place that is met, as plain tuples; and the points that are read, in their order."""
        met: list[HookPoint] = []
        steps, edits = [], upstream_first(edits)
        for layer, places in enumerate(self._places):
            here = {point.stream for point in (*reads.points, *(e.point for e in edits)) if point.layer == layer}
            for place in places:
                holds = "resid_mid" in here and "resid" in place.streams
                if not holds and not here & set(place.streams):
                    continue
                own = [point for point in reads.points if point.layer == layer and point.stream in place.streams]
                met += own
                acts = [_plain(e) for e in edits if e.point.layer == layer and e.point.stream in place.streams]
                taken = [point.stream == "resid_mid" for point in own]
                steps.append((place.envoy, place.given, place.scale, holds, acts, taken))
        return met, steps

    def _trace(
        self, inputs: dict[str, Any], steps: list[tuple[Any, ...]], reads: Reads
    ) -> tuple[list[Any], list[Any], Any]:
        """Values, means and the model's output (of a remote trace the logits alone): one entry for each read."""
        save, remote = self._save, self._remote
        how = {"remote": remote} if remote else {}
        size = inputs["input_ids"].shape
        columns, rows = reads.columns, torch.arange(size[0], device=reads.columns.device)[:, None]
        weights = None if reads.spans is None else span_weights(reads.spans, size[1])
        before: Any = None
        with self._traced.trace(**inputs, **how) as tracer:
            values, means = [], []
            for envoy, given, scale, holds, acts, taken in steps:
                whole = envoy.input if given else envoy.output
                own = whole[0] if isinstance(whole, tuple) else whole
                stood = own.reshape(size[0], size[1], -1)
                now = first = stood if scale == 1 else stood * scale
                for to_mid, kind, where, vector, basis, coordinates, gate, above in acts:
                    x = (before + now if to_mid else now).float()
                    where = where.to(x.device)
                    if gate is not None:
                        where = where & (x @ gate.to(x.device) > above.to(x.device))
                    if kind == "add":
                        new = x + vector.to(x.device)
                    elif kind == "add relative":
                        new = x + x.norm(dim=-1, keepdim=True) * vector.to(x.device)
                    elif kind == "patch":
                        new = vector.to(x.device).expand_as(x)
                    else:
                        span, wanted = basis.to(x.device), coordinates.to(x.device)
                        inside = x @ span.transpose(1, 2)
                        new = x + ((torch.minimum(inside, wanted) if kind == "cap" else wanted) - inside) @ span
                    new = new.to(now.dtype).float() - before.float() if to_mid else new
                    now = torch.where(where, new.to(now.dtype), now)
                if now is not first:
                    put = now if scale == 1 else torch.where(now == first, stood, now / scale)
                    put = put.reshape(own.shape)
                    if given:
                        envoy.input = put
                    else:
                        envoy.output = (put, *whole[1:]) if isinstance(whole, tuple) else put
                for of_mid in taken:
                    x = before + now if of_mid else now
                    values.append(x[rows.to(x.device), columns.to(x.device)])
                    if weights is not None:
                        means.append(torch.einsum("bsp,bpd->bsd", weights.to(x.device), x.float()))
                if holds:
                    before = now
                elif not given:
                    before = None
            values, means = save(values), save(means)
            output = save(tracer.result.logits if remote else tracer.result)
        return values, means, output


def _plain(edit: Edit) -> tuple[Any, ...]:
    """An edit as the tensors of its formula, in fp32 and with an axis for positions where there is none."""
    vector = None if edit.vector is None else edit.vector.float()[:, None, :]
    vector = vector if edit.values is None else edit.values.float()
    where = edit.where[:, :, None] if edit.columns is None else edit.where[:, :, None] & edit.inside
    basis = None if edit.basis is None else edit.basis.float()
    coordinates = None
    if basis is not None:
        coordinates = basis.new_zeros(len(basis), 1, basis.shape[1])
        if edit.coordinates is not None:
            coordinates = edit.coordinates.float()[:, None, :]
    gate = None if edit.gate is None else edit.gate.float()[:, :, None]
    above = None if edit.above is None else edit.above.float()[:, None, None]
    kind = f"{edit.kind} relative" if edit.relative else edit.kind
    return edit.point.stream == "resid_mid", kind, where, vector, basis, coordinates, gate, above


def _by_stream(reads: Reads, met: list[HookPoint], found: list[Tensor], device: torch.device) -> dict[str, Tensor]:
    """What was read, by stream, its layers in the order of the reads."""
    values = dict(zip(met, found, strict=True))
    streams = dict.fromkeys(point.stream for point in reads.points)
    return {
        stream: torch.stack([values[point] for point in reads.points if point.stream == stream]).to(device)
        for stream in streams
    }
