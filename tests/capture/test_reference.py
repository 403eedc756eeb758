"""The matrix's reference says of itself what it can: its terms add up, and its table names what the blocks read."""

from __future__ import annotations

import pytest
import torch

from tests.capture.architectures import ARCHITECTURES, END_IDS, build, prompts
from tests.capture.reference import PLACES, greedy, states_of


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if PLACES[name] is not None])
def test_the_terms_of_a_block_add_up_to_its_output_and_are_read_where_the_table_says(name: str) -> None:
    places = PLACES[name]
    assert places is not None
    ids = prompts(name)[0]
    read: list[torch.Tensor] = []
    hooks = []
    if places.between is not None:
        for block in build(name)[0].get_submodule(places.blocks):
            module = block.get_submodule(places.between)
            hooks.append(module.register_forward_pre_hook(lambda _module, args: read.append(args[0])))
    states = states_of(name, ids)
    for hook in hooks:
        hook.remove()
    pre, post = states.stacked("resid")[:-1], states.stacked("resid")[1:]
    attention, mlp = states.stacked("attn_out"), states.stacked("mlp_out")
    assert close(pre + attention + mlp, post)
    assert not close(pre + attention, post)
    assert not close(pre + mlp, post)
    if places.between is None:
        assert ("resid_mid", 0) not in states.values
    else:
        for got, mid in zip(read, states.stacked("resid_mid"), strict=True):
            assert close(mid, got.reshape(mid.shape))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tiny_models_are_not_trivial(name: str) -> None:
    """Greedy answers vary, the last token alone does not decide them, and near-ties are rare."""
    rows = [greedy(name, prompt, 8, END_IDS) for prompt in prompts(name)]
    tokens = [token for row, _ in rows for token in row]
    gaps = [gap for _, row in rows for gap in row]
    assert len(set(tokens)) >= len(tokens) / 3
    assert sum(gap < 1e-3 for gap in gaps) <= 1
    ids = list(prompts(name)[0])
    other = [ids[1], ids[0], *ids[2:-6], ids[-5], ids[-6], *ids[-4:]]
    assert not close(states_of(name, ids).logits[-1], states_of(name, other).logits[-1])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_edit_of_the_reference_acts_above_its_place_only(name: str) -> None:
    ids = prompts(name)[1]
    plain = states_of(name, ids).stacked("resid")
    edited = states_of(name, ids, {("resid", 1): [lambda x: x + 1.0]}).stacked("resid")
    assert close(edited[0], plain[0])
    assert close(edited[1], plain[1] + 1.0)
    assert not close(edited[2], plain[2])
