"""What a shard's header may say of its rows and tensors. Knows kinds and shapes; reads no tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from probe.store.shard_format import DTYPES, TensorSpec

_TEXT = ("row_id", "persona", "case", "prompt_sha", "tokens_sha", "status")
_TEXT_OR_NONE = ("label", "letter")
_COUNTS = ("n_prompt", "n_gen")
_FLAGS = ("letter_first", "nonfinite")
_ITEMS = {"layers": int, "positions": str, "label_sites": str, "options": str, "rows": dict}
_LABELS = {"label_logp": "F32", "label_mass": "F32", "entropy": "F32", "topk_ids": "I32", "topk_logp": "F32"}
_LABELS |= {"label_variant_ids": "I32", "label_variant_logp": "F32"}
_LAYER = re.compile(r"\.L\d+$")
_RAGGED = {"tokens": "I32", "gen_tokens": "I32", "gen_text": "U8", "given_logp": "F32"}


def fault_of_row(row: Any) -> str:
    """What is wrong with one line of a row table, in a few words; empty where nothing is."""
    if not isinstance(row, dict):
        return "a row is no mapping"
    wrong = [key for key in _TEXT if not isinstance(row.get(key), str)]
    wrong += [key for key in _TEXT_OR_NONE if not isinstance(row.get(key, 0), str | None)]
    wrong += [key for key in _COUNTS if not _is_count(row.get(key))]
    wrong += [key for key in _FLAGS if not (isinstance(row.get(key), bool) or _is_count(row.get(key)))]
    wrong += [key for key, absent in (("condition", 0), ("extra", {})) if not isinstance(row.get(key, absent), dict)]
    span = row.get("span")
    if span is not None and not (isinstance(span, list) and len(span) == 2 and all(map(_is_count, span))):
        wrong.append("span")
    return f"a row has no valid {wrong[0]!r}" if wrong else ""


def fault_of_list(key: str, values: list[Any]) -> str:
    """What is wrong with one of the lists of a header's metadata; empty where nothing is."""
    sound = all(type(value) is _ITEMS[key] for value in values)
    return "" if sound else f"its header's {key!r} holds something else than {_ITEMS[key].__name__}"


def fault_of_tensor(name: str, spec: TensorSpec, sizes: Mapping[str, int]) -> str:
    """What is wrong with dtype and shape of a tensor that readers use; empty where nothing is.

    ``sizes`` counts ``rows``, ``positions``, ``label_sites`` and ``options``.
    """
    rows, sites, options = sizes["rows"], sizes["label_sites"], sizes["options"]
    fixed: dict[str, tuple[int | None, ...]] = {
        "positions": (rows, sizes["positions"]),
        "label_logp": (rows, sites, options),
        "label_mass": (rows, sites),
        "entropy": (rows, sites),
        "topk_ids": (rows, sites, None),
        "topk_logp": (rows, sites, None),
        "label_variant_ids": (rows, sites, options, None),
        "label_variant_logp": (rows, sites, options, None),
        "offsets": (rows + 1,),
        "sets": (rows,),
    }
    kind, _, rest = name.partition(".")
    if kind in _RAGGED:
        code, shape = ("I64", fixed["offsets"]) if rest == "offsets" else (_RAGGED[kind], (None,))
    elif kind in ("rows", "crc"):
        code, shape = ("I32" if kind == "rows" else "I64"), (None,)
    elif kind in fixed:
        code, shape = _LABELS.get(kind, "I32"), fixed[kind]
    elif _LAYER.search(name):  # activations of any stream
        code, shape = ("BF16" if spec.dtype == DTYPES["BF16"] else "F32"), (None, None)
    else:
        return ""
    fits = len(spec.shape) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, spec.shape, strict=True)
    )
    return (
        ""
        if fits and spec.dtype == DTYPES[code]
        else f"tensor {name!r} is {spec.dtype} {list(spec.shape)}, which it cannot be"
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31
