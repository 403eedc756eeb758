"""Off by one is the most common bug of the field: every name is held against a plain hook on a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from probe.interop import block_before, hidden_states_index, hook_name, point_after_block, point_of_hook
from probe.models import find_model
from probe.models.hf import HFBackend
from probe.models.points import residual_points
from probe.models.protocol import Reads
from probe.values import ProbeError
from tests.tiny_models import save_tiny_model


def test_every_point_is_the_output_of_the_block_that_the_mapping_names(tmp_path: Path) -> None:
    source = find_model(str(save_tiny_model(tmp_path / "tiny", "llama", scale=3.0)))
    backend = HFBackend.load(source, dtype="auto", device="cpu", attention=None)
    n_layers = backend.facts.shape.n_layers
    outputs: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _m, _a, out: outputs.append(out)) for block in backend.model.model.layers
    ]
    ids = torch.tensor([[5, 6, 7]])
    got = backend.forward(
        ids, torch.ones_like(ids), Reads(residual_points(tuple(range(n_layers + 1))), torch.tensor([[0, 1, 2]]))
    )
    for hook in hooks:
        hook.remove()
    states = backend.model(ids, output_hidden_states=True).hidden_states
    for block in range(n_layers):
        point = point_after_block(block, n_layers)
        assert block_before(point, n_layers) == block
        assert torch.equal(got.values["resid"][point], outputs[block])
        assert not torch.equal(got.values["resid"][point - 1], outputs[block])
    for point in range(n_layers):
        torch.testing.assert_close(states[hidden_states_index(point, n_layers)], got.values["resid"][point])


def test_names_go_there_and_back_and_pre_of_a_block_is_post_of_the_one_below() -> None:
    for point in range(7):
        assert point_of_hook(hook_name(point, 6), 6) == point
    assert point_of_hook("blocks.3.hook_resid_pre", 6) == point_of_hook("blocks.2.hook_resid_post", 6) == 3
    assert hook_name(6, 6) == "blocks.5.hook_resid_post"


@pytest.mark.parametrize(
    "name", ["blocks.6.hook_resid_pre", "blocks.0.attn.hook_q", "hook_resid_pre", "blocks.-1.hook_resid_pre"]
)
def test_a_name_that_is_no_residual_hook_is_refused(name: str) -> None:
    with pytest.raises(ProbeError, match=r"a residual hook is blocks\.0 to blocks\.5"):
        point_of_hook(name, 6)


def test_points_that_no_block_writes_or_hidden_states_does_not_hold_are_refused() -> None:
    with pytest.raises(ProbeError, match="the last entry there stands after the final norm"):
        hidden_states_index(6, 6)
    with pytest.raises(ProbeError, match="no block writes it"):
        block_before(0, 6)
    with pytest.raises(ProbeError, match="residual points 0 to 6; found 7"):
        hook_name(7, 6)
