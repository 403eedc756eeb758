"""Whether a loaded model's hooks read what they say: one short forward, against an independent source."""

from __future__ import annotations

import torch
from torch import Tensor

from probe.models.edits import Edit
from probe.models.hf import HFBackend
from probe.models.points import HookPoint, residual_points
from probe.models.protocol import Reads
from probe.values import ModelError

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_LENGTH = 6


def check_backend(backend: HFBackend) -> None:
    """Compare every residual point with ``output_hidden_states``, then edit one point and undo it.

    Points below the last equal ``hidden_states[k]``; the last one, before the final norm, cannot be compared so, and
    is checked by what a change of it does: the logits change, and no earlier point does.

    Raises:
        ModelError: a check fails; the model is not read wrongly, it is not read at all.
    """
    facts = backend.facts
    shape, device = facts.shape, facts.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocab, (1, _LENGTH), generator=generator).to(device)
    mask = torch.ones_like(ids)
    layers = tuple(range(shape.n_layers + 1))
    reads = Reads(residual_points(layers), torch.arange(_LENGTH, device=device)[None])
    plain = backend.forward(ids, mask, reads)
    with torch.inference_mode():
        states = backend.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    tolerance = _TOLERANCE.get(facts.dtype, 2e-2)
    for layer in layers[:-1]:
        if not _close(plain.values["resid"][layer, 0], states.hidden_states[layer][0], tolerance):
            raise ModelError(
                f"{facts.architecture}: residual point {layer} read by a hook is not hidden_states[{layer}]; "
                "this architecture is not supported"
            )
    if not _close(plain.logits[0, 0], states.logits[0, -1].float(), tolerance):
        raise ModelError(f"{facts.architecture}: the logits change with the cache; this architecture is not supported")
    size = plain.values["resid"][-1].float().std()
    for layer in (shape.n_layers // 2, shape.n_layers):
        noise = torch.randn(shape.d_model, generator=generator).to(device) * size
        edit = Edit(HookPoint("resid", layer), "add", torch.ones_like(ids, dtype=torch.bool), noise[None])
        edited = backend.forward(ids, mask, reads, edits=(edit,))
        now, before = edited.values["resid"], plain.values["resid"]
        below = torch.equal(now[:layer], before[:layer])
        above = not torch.equal(now[layer:], before[layer:])
        if not below or not above or torch.equal(edited.logits, plain.logits):
            raise ModelError(
                f"{facts.architecture}: an edit of residual point {layer} does not act there and above only"
            )
    if not torch.equal(backend.forward(ids, mask, reads).logits, plain.logits):
        raise ModelError(f"{facts.architecture}: after an edit was undone the logits are not what they were")


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    scale = b.float().abs().max().clamp(min=1e-6)
    return bool((a.float() - b.float()).abs().max() <= tolerance * scale)
