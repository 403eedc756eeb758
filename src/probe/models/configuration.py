"""What a model's configuration files say. Knows config.json and generation_config.json; loads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from probe.models.sources import ModelSource
from probe.values import ModelError

_TAKEN = {"eos_token_id", "pad_token_id", "bos_token_id", "use_cache", "transformers_version"}
_REPORTS = ("output_", "return_", "_")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class ModelShape:
    """A decoder's sizes and end tokens, as its files state them.

    ``n_layers`` blocks give ``n_layers + 1`` residual points. ``context`` is the longest sequence in tokens, None if
    unbounded. ``end_ids`` stop a generation. ``ignored`` are settings of the model's own generation configuration that
    are not applied (a repetition penalty, sampling): they would make the written label differ from the preferred one.
    ``pad_id`` fills what the mask hides; any token of the vocabulary would do.
    ``heads_width`` is that of all ``n_heads`` attention heads side by side; both are None where the configuration has
    none.
    """

    n_layers: int
    d_model: int
    vocab: int
    context: int | None
    end_ids: tuple[int, ...]
    pad_id: int
    dtype: str
    ignored: Mapping[str, Any] = field(default_factory=dict)
    heads_width: int | None = None
    n_heads: int | None = None


def read_shape(source: ModelSource) -> ModelShape:
    """The shape of a model folder, without its weights.

    Raises:
        ModelError: the configuration is not one that transformers knows.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(
            str(source.folder), trust_remote_code=source.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source.folder}/config.json is not usable: {str(error).strip().splitlines()[0]}") from error
    file = source.folder / "generation_config.json"
    try:
        generation = (
            GenerationConfig.from_pretrained(str(source.folder), local_files_only=True) if file.exists() else None
        )
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{file} is not usable: {str(error).strip().splitlines()[0]}") from error
    return shape_of(config, generation)


def shape_of(config: Any, generation: Any) -> ModelShape:
    """The shape that a configuration and a generation configuration (or None) describe."""
    text = config.get_text_config(decoder=True)
    own: dict[str, Any] = {} if generation is None else generation.to_diff_dict()
    ends = own.get("eos_token_id", getattr(text, "eos_token_id", None))
    end_ids = tuple(ends) if isinstance(ends, list | tuple) else ((ends,) if ends is not None else ())
    pads = (own.get("pad_token_id"), getattr(text, "pad_token_id", None), *end_ids)
    limits = [getattr(text, key) for key in _CONTEXT_KEYS if getattr(text, key, None)] + _longrope_limits(text)
    dtype = str(getattr(text, "dtype", None) or getattr(config, "dtype", None) or "float32")
    return ModelShape(
        n_layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        vocab=text.vocab_size,
        context=min(limits) if limits else None,
        end_ids=end_ids,
        pad_id=next((pad for pad in pads if pad is not None and 0 <= pad < text.vocab_size), 0),
        dtype=dtype.removeprefix("torch."),
        ignored={k: v for k, v in own.items() if k not in _TAKEN and not k.startswith(_REPORTS)},
        heads_width=_heads_width(text),
        n_heads=getattr(text, "num_attention_heads", None) or None,
    )


def _longrope_limits(text: Any) -> list[int]:
    """Where LongRoPE changes its frequencies: for all rows of a batch, as soon as one of them is longer.

    What a row gives would depend on the others, and keys in the cache would be of both kinds; so it ends there.
    """
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    found = [each.get("original_max_position_embeddings") for each in kinds if each.get("rope_type") == "longrope"]
    return [limit for limit in found if limit]


def _heads_width(text: Any) -> int | None:
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        return None
    width = getattr(text, "v_head_dim", None) or getattr(text, "head_dim", None)
    return int(heads) * int(width) if width else int(text.hidden_size)
