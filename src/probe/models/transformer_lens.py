"""Decoders in a TransformerBridge, read and edited at its hook points. Knows their names; knows no text.

The bridge wraps the modules of one transformers model for good, so that model is loaded for it alone. Its weights stay
as they are in the checkpoint: no folding, no centring. What is wrapped runs as a transformers forward, with
transformers' caches; the values come from the bridge.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probe.models.edits import Edit
from probe.models.hf import HFBackend
from probe.models.hooks import BlockPass, Recorded, block_passes
from probe.models.points import HookPoint
from probe.models.protocol import Backend, Forward, Reads
from probe.values import ModelError

NAME = "transformer-lens"
_MIXERS = ("hook_attn_out", "linear_attn.hook_out", "mixer.hook_out")
"""Where a bridge's block gives what attention, or what stands in its place, adds; the first that there is."""
_LENGTH = 8
_AGREE = {torch.float32: 1e-5, torch.float64: 1e-10}
_LEVEL = -1
"""The bridge's word for whose hooks these are: no context of its own counts so, and only these are removed."""


class TransformerLensBackend:
    """A model behind the hook points of a ``bridge``. Hooks are registered for one forward and are gone after it."""

    def __init__(self, hf: HFBackend) -> None:
        """Take over a loaded model and wrap it; streams that then are not what they were are left out.

        Raises:
            ModelError: no such library, an architecture that the bridge does not know, or residual points or logits
                that are not those of the model before it was wrapped.
        """
        before = {stream: _read(hf, stream) for stream in hf.facts.widths}
        self.bridge = _wrapped(hf)
        self.model = hf.model
        self._points = self.bridge.hook_dict
        self.facts = replace(hf.facts, backend=NAME, attention="eager")
        self._inputs = hf.inputs
        self._require_same(before)

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
        """See the protocol; the forward is that of the wrapped transformers model."""
        self.facts.require((*reads.points, *(edit.point for edit in edits)))
        inputs, at = self._inputs.of(ids, mask, reads, cache, self.facts)
        with self._hooked(reads, edits, ids.shape[1]) as recorded:
            output = self.model(**inputs)
        kept = None if self.facts.caching == "none" else self._inputs.cache_in(output)
        return Forward(self._inputs.logits_in(output, at), recorded.values, recorded.means, kept)

    @contextmanager
    def _hooked(self, reads: Reads, edits: Sequence[Edit], n_pos: int) -> Iterator[Recorded]:
        recorded, passes = block_passes(reads, edits, n_pos)
        with ExitStack() as hooks:
            for at, own in passes.items():
                for name, function in self._names(at, own):
                    self._hook(hooks, name, function, own.shape)
            yield recorded

    def _names(self, at: int, own: BlockPass) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """The hook points of a block that are met, and what is done there."""
        if at == self.facts.shape.n_layers:
            yield f"blocks.{at - 1}.hook_out", own.resid
            return
        if own.met & {"resid", "resid_mid"}:
            yield f"blocks.{at}.hook_in", own.resid
        if "head_out" in own.met:
            yield f"blocks.{at}.attn.hook_z", own.heads
        if own.met & {"attn_out", "resid_mid"}:
            yield self._mixer(at), own.attention
        if "mlp_out" in own.met:
            yield f"blocks.{at}.hook_mlp_out", own.mlp

    def _mixer(self, at: int) -> str:
        names = [f"blocks.{at}.{name}" for name in _MIXERS]
        return next((name for name in names if name in self._points), names[0])

    def _hook(self, hooks: ExitStack, name: str, function: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> None:
        def hook(value: Tensor, hook: Any) -> Tensor | None:
            given = value.reshape(*shape, -1)  # heads have an axis of their own here
            edited = function(given)
            return None if edited is given else edited.reshape(value.shape)

        point = self._points[name]
        # The bridge's own context manager lists all its hook points anew each time: as long as a small model's forward.
        hooks.callback(point.remove_hooks, "fwd", level=_LEVEL)
        point.add_hook(hook, level=_LEVEL)

    def _require_same(self, before: Mapping[str, Forward]) -> None:
        """Compare what the bridge gives with what plain hooks read before the model was wrapped."""
        architecture = self.facts.architecture
        size = _AGREE.get(self.facts.dtype, 2e-2)
        widths, missing = dict(self.facts.widths), dict(self.facts.missing)
        for stream, plain in before.items():
            try:
                now = _read(self, stream)
            except KeyError as absent:
                found = f"TransformerLens has no hook point {absent.args[0]} on {architecture}"
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, ValueError) as error:
                found = f"TransformerLens does not run {architecture}: {_first_line(error)}"
            else:
                off = max(_off(now.logits, plain.logits), _off(now.values.get(stream), plain.values[stream]))
                found = "" if off <= size else f"TransformerLens gives it off by {off:.1g} on {architecture}"
            if found and stream == "resid":
                raise ModelError(f"backend {NAME!r} cannot serve {architecture}: {found}; use --backend hf")
            if found:
                missing[stream] = found
                del widths[stream]
        self.facts = replace(self.facts, widths=widths, missing=missing)


def require_library() -> Any:
    """The part of TransformerLens that wraps a loaded model: it loads nothing, downloads nothing and installs nothing.

    Its other entrance, ``boot_transformers``, may run pip for models that also take images.

    Raises:
        ModelError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what it imports; nothing that we call
            from transformer_lens.model_bridge import sources
    except ModuleNotFoundError as error:
        if error.name != "transformer_lens":
            raise
        raise ModelError(
            f"backend {NAME!r} needs the package transformer-lens, which is not installed; "
            f'pip install "persona-probe[{NAME}]", or use --backend hf'
        ) from None
    return sources


def require_eager(attention: str | None) -> str:
    """The attention implementation of a bridge: with any other, hook points inside attention are not met.

    Raises:
        ModelError: another one is asked for.
    """
    if attention not in (None, "eager"):
        raise ModelError(
            f"backend {NAME!r} runs attention as 'eager', and model.attn_implementation is {attention!r}; "
            "leave it out, or use --backend hf"
        )
    return "eager"


def _wrapped(hf: HFBackend) -> Any:
    architecture, config = hf.facts.architecture, hf.model.config
    build = require_library().build_bridge_from_module
    try:
        return build(hf.model, architecture, hf_config=config, dtype=hf.facts.dtype, device=hf.facts.device)
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"backend {NAME!r} cannot serve {architecture}: {_first_line(error)}; use --backend hf"
        ) from error


def _read(backend: Backend, stream: str) -> Forward:
    """All layers of a stream at all tokens of a short text."""
    shape, device = backend.facts.shape, backend.facts.device
    ids = torch.randint(0, shape.vocab, (2, _LENGTH), generator=torch.Generator().manual_seed(0)).to(device)
    points = tuple(HookPoint(stream, layer) for layer in range(shape.n_layers + (stream == "resid")))
    columns = torch.arange(_LENGTH, device=device).expand(2, _LENGTH)
    return backend.forward(ids, torch.ones_like(ids), Reads(points, columns))


def _off(a: Tensor | None, b: Tensor) -> float:
    """max|a - b| / max|b|; infinite where there is nothing to compare."""
    if a is None or a.shape != b.shape:
        return float("inf")
    far = float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-6))
    return far if far == far else float("inf")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else repr(error)
