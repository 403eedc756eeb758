"""A rotary embedding that changes with the longest row of a batch must not make one row depend on another."""

from __future__ import annotations

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from probe.models.hf import HFBackend
from probe.models.points import residual_points
from probe.models.protocol import Reads
from tests.capture.architectures import CONTEXT, WIDTH
from tests.tiny_models import VOCABULARY

SWITCH = 20


def longrope() -> HFBackend:
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=SWITCH,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0, 3.0, 2.0, 1.5],
            "original_max_position_embeddings": SWITCH,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Phi3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return HFBackend(model.eval().requires_grad_(False))


@pytest.mark.parametrize(("other", "same"), [(SWITCH, True), (SWITCH + 1, False)])
def test_the_context_ends_where_longrope_changes_its_frequencies(other: int, same: bool) -> None:
    """The second case is the control: one token further, a row is read otherwise because of its neighbour."""
    backend = longrope()
    assert backend.facts.shape.context == SWITCH
    ids = torch.randint(5, VOCABULARY, (2, other), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, : other - 9] = 0
    with torch.inference_mode():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        together = backend.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[0]
    alone = backend.forward(ids[:1, -9:], mask[:1, -9:], Reads(residual_points((0,)), torch.tensor([[8]])))
    close = torch.allclose(together[-1], alone.logits[0, 0], rtol=1e-4, atol=1e-4)
    assert close is same
