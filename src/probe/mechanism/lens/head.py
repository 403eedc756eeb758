"""The label lens: what a model's own final norm and unembedding make of a residual. Knows numbers; knows no store.

A residual ``x`` gives a token the logit ``f(scale * (U . norm(x) + b))``. Before the softcap ``f`` that is linear in
``x`` but for the one number by which the norm divides, so that a residual is kept as its *direct* part and that number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from probe.values import ProbeError

TOLERANCE = {"float32": 1e-3}
"""How far the lens at the last point may be from the model's own contrasts, as a part of the largest logit."""

TOLERANCE_HALF = 3e-2
"""The same where the model computed, or the store keeps, fewer bits."""


@dataclass(frozen=True, eq=False)
class LabelHead:
    """A model's final norm and the unembedding of its labels' tokens, as a store's readout holds them, in float64.

    ``kind`` is ``rms`` (x / sqrt(mean(x^2) + eps)) or ``layer`` (the same after centring), then times ``weight``, plus
    ``bias``. A ``softcap`` of 0 is none. Source: docs/FORMAT.md, The readout.
    """

    kind: str
    eps: float
    scale: float
    softcap: float
    token_ids: Int[np.ndarray, " token"]
    weight: Float[np.ndarray, " d_model"]
    bias: Float[np.ndarray, " d_model"]
    unembed: Float[np.ndarray, "token d_model"]
    unembed_bias: Float[np.ndarray, " token"]

    @property
    def constant(self) -> Float[np.ndarray, " token"]:
        """What a token's logit before the softcap is without any residual: the biases."""
        return np.asarray(self.scale * (self.unembed @ self.bias + self.unembed_bias))


def label_head(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> LabelHead:
    """The head in a store's readout (``Store.readout()``).

    Raises:
        ProbeError: the readout has another form than this version knows.
    """
    try:
        arrays = [np.asarray(tensors[name], np.float64) for name in _TENSORS]
        kind, ids = metadata["norm.kind"], np.array(json.loads(metadata["token_ids"]), int)
        eps, scale, softcap = (float(metadata[name]) for name in ("norm.eps", "logit_scale", "softcap"))
    except (KeyError, ValueError) as error:
        raise ProbeError(f"a store's readout has the form of docs/FORMAT.md; this one has not: {error!r}") from error
    if kind not in ("rms", "layer"):
        raise ProbeError(f"the final norm of a readout is rms or layer, found {kind!r}; upgrade persona-probe")
    return LabelHead(kind, eps, scale, softcap, ids, *arrays)


_TENSORS = ("norm.weight", "norm.bias", "unembed.weight", "unembed.bias")


@dataclass(frozen=True, eq=False)
class Projected:
    """Residuals as the labels' tokens see them: ``direct`` part and ``norm`` of every row.

    A token's logit before the softcap is ``direct / norm + head.constant``. ``direct`` is linear in the residual, so
    that the parts of a residual have direct parts that add up. ``norm`` is sqrt(mean(x^2) + eps), of the centred x for
    a LayerNorm.
    """

    direct: Float[np.ndarray, "row token"]
    norm: Float[np.ndarray, " row"]

    def logits(self, head: LabelHead) -> Float[np.ndarray, "row token"]:
        """Logits of the labels' tokens *before* the softcap."""
        return np.asarray(self.direct / self.norm[:, None] + head.constant)


def project(head: LabelHead, x: np.ndarray) -> Projected:
    """Residuals, or terms that are added to residuals, ``[row, d_model]``, as the labels' tokens see them.

    Raises:
        ProbeError: the residuals have another width than the model.
    """
    if x.shape[1] != len(head.weight):
        raise ProbeError(f"the readout reads residuals of width {len(head.weight)}, found {x.shape[1]}")
    x = np.asarray(x, np.float64)
    if head.kind == "layer":
        x = x - x.mean(1, keepdims=True)
    return Projected(head.scale * (x * head.weight) @ head.unembed.T, np.sqrt((x**2).mean(1) + head.eps))


def capped(head: LabelHead, logits: np.ndarray) -> np.ndarray:
    """Logits as the model gives them: after the softcap, where it has one."""
    return np.asarray(head.softcap * np.tanh(logits / head.softcap) if head.softcap else logits)


def token_places(head: LabelHead, ids: Int[np.ndarray, "row label variant"]) -> Int[np.ndarray, "row label variant"]:
    """Where the tokens of each label stand among the head's; -1 beyond a label's own variants (where ``ids`` is -1).

    A row in which some label has no token, or one that the head does not hold, is -1 throughout: it has no lens.
    """
    order = np.argsort(head.token_ids)
    found = order[np.clip(np.searchsorted(head.token_ids[order], ids), 0, len(order) - 1)]
    known = (head.token_ids[found] == ids) & (ids >= 0)
    whole = known.any(2).all(1) & (known | (ids < 0)).all((1, 2))
    return np.where(known & whole[:, None, None], found, -1)


def label_scores(
    logits: Float[np.ndarray, "row token"], places: Int[np.ndarray, "row label variant"]
) -> Float[np.ndarray, "row label"]:
    """Each label's score: log of the summed exponentials of its tokens' logits; differences are log-odds in nats.

    Labels stand as in ``places``, by option: a rotation has changed which tokens these are. NaN where there are none.
    """
    found = gathered(logits, places)
    with np.errstate(divide="ignore"):
        scores = np.logaddexp.reduce(found, axis=2)
    return np.where((places >= 0).any(2), scores, np.nan)


def gathered(per_token: Float[np.ndarray, "row token"], places: Int[np.ndarray, "row label variant"]) -> np.ndarray:
    """The numbers of each label's tokens, ``[row, label, variant]``; -inf beyond a label's own variants."""
    n = len(places)
    found = np.take_along_axis(per_token, np.maximum(places, 0).reshape(n, -1), axis=1).reshape(places.shape)
    return np.where(places >= 0, found, -np.inf)


def reference_of(options: Sequence[str]) -> int:
    """The option that the others are contrasted with: the middle one (A-B and C-B of three)."""
    return _middle(len(options))


def contrast_names(options: Sequence[str]) -> tuple[str, ...]:
    """``A-B``, ``C-B``: every other option minus the middle one."""
    middle = reference_of(options)
    return tuple(f"{option}-{options[middle]}" for k, option in enumerate(options) if k != middle)


def contrasts(scores: Float[np.ndarray, "*any label"]) -> Float[np.ndarray, "*any contrast"]:
    """Every other label's score minus that of the middle one, in nats: what all labels share is gone."""
    middle = _middle(scores.shape[-1])
    return np.asarray(np.delete(scores - scores[..., middle : middle + 1], middle, axis=-1))


def likeliest(contrast: Float[np.ndarray, "*any contrast"]) -> Int[np.ndarray, "*any"]:
    """The label that these contrasts put first; -1 where they are NaN."""
    middle = _middle(contrast.shape[-1] + 1)
    scores = np.insert(contrast, middle, 0.0, axis=-1)
    return np.where(np.isnan(contrast).any(-1), -1, np.where(np.isnan(scores), -np.inf, scores).argmax(-1))


def _middle(n_labels: int) -> int:
    return (n_labels - 1) // 2


@dataclass(frozen=True)
class LensCheck:
    """How far the lens at the last residual point is from the label log-probabilities that the pass itself recorded.

    ``error``: the largest difference of a contrast, in nats. ``tolerance``: what is allowed, from the largest logit.
    ``rows`` that were compared; ``without`` lens: rows whose label tokens the readout does not hold.
    """

    position: str
    error: float
    tolerance: float
    rows: int
    without: int

    @property
    def passed(self) -> bool:
        """Whether the lens reproduces the model's own contrasts."""
        return self.rows > 0 and self.error <= self.tolerance


def check_lens(
    head: LabelHead,
    last: Projected,
    places: Int[np.ndarray, "row label variant"],
    label_logp: Float[np.ndarray, "row label"],
    position: str,
    dtype: str = "float32",
) -> LensCheck:
    """Compare the lens at the last residual point with the log-probabilities of the same labels, contrast by contrast.

    The softcap is applied here, as the model did; ``dtype`` is the coarsest that the values went through.
    """
    logits = last.logits(head)
    ours, theirs = contrasts(label_scores(capped(head, logits), places)), contrasts(label_logp.astype(np.float64))
    both = np.isfinite(ours).all(1) & np.isfinite(theirs).all(1)
    lacking = int((places < 0).all((1, 2)).sum())
    largest = float(np.abs(logits).max(initial=0.0))
    error = float(np.abs(ours[both] - theirs[both]).max(initial=0.0))
    return LensCheck(position, error, TOLERANCE.get(dtype, TOLERANCE_HALF) * largest, int(both.sum()), lacking)
