"""Plain Hugging Face decoders, read by plain hooks. Knows modules and caches; knows no text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probe.models.configuration import shape_of
from probe.models.edits import Edit
from probe.models.hooks import hooked
from probe.models.layers import find_blocks
from probe.models.protocol import Caching, Forward, ModelFacts, Reads
from probe.models.resume import Resumer, find_resumer
from probe.models.sources import ModelSource
from probe.models.spread import ONE_DEVICE, DeviceMap, Spread, device_map_of, load_over, main_device, require_room
from probe.models.streams import Streams, find_streams
from probe.models.tensor_parallel import divided, first_forward, join, processes_of, require_plan, whole_streams
from probe.values import ModelError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HFBackend:
    """A model from ``AutoModelForCausalLM``. Hooks are registered for one forward and are gone after it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = find_blocks(model)
        self.inputs = ForwardInputs(model)
        laid = device_map_of(model, self.blocks)
        with first_forward(model):
            streams, output = find_streams(model, self.blocks)
        self.streams = whole_streams(streams, self.blocks, processes_of(model))
        self.facts = facts_of(model, self.streams, caching_of(self.inputs.cache_in(output)), device_map=laid)

    @classmethod
    def load(
        cls, source: ModelSource, *, dtype: str, device: str, attention: str | None, spread: Spread = ONE_DEVICE
    ) -> HFBackend:
        """Load weights (safetensors only) in evaluation mode.

        ``dtype`` and ``device`` may be ``auto``: an accelerator if there is one, with the checkpoint's dtype there and
        float32 on the CPU. With a device map that kind of device gets as many weights as it has room for.

        Raises:
            ModelError: the folder does not load as a decoder, or not on such devices.
        """
        from transformers import AutoModelForCausalLM

        where = _device_over(device) if spread.device_map else resolve_device(device)
        parts = spread.tensor_parallel or 1
        if parts > 1:
            require_plan(source, parts)
            where = join(parts, where)
        wanted: torch.dtype | str = _DTYPES.get(dtype, torch.float32 if where.type == "cpu" else "auto")
        load = partial(
            AutoModelForCausalLM.from_pretrained,
            str(source.folder),
            dtype=wanted,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=source.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
        try:
            if spread.device_map:
                model, found = load_over(load, spread.device_map)
            else:
                model, found = load(**divided(parts)) if parts > 1 else load()
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()
            raise ModelError(
                f"{source.folder} does not load as a decoder: {reason[0] if reason else error!r}"
            ) from error
        _refuse_missing_weights(source, found)
        if spread.device_map:
            require_room(model, where)
        elif parts == 1:
            model = model.to(where)
        return cls(model.eval().requires_grad_(False))

    @cached_property
    def resumer(self) -> Resumer | None:
        """What starts forwards of this model at a layer; None where that does not give what whole ones give."""
        return find_resumer(self)

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
        self.facts.require((*reads.points, *(edit.point for edit in edits)))
        inputs, at = self.inputs.of(ids, mask, reads, cache, self.facts)
        with hooked(self.blocks, self.streams, reads, edits, ids.shape[1]) as recorded:
            output = self.model(**inputs)
        logits = self.inputs.logits_in(output, at)
        kept = None if self.facts.caching == "none" else self.inputs.cache_in(output)
        return Forward(logits, recorded.values, recorded.means, kept)


class ForwardInputs:
    """How a transformers decoder is called: by which names it takes a cache, positions and the logits that it keeps."""

    def __init__(self, model: Any) -> None:
        accepted = inspect.signature(type(model).forward).parameters
        self._accepts = {name for name in ("position_ids", "logits_to_keep") if name in accepted}
        self._cache_name = next((name for name in ("past_key_values", "cache_params") if name in accepted), None)

    def of(
        self, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, facts: ModelFacts
    ) -> tuple[dict[str, Any], Int[Tensor, "batch kept"]]:
        """The keyword arguments of one forward, and which of the logits that it then gives are each row's."""
        caching = facts.caching != "none"
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": caching, "return_dict": True}
        if cache is not None:
            assert self._cache_name is not None and caching
            inputs[self._cache_name] = cache
        if "position_ids" in self._accepts:
            # A row that has ended goes on unread until its batch has; its positions stay inside the context.
            last = None if facts.shape.context is None else facts.shape.context - 1
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0, max=last)[:, -ids.shape[1] :]
        keeps, at = "logits_to_keep" in self._accepts, reads.logits_at
        if at is None:
            # Said as a number: to find which columns are kept is to wait for the device at every step.
            inputs |= {"logits_to_keep": 1} if keeps else {}
            at = torch.full((ids.shape[0], 1), 0 if keeps else ids.shape[1] - 1, device=ids.device)
        elif keeps:
            kept = torch.unique(at)
            at = torch.searchsorted(kept, at.contiguous())
            # What is kept is chosen on the last block's device; as a list it fits any.
            inputs["logits_to_keep"] = kept if facts.device_map is None else kept.tolist()
        return inputs, at

    @staticmethod
    def logits_in(output: Any, at: Int[Tensor, "batch kept"]) -> Tensor:
        """The logits that were asked for, ``[batch, kept, vocab]`` in fp32."""
        rows = torch.arange(at.shape[0], device=at.device)[:, None]
        logits: Tensor = output.logits.to(at.device)[rows, at].float()
        return logits

    def cache_in(self, output: Any) -> Any:
        """The cache that a forward returned; None if this model has none."""
        return None if self._cache_name is None else getattr(output, self._cache_name, None)


def caching_of(cache: Any) -> Caching:
    """What the cache that a forward returned can do, by the kinds of its layers."""
    from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

    layers = getattr(cache, "layers", None) or []
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        return "recurrent"
    return "attention" if layers and all(isinstance(layer, CacheLayerMixin) for layer in layers) else "none"


def facts_of(
    model: Any, streams: Streams, caching: Caching, backend: str = "hf", device_map: DeviceMap | None = None
) -> ModelFacts:
    """The facts of a transformers model that is loaded, in evaluation mode."""
    attention = getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None)
    widths: Mapping[str, int] = streams.widths
    return ModelFacts(
        shape=shape_of(model.config, model.generation_config),
        dtype=model.dtype,
        device=main_device(model),
        architecture=type(model).__name__,
        attention=str(attention),
        backend=backend,
        caching=caching,
        widths=widths,
        missing=streams.missing,
        device_map=device_map,
        tensor_parallel=processes_of(model),
    )


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


def _device_over(wanted: str) -> torch.device:
    """The kind of device that a device map fills first.

    Raises:
        ModelError: another device is asked for.
    """
    kind = resolve_device("auto")
    if wanted not in ("auto", kind.type):
        raise ModelError(f"device_map chooses devices of kind {kind.type!r} here, found device {wanted!r}; use auto")
    return kind


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
