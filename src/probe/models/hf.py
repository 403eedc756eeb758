"""Plain Hugging Face decoders, read by plain hooks. Knows modules and caches; knows no text."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from probe.models.configuration import shape_of
from probe.models.edits import Edit
from probe.models.layers import find_blocks
from probe.models.points import HookPoint
from probe.models.protocol import Forward, ModelFacts, Reads
from probe.models.sources import ModelSource
from probe.values import ModelError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HFBackend:
    """A model from ``AutoModelForCausalLM``. Hooks are registered for one forward and are gone after it."""

    def __init__(self, model: Any, facts: ModelFacts) -> None:
        self.model = model
        self.facts = facts
        self.blocks = find_blocks(model)
        accepted = inspect.signature(type(model).forward).parameters
        self._accepts = {name for name in ("position_ids", "logits_to_keep") if name in accepted}
        self._cache_name = next((name for name in ("past_key_values", "cache_params") if name in accepted), None)
        if self._cache_name is None:
            raise ModelError(f"{type(model).__name__} takes no cache, so its answer cannot continue from one prefill")

    @classmethod
    def load(cls, source: ModelSource, *, dtype: str, device: str, attention: str | None) -> HFBackend:
        """Load weights (safetensors only) in evaluation mode.

        ``dtype`` and ``device`` may be ``auto``: an accelerator if there is one, with the checkpoint's dtype there and
        float32 on the CPU.

        Raises:
            ModelError: the folder does not load as a decoder.
        """
        from transformers import AutoModelForCausalLM

        where = resolve_device(device)
        wanted: torch.dtype | str = _DTYPES.get(dtype, torch.float32 if where.type == "cpu" else "auto")
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                str(source.folder),
                dtype=wanted,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=source.trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()
            raise ModelError(
                f"{source.folder} does not load as a decoder: {reason[0] if reason else error!r}"
            ) from error
        _refuse_missing_weights(source, found)
        model = model.to(where).eval().requires_grad_(False)
        return cls(model, _facts(model, where))

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
        """See the protocol; position ids count the mask, so that left padding shifts nothing."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True, "return_dict": True}
        assert self._cache_name is not None
        if cache is not None:
            inputs[self._cache_name] = cache
        if "position_ids" in self._accepts:
            # A row that has ended goes on unread until its batch has; its positions stay inside the context.
            last = None if self.facts.shape.context is None else self.facts.shape.context - 1
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0, max=last)[:, -ids.shape[1] :]
        at = reads.logits_at
        if at is None:
            at = torch.full((ids.shape[0], 1), ids.shape[1] - 1, device=ids.device)
        kept = torch.unique(at)
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = kept
            at = torch.searchsorted(kept, at)
        with self._hooked(reads, edits) as recorded:
            output = self.model(**inputs)
        rows = torch.arange(ids.shape[0], device=ids.device)[:, None]
        logits = output.logits[rows, at].float()
        return Forward(logits, *recorded.by_stream(), getattr(output, self._cache_name))

    @contextmanager
    def _hooked(self, reads: Reads, edits: Sequence[Edit]) -> Iterator[_Recorded]:
        recorded = _Recorded(reads)
        with ExitStack() as hooks:
            for edit in edits:
                self._hook(hooks, edit.point.layer, edit)
            for point in reads.points:
                self._hook(hooks, point.layer, lambda hidden, point=point: recorded.take(point, hidden))
            yield recorded

    def _hook(self, hooks: ExitStack, layer: int, function: Any) -> None:
        """Call ``function(hidden)`` at a residual point; what it returns, unless None, replaces ``hidden``."""
        if layer < len(self.blocks):

            def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if args:
                    replaced = function(args[0])
                    return None if replaced is None else ((replaced, *args[1:]), kwargs)
                replaced = function(kwargs["hidden_states"])
                return None if replaced is None else (args, {**kwargs, "hidden_states": replaced})

            handle = self.blocks[layer].register_forward_pre_hook(before, with_kwargs=True)
        else:

            def after(_module: Any, _args: Any, output: Any) -> Any:
                if isinstance(output, tuple):  # a bare output[0] on a tensor would be batch row 0
                    replaced = function(output[0])
                    return None if replaced is None else (replaced, *output[1:])
                return function(output)

            handle = self.blocks[-1].register_forward_hook(after)
        hooks.callback(handle.remove)


class _Recorded:
    """What the hooks of one forward took: small copies, so that no activation outlives its block."""

    def __init__(self, reads: Reads) -> None:
        self._rows = torch.arange(reads.columns.shape[0], device=reads.columns.device)[:, None]
        self._columns = reads.columns
        self._spans = reads.spans
        self._weights: Tensor | None = None
        self._points = reads.points
        self._values: dict[HookPoint, Tensor] = {}
        self._means: dict[HookPoint, Tensor] = {}

    def take(self, point: HookPoint, hidden: Float[Tensor, "batch pos width"]) -> None:
        self._values[point] = hidden[self._rows, self._columns]
        if self._spans is not None:
            self._means[point] = einsum(
                self._span_weights(hidden.shape[1]), hidden.float(), "batch span pos, batch pos d -> batch span d"
            )

    def by_stream(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values and means of each stream, its layers in the order of the reads."""
        streams = dict.fromkeys(point.stream for point in self._points)
        own = {stream: [point for point in self._points if point.stream == stream] for stream in streams}
        values = {stream: torch.stack([self._values[point] for point in points]) for stream, points in own.items()}
        if self._spans is None:
            return values, {}
        return values, {stream: torch.stack([self._means[point] for point in points]) for stream, points in own.items()}

    def _span_weights(self, n_pos: int) -> Float[Tensor, "batch span pos"]:
        if self._weights is None:
            assert self._spans is not None
            at = torch.arange(n_pos, device=self._spans.device)
            start, end = rearrange(self._spans, "batch span two -> two batch span 1")
            inside = ((start <= at) & (at < end)).float()
            self._weights = inside / inside.sum(-1, keepdim=True).clamp(min=1)
        return self._weights


def _refuse_missing_weights(source: ModelSource, found: dict[str, Any]) -> None:
    """transformers fills weights that a checkpoint lacks with random numbers; those would be captured as data."""
    for kind, words in (("missing_keys", "lacks"), ("mismatched_keys", "has in another shape")):
        names = sorted(str(name) for name in found.get(kind, ()))
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"{source.folder} {words} weights that its config.json asks for ({names[0]}{more}); "
                "save the whole model for causal language modelling"
            )


def resolve_device(wanted: str) -> torch.device:
    """The device of a name; ``auto`` is an accelerator if there is one.

    Raises:
        ModelError: torch cannot use such a device here.
    """
    if wanted != "auto":
        try:
            torch.empty(0, device=wanted)
            return torch.device(wanted)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ModelError(
                f"device {wanted!r} is not usable here: {str(error).splitlines()[0]}; use auto or cpu"
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _facts(model: Any, device: torch.device) -> ModelFacts:
    return ModelFacts(
        shape=shape_of(model.config, model.generation_config),
        dtype=model.dtype,
        device=device,
        architecture=type(model).__name__,
        attention=str(model.config.get_text_config(decoder=True)._attn_implementation),
        backend="hf",
        caching="attention",
        widths={"resid": model.config.get_text_config(decoder=True).hidden_size},
        missing={},
    )
