"""What a study comes to with its model on this machine. Reads configuration and tokenizer; loads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from probe.capture import Sampling
from probe.models import ModelShape, ModelSource, find_model, read_shape, weights_identity
from probe.models.footprint import Footprint, read_footprint
from probe.models.loading import compute_dtype, device_kind
from probe.models.points import HookPoint, points_of
from probe.prompts import PromptBuilder, load_tokenizer
from probe.study import Study
from probe.values import StudyError

BATCH_SIZE = {"cpu": 64, "cuda": 32}
"""``batch_size: auto``, by kind of device; 16 on any other."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of one element of a dtype."""


@dataclass(frozen=True, eq=False)
class Resolved:
    """A study with everything that was ``auto`` decided: its model's files, shape and tokenizer, layers and dtypes.

    ``device`` is a kind (``cpu``, ``cuda``). ``placement`` is where this template puts a persona's text.
    """

    study: Study
    source: ModelSource
    shape: ModelShape
    footprint: Footprint
    builder: PromptBuilder
    device: str
    layers: tuple[int, ...]
    placement: str
    compute_dtype: str
    stored_dtype: str
    batch_size: int

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.builder.tokenizer

    @property
    def points(self) -> tuple[HookPoint, ...]:
        """What is read at every position, in the order of the store's arrays."""
        return points_of(self.study.capture.streams, self.layers, self.shape.n_layers)

    @property
    def widths(self) -> dict[str, int]:
        """The width of each captured stream, by the model's configuration; that of the heads is 0 where it has none."""
        heads = self.shape.heads_width or 0
        return {name: heads if name == "head_out" else self.shape.d_model for name in self.study.capture.streams}

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's activations, if it has every position."""
        per_site = sum(self.widths[point.stream] for point in self.points) * BYTES[self.stored_dtype]
        return per_site * len(self.study.capture.positions)

    @property
    def parameters(self) -> int:
        """How many parameters the checkpoint has, by the headers of its files."""
        return self.footprint.parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they will be computed with."""
        return self.parameters * BYTES[self.compute_dtype]

    @property
    def sampling(self) -> Sampling | None:
        """How tokens are drawn; None where the likeliest is taken."""
        generation = self.study.generation
        if generation.greedy:
            return None
        return Sampling(generation.temperature, generation.top_p, generation.top_k)


def resolve(study: Study, device: str | None = None) -> Resolved:
    """Find the model and decide what the study left open.

    ``device`` is the kind that computes, where that is not this machine. A model on NDIF is read in the checkpoint's
    own dtype, as on any accelerator, and asks for no device here.

    Raises:
        ModelError: the model, its tokenizer or its chat template cannot serve the study.
        StudyError: the study asks for residual points that the model does not have.
    """
    model = study.model
    source = find_model(model.id, model.revision, trust_remote_code=model.trust_remote_code)
    shape = read_shape(source)
    tokenizer = load_tokenizer(
        source.folder, chat_template=model.chat_template, trust_remote_code=model.trust_remote_code
    )
    asked = study.capture.special_tokens
    builder = PromptBuilder(tokenizer, study.task, literal=asked == "literal", tags=asked == "tags")
    hosted = model.remote is True
    device = device or ("cpu" if hosted else device_kind(model.device))
    footprint = read_footprint(source)
    computing = compute_dtype(model.dtype, "ndif" if hosted else device, footprint.dtype)
    batch_size = study.capture.batch_size
    return Resolved(
        study=study,
        source=source,
        shape=shape,
        footprint=footprint,
        builder=builder,
        device=device,
        layers=_layers(study, shape),
        placement=builder.resolve_placement(study.conditions.placement),
        compute_dtype=computing,
        stored_dtype=_stored_dtype(study, computing),
        batch_size=BATCH_SIZE.get(device, 16) if batch_size == "auto" else int(batch_size),
    )


def _layers(study: Study, shape: ModelShape) -> tuple[int, ...]:
    if study.capture.layers == "all":
        return tuple(range(shape.n_layers + 1))
    beyond = [layer for layer in study.capture.layers if layer > shape.n_layers]
    if beyond:
        raise StudyError(
            f"capture.layers names residual point {beyond[0]}, but this model has points 0 to {shape.n_layers} "
            f"(0 = embeddings, {shape.n_layers} = output of the last block)"
        )
    if len(study.capture.streams) > 1 and min(study.capture.layers) == shape.n_layers:
        raise StudyError(
            f"capture.layers names only point {shape.n_layers}, where no block begins to read "
            f"{study.capture.streams[1]} in; name a block, 0 to {shape.n_layers - 1}"
        )
    return tuple(study.capture.layers)


def _stored_dtype(study: Study, computing: str) -> str:
    """As asked; else as computed, but never float16, which overflows on massive activations."""
    if study.capture.dtype != "auto":
        return study.capture.dtype
    return "float32" if computing == "float16" else computing


def model_identity(resolved: Resolved) -> list[object]:
    """What the numbers of a forward depend on beside its tokens: weights, dtype, backend and attention."""
    model = resolved.study.model
    return [weights_identity(resolved.source), resolved.compute_dtype, model.backend, model.attn_implementation]
