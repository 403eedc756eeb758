"""The settings of a study as frozen values. Knows which keys and values exist; knows no file, persona or case."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import AfterValidator, BeforeValidator, PlainValidator

from probe.study.checked import CLOSED, Count, Flag, Line, Name, Text
from probe.study.located import kind_of, nearest
from probe.values import POSITIONS

ANALYSES = ("metrics", "directions", "report")
"""The analyses that this version has, in the order in which they run."""
LATER_ANALYSES = ("probes", "lens", "relate", "patch", "steer")

Placement = Literal["auto", "system", "user"]


def _study_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"names a folder, so it is at most 100 letters, digits, '.', '_' and '-', found {name!r}. Rename it"
        )
    return name


def _backend(value: Any) -> Any:
    if value in ("transformer-lens", "nnsight"):
        raise ValueError(f"must be 'hf' in this version, found {value!r}. Other backends come later")
    return value


def _analysis(name: Any) -> str:
    if name in LATER_ANALYSES:
        raise ValueError(f"names {name!r}, which comes later. This version has {', '.join(ANALYSES)}")
    if name not in ANALYSES:
        raise ValueError(f"holds {kind_of(name)}, which is no analysis. {nearest(str(name), ANALYSES, 'analysis')}")
    return str(name)


def _nothing_yet(confirm: tuple[Any, ...]) -> tuple[Any, ...]:
    if confirm:
        raise ValueError("is not read by this version and must stay empty. Remove its entries")
    return confirm


def _position(name: Any) -> str:
    if name not in POSITIONS:
        raise ValueError(f"holds {kind_of(name)}, which is no position. {nearest(str(name), POSITIONS, 'position')}")
    return str(name)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("must name at least one. Leave the key out for the default")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"names {value!r} twice. Remove one")
    return values


def _indices(value: Any, words: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be {words} or a list of whole numbers from 0, found {kind_of(value)}")
    for item in value:
        if not isinstance(item, int) or isinstance(item, bool) or item < 0:
            raise ValueError(f"must hold whole numbers from 0, found {kind_of(item)}")
    return _distinct(tuple(value))


def _layers(value: Any) -> Any:
    return value if value == "all" else _indices(value, "all")


def _rotations(value: Any) -> Any:
    return value if value in ("none", "all") else _indices(value, "none, all")


def _batch_size(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be auto or a whole number from 1, found {kind_of(value)}")


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how it is loaded.

    ``id`` is ``organism`` (the embedded model), a local directory or a hub id, which may end in ``@revision``.
    ``dtype: auto`` is float32 on the CPU and the checkpoint's own on an accelerator. ``chat_template`` replaces the
    model's own: ``plain`` for a base model, or Jinja text (in a study file also the path of a ``.jinja`` file).
    """

    __pydantic_config__ = CLOSED

    id: Line
    revision: Name | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Name = "auto"
    backend: Annotated[Literal["hf"], BeforeValidator(_backend)] = "hf"
    attn_implementation: Name | None = None
    trust_remote_code: Flag = False
    chat_template: Text | None = None


@dataclass(frozen=True)
class ConditionSpec:
    """Under which conditions every persona meets every case; all combinations are run.

    ``wordings`` of the persona, ``instructions`` of the task (indices), ``rotations`` of the letters over the options.
    ``placement`` is where the persona's text stands; what ``auto`` comes to for a chat template is found at capture.
    """

    __pydantic_config__ = CLOSED

    wordings: Literal["first", "all"] = "first"
    instructions: Annotated[tuple[Annotated[Count, Ge(0)], ...], AfterValidator(_distinct)] = (0,)
    rotations: Annotated[Literal["none", "all"] | tuple[int, ...], PlainValidator(_rotations)] = "none"
    placement: Placement = "auto"


@dataclass(frozen=True)
class CaptureSpec:
    """What one pass records.

    ``layers`` are residual points, 0 (embeddings) to L; ``positions`` are position rules of ``probe.values.POSITIONS``.
    ``dtype: auto`` stores residuals in the dtype of the pass. ``keep_text`` stores every rendered prompt.
    """

    __pydantic_config__ = CLOSED

    layers: Annotated[Literal["all"] | tuple[int, ...], PlainValidator(_layers)] = "all"
    positions: Annotated[tuple[Annotated[str, PlainValidator(_position)], ...], AfterValidator(_distinct)] = (
        "prompt_end",
        "answer",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: Annotated[Literal["auto"] | int, PlainValidator(_batch_size)] = "auto"
    keep_text: Flag = True


@dataclass(frozen=True)
class GenerationSpec:
    """How the answer is generated: greedily, with at most ``max_new_tokens`` new tokens."""

    __pydantic_config__ = CLOSED

    max_new_tokens: Annotated[Count, Ge(1)] = 1024


@dataclass(frozen=True)
class StudyFile:
    """The keys of a study file; personas, task and cases as they were written, to be read by their own modules."""

    __pydantic_config__ = CLOSED

    name: Annotated[Name, AfterValidator(_study_name)]
    model: ModelSpec
    personas: Any
    task: Any
    cases: Any
    conditions: ConditionSpec = field(default_factory=ConditionSpec)
    capture: CaptureSpec = field(default_factory=CaptureSpec)
    generation: GenerationSpec = field(default_factory=GenerationSpec)
    analyses: Annotated[tuple[Annotated[str, PlainValidator(_analysis)], ...], AfterValidator(_distinct)] = ANALYSES
    base: Name = "none"
    confirm: Annotated[tuple[Any, ...], AfterValidator(_nothing_yet)] = ()
    split_seed: Annotated[Count, Ge(0)] = 0
    limit: Annotated[Count, Ge(1)] | None = None
