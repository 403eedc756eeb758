"""The settings of a study as frozen values. Knows which keys and values exist; knows no file, persona or case."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator, PlainValidator

from probe.study.checked import CLOSED, Count, Flag, Line, Name, Text, different, distinct
from probe.study.label_spec import LabelSpec
from probe.study.located import kind_of
from probe.values import ALL, POSITIONS, STREAMS
from probe.values.nearest import nearest

ANALYSES = ("metrics", "directions", "probes", "lens", "relate", "patch", "steer", "report")
"""The analyses of a study. Those but ``patch`` and ``steer``, which run the model again, are of what was captured."""
USUAL_ANALYSES = ("metrics", "relate", "report")
"""Those of a study that names none: what takes seconds."""

COLDEST = 1e-6
"""The least temperature above 0: logits over a smaller one may leave the range of fp32."""

CONFIRMABLE = (
    *("accuracy", "accuracy_latent", "consistency_strict", "overconfidence", "brier", "log_loss"),
    *("risk_propensity", "risk_propensity_latent", "expected_urgency_latent", "parse_rate", "refusal_rate"),
)
"""The metrics whose differences a study may plan to test: contrasts of ``probe.behaviour`` over all cells, never those
over cells that a persona can select."""

DEFAULT = "default"
"""In a mapping of wordings: every persona that it does not name."""

BACKENDS = ("hf", "transformer-lens", "nnsight")
"""How a model is read: by plain hooks, at the hook points of a TransformerBridge, or inside nnsight traces."""

Placement = Literal["auto", "system", "user"]

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""How accelerate fills several devices with a model's blocks (docs/scale.md)."""


def _study_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"names a folder, so it is at most 100 letters, digits, '.', '_' and '-', found {name!r}. Rename it"
        )
    return name


def _backend(name: Any) -> str:
    if name not in BACKENDS:
        raise ValueError(f"is {kind_of(name)}, which is no backend. {nearest(str(name), BACKENDS, 'backend')}")
    return str(name)


def _remote(value: Any) -> bool | str:
    if value == "local" or isinstance(value, bool):
        return value  # type: ignore[no-any-return]  # the word, or a truth value
    raise ValueError(f"must be false, local or true, found {kind_of(value)}. Leave it out to run the model here")


def _analysis(name: Any) -> str:
    if name not in ANALYSES:
        raise ValueError(f"holds {kind_of(name)}, which is no analysis. {nearest(str(name), ANALYSES, 'analysis')}")
    return str(name)


def _position(name: Any) -> str:
    if name not in POSITIONS:
        raise ValueError(f"holds {kind_of(name)}, which is no position. {nearest(str(name), POSITIONS, 'position')}")
    return str(name)


def _stream(name: Any) -> str:
    if name not in STREAMS:
        raise ValueError(f"holds {kind_of(name)}, which is no stream. {nearest(str(name), STREAMS, 'stream')}")
    return str(name)


def _with_resid(names: tuple[str, ...]) -> tuple[str, ...]:
    if "resid" not in names:
        raise ValueError("must name resid, which every analysis reads. Add it")
    return tuple(sorted(names, key=STREAMS.index))


def _indices(value: Any, words: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be {words} or a list of whole numbers from 0, found {kind_of(value)}")
    for item in value:
        if not isinstance(item, int) or isinstance(item, bool) or item < 0:
            raise ValueError(f"must hold whole numbers from 0, found {kind_of(item)}")
    return distinct(tuple(value))


def layers_or_all(value: Any) -> Any:
    """``all``, or different whole numbers from 0."""
    return value if value == "all" else _indices(value, "all")


def _rotations(value: Any) -> Any:
    return value if value in ("none", "all") else _indices(value, "none, all")


def _how_many_wordings(value: Any) -> str | int:
    if value in ("first", "all") or _is_count(value):
        return value  # type: ignore[no-any-return]  # one of the two words, or a whole number
    raise ValueError(f"must be first, all or a whole number from 1, found {kind_of(value)}")


def _wordings(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _how_many_wordings(value)
    if not value:
        raise ValueError("must name at least one persona, or `default`. Write first, all or a whole number instead")
    return {str(name): _how_many_wordings(chosen) for name, chosen in value.items()}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def a_number(value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"must be a number, found {kind_of(value)}. Write it with digits")
    return float(value)


def _temperature(value: Any) -> float:
    if (number := a_number(value)) < 0:
        raise ValueError(f"must be 0 (greedy) or above, found {kind_of(value)}. Raise it")
    if 0 < number < COLDEST:
        raise ValueError(f"must be 0 (greedy) or at least {COLDEST}, found {kind_of(value)}. Set it to 0")
    return number


def _top_p(value: Any) -> float:
    if not 0 < (number := a_number(value)) <= 1:
        raise ValueError(f"must be above 0 and at most 1, found {kind_of(value)}. 1 keeps every token")
    return number


def _metric(name: Any) -> str:
    if name not in CONFIRMABLE:
        raise ValueError(
            f"is {kind_of(name)}, which is no metric with a test. {nearest(str(name), CONFIRMABLE, 'metric')}"
        )
    return str(name)


def _batch_size(value: Any) -> Any:
    if value == "auto" or _is_count(value):
        return value
    raise ValueError(f"must be auto or a whole number from 1, found {kind_of(value)}")


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how it is loaded.

    ``id`` is ``organism`` (the embedded model), a local directory or a hub id, which may end in ``@revision``.
    ``dtype: auto`` is float32 on the CPU and the checkpoint's own on an accelerator. ``device_map`` lays blocks on
    all devices that there are, one after the other; ``tensor_parallel`` cuts each block into so many parts.
    ``chat_template`` replaces the model's own: ``plain`` for a base model, or Jinja text (in a study file also the path
    of a ``.jinja`` file).
    ``remote`` is where nnsight runs: here, on NDIF (``true``), or here by the way that leads there (``local``).
    """

    __pydantic_config__ = CLOSED

    id: Line
    revision: Name | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Name = "auto"
    backend: Annotated[str, PlainValidator(_backend)] = "hf"
    remote: Annotated[bool | str, PlainValidator(_remote)] = False
    attn_implementation: Name | None = None
    trust_remote_code: Flag = False
    chat_template: Text | None = None
    device_map: DeviceMap | None = None
    tensor_parallel: Annotated[Count, Ge(1)] | None = None


@dataclass(frozen=True)
class ConditionSpec:
    """Under which conditions every persona meets every case; all combinations are run.

    ``wordings`` of the persona: ``first``, ``all``, or how many of the first ones (all where a persona has fewer); or a
    mapping from persona ids, and ``default``, to one of these. ``instructions`` of the task (indices), ``rotations`` of
    the letters over the options. ``placement`` is where the persona's text stands; what ``auto`` comes to for a chat
    template is found at capture.
    """

    __pydantic_config__ = CLOSED

    wordings: Annotated[str | int | Mapping[str, str | int], PlainValidator(_wordings)] = "first"
    instructions: Annotated[tuple[Annotated[Count, Ge(0)], ...], AfterValidator(distinct)] = (0,)
    rotations: Annotated[Literal["none", "all"] | tuple[int, ...], PlainValidator(_rotations)] = "none"
    placement: Placement = "auto"

    def n_wordings(self, persona: str, there: int) -> int:
        """How many wordings of a persona are run, of the ``there`` that it has: the first ones."""
        chosen = self.wordings
        if isinstance(chosen, Mapping):
            chosen = chosen.get(persona, chosen.get(DEFAULT, "first"))
        if isinstance(chosen, int):
            return min(chosen, there)
        return there if chosen == "all" else 1


@dataclass(frozen=True)
class CaptureSpec:
    """What one pass records.

    ``layers`` are residual points, 0 (embeddings) to L; ``positions`` are position rules of ``probe.values.POSITIONS``.
    ``streams`` beside ``resid`` are read in the blocks of the same numbers (see ``probe.values.STREAMS``).
    ``dtype: auto`` stores residuals in the dtype of the pass. ``keep_text`` stores every rendered prompt.
    ``special_tokens`` is what happens to a text that names a token of the chat template (``<|im_end|>``): its cell is
    refused, or the model reads it as plain text, or tags among them (``<think>``) as the tokens they are.
    ``keep: moments`` stores sums over cases in place of every row's residual, and ``covariance`` is the width in which
    second moments of whole vectors are then kept: all of it where a stream is no wider, else a random projection.
    """

    __pydantic_config__ = CLOSED

    layers: Annotated[Literal["all"] | tuple[int, ...], PlainValidator(layers_or_all)] = "all"
    positions: Annotated[tuple[Annotated[str, PlainValidator(_position)], ...], AfterValidator(distinct)] = (
        "prompt_end",
        "answer",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: Annotated[Literal["auto"] | int, PlainValidator(_batch_size)] = "auto"
    keep_text: Flag = True
    special_tokens: Literal["refuse", "literal", "tags"] = "refuse"
    streams: Annotated[
        tuple[Annotated[str, PlainValidator(_stream)], ...], AfterValidator(distinct), AfterValidator(_with_resid)
    ] = ("resid",)
    keep: Literal["rows", "moments"] = "rows"
    covariance: Annotated[Count, Ge(0), Le(1024)] = 64


@dataclass(frozen=True)
class GenerationSpec:
    """How the answer is generated, with at most ``max_new_tokens`` new tokens.

    Greedily at ``temperature`` 0; else ``seeds`` answers are drawn for each cell from softmax(logits / temperature),
    cut to the ``top_k`` likeliest tokens and the ``top_p`` nucleus.
    """

    __pydantic_config__ = CLOSED

    max_new_tokens: Annotated[Count, Ge(1)] = 1024
    temperature: Annotated[float, PlainValidator(_temperature)] = 0.0
    top_p: Annotated[float, PlainValidator(_top_p)] = 1.0
    top_k: Annotated[Count, Ge(1)] | None = None
    seeds: Annotated[Count, Ge(1)] = 1

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken at every step."""
        return self.temperature == 0

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seeds of a study's conditions: 0 is greedy, drawn answers have 1 to ``seeds``."""
        return (0,) if self.greedy else tuple(range(1, self.seeds + 1))


@dataclass(frozen=True)
class PlannedContrast:
    """A contrast that was decided on before the data: the test that the report calls confirmatory.

    ``metric`` of ``persona`` minus that of ``base`` (by default the study's), in one stratum or in ``all`` of them;
    ``direction`` is the sign that was predicted: ``greater``, ``less``, or ``either``.
    """

    __pydantic_config__ = CLOSED

    persona: Name
    metric: Annotated[str, PlainValidator(_metric)]
    base: Name | None = None
    stratum: Name = ALL
    direction: Literal["either", "greater", "less"] = "either"


@dataclass(frozen=True)
class StudyFile:
    """The keys of a study file; personas, task, cases, given texts and interventions as they were written."""

    __pydantic_config__ = CLOSED

    name: Annotated[Name, AfterValidator(_study_name)]
    model: ModelSpec
    personas: Any
    task: Any
    cases: Any
    conditions: ConditionSpec = field(default_factory=ConditionSpec)
    capture: CaptureSpec = field(default_factory=CaptureSpec)
    labels: LabelSpec = field(default_factory=LabelSpec)
    generation: GenerationSpec = field(default_factory=GenerationSpec)
    given: Any = None
    interventions: Any = None
    analyses: Annotated[tuple[Annotated[str, PlainValidator(_analysis)], ...], AfterValidator(distinct)] = (
        USUAL_ANALYSES
    )
    base: Name = "none"
    confirm: Annotated[tuple[PlannedContrast, ...], AfterValidator(different)] = ()
    split_seed: Annotated[Count, Ge(0)] = 0
    limit: Annotated[Count, Ge(1)] | None = None
