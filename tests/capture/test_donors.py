"""What is read of donors, token by token, and what it does where it is put: all of a donor gives the donor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probe.capture import PassInput, key_value_reads, sweep, token_reads
from probe.models.points import HookPoint
from probe.values import KVPatch, ModelError, ProbeError, TokenPatch
from tests.capture.architectures import backend, build, prompts
from tests.capture.matrix_rows import LABELS
from tests.capture.reference import states_of

PERSONA = range(2, 7)
CASE = range(7, 18)
LENGTH = 20
NAMES = ("llama", "gemma3_text", "gpt2", "bloom")


def pair(name: str) -> tuple[PassInput, PassInput]:
    """Two rows of one length that differ in the tokens of their persona alone."""
    one, other = prompts(name, (LENGTH, LENGTH + 1))
    changed = (*one[: PERSONA.start], *other[PERSONA.start : PERSONA.stop], *one[PERSONA.stop :])
    rows = [PassInput(ids, 6, (CASE.start, CASE.stop), LABELS, persona_tokens=(2, 7)) for ids in (one, changed)]
    return rows[0], rows[1]


def logp_of(name: str, rows: list[PassInput], arms: list[Any], kind: str = "hf", **more: Any) -> list[np.ndarray]:
    """Log-probabilities of the labels under each arm of the first row."""
    reads = sweep(backend(name, kind), rows[:1], [arms], **more)
    return [read.labels.logp for read in reads if read.arm is not None]


def unedited(name: str, row: PassInput) -> np.ndarray:
    return next(sweep(backend(name, "hf"), [row], [[]])).labels.logp


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "mamba2"])
def test_values_are_those_of_plain_transformers_at_each_token(name: str) -> None:
    rows = [PassInput(ids, None, None, LABELS) for ids in prompts(name, (15, 9, 12))]
    model = backend(name, "hf")
    points = tuple(HookPoint(stream, 1) for stream in model.facts.widths)
    tokens = [(0, 3, 14), (8,), ()]
    found = token_reads(model, rows, points, tokens, batch_size=2)
    for row, own, at in zip(rows, found, tokens, strict=True):
        states = states_of(name, row.token_ids)
        assert set(own) == {(point.stream, point.layer) for point in points}
        for place, value in own.items():
            wanted = states.values[place][list(at)].numpy()
            assert value.shape == wanted.shape
            np.testing.assert_allclose(value, wanted, atol=1e-5 * max(np.abs(wanted).max(initial=0), 1e-9))


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_values_are_those_of_the_models_own_cache(name: str) -> None:
    rows = [PassInput(ids, None, None, LABELS) for ids in prompts(name, (15, 9))]
    for row, own in zip(rows, key_value_reads(backend(name, "hf"), rows, [(0, 4, 14), (8,)]), strict=True):
        with torch.inference_mode():
            cache = build(name)[0](torch.tensor([row.token_ids]), use_cache=True).past_key_values
        for layer, keys, values in zip(cache.layers, own.keys, own.values, strict=True):
            # A window's own cache keeps its last tokens only, which are what the row's last token can still see.
            gone = len(row.token_ids) - layer.keys.shape[2]
            there = [k for k, token in enumerate(own.tokens) if token >= gone]
            at = [own.tokens[k] - gone for k in there]
            for got, wanted in ((keys, layer.keys), (values, layer.values)):
                whole = wanted[0][:, at].numpy()
                np.testing.assert_allclose(got[:, there], whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("kind", ["hf", "transformer-lens", "nnsight"])
@pytest.mark.parametrize("name", NAMES)
def test_the_donors_keys_and_values_of_its_persona_give_the_donor(name: str, kind: str) -> None:
    rows = list(pair(name))
    donor = key_value_reads(backend(name, kind), rows[1:], [PERSONA])[0]
    own = key_value_reads(backend(name, kind), rows[:1], [PERSONA])[0]
    all_blocks, without, same = logp_of(
        name, rows, [(donor.patch(),), (donor.patch([0, 2]),), (own.patch(),)], kind, batch_size=2
    )
    base, wanted = unedited(name, rows[0]), unedited(name, rows[1])
    np.testing.assert_allclose(all_blocks, wanted, atol=1e-4)
    np.testing.assert_allclose(same, base, atol=1e-4)
    assert np.abs(wanted - base).max() > 1e-2  # there is something to give
    assert np.abs(without - wanted).max() > 1e-3  # and one block of them is missed


@pytest.mark.parametrize("name", NAMES)
def test_the_path_through_the_case_and_the_direct_one_are_the_whole(name: str) -> None:
    """What follows the case sees the donor's persona, and its case, which saw it: that is all there is to see."""
    rows = list(pair(name))
    persona, case = (key_value_reads(backend(name, "hf"), rows[1:], [span])[0] for span in (PERSONA, CASE))
    direct, through = persona.patch(seen_from=CASE.stop), case.patch()
    both, alone, other = logp_of(name, rows, [(direct, through), (direct,), (through,)])
    base, wanted = unedited(name, rows[0]), unedited(name, rows[1])
    np.testing.assert_allclose(both, wanted, atol=1e-4)
    whole = logp_of(name, rows, [(direct, through), (direct,), (through,)], resume=False)
    np.testing.assert_allclose(whole, [both, alone, other], atol=1e-4)
    if name != "gemma3_text":  # of whose blocks two see no further than eight tokens
        assert min(np.abs(alone - base).max(), np.abs(other - base).max()) > 1e-3


def test_donors_that_are_seen_from_different_tokens_come_one_after_the_other() -> None:
    """The case sees the donor's persona; what follows it the row's own again: as if all were done by hand."""
    rows = list(pair("llama"))
    model = backend("llama", "hf")
    donor, own = key_value_reads(model, rows[::-1], [PERSONA, PERSONA])
    case = key_value_reads(model, rows[1:], [CASE])[0]
    back = [(donor.patch(), own.patch(seen_from=CASE.stop)), (case.patch(),)]
    one_by_one, at_once = logp_of("llama", rows, back)
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba2"])
@pytest.mark.parametrize("resume", [True, False])
def test_all_of_the_donors_residuals_give_the_donor(name: str, resume: bool) -> None:
    rows = list(pair(name))
    everything = range(LENGTH)
    points = tuple(HookPoint("resid", layer) for layer in range(4))
    donor = token_reads(backend(name, "hf"), rows[1:], points, [everything])[0]
    arms = [(TokenPatch("resid", layer, tuple(everything), donor["resid", layer]),) for layer in range(4)]
    arms.append((TokenPatch("resid", 0, tuple(PERSONA), donor["resid", 0][PERSONA.start : PERSONA.stop]),))
    arms.append((TokenPatch("resid", 3, tuple(everything)[:-1], donor["resid", 3][:-1]),))  # the control: not the last
    *given, persona, no_end = logp_of(name, rows, arms, resume=resume)
    wanted = unedited(name, rows[1])
    for found in (*given, persona):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(no_end, unedited(name, rows[0]), atol=1e-4)


def test_heads_patched_one_by_one_are_all_of_them() -> None:
    rows = list(pair("llama"))
    tokens = (3, 9, 19)
    donor = token_reads(backend("llama", "hf"), rows[1:], (HookPoint("head_out", 1),), [tokens])[0]["head_out", 1]
    heads = [TokenPatch("head_out", 1, tokens, donor[:, 8 * h : 8 * h + 8], (8 * h, 8 * h + 8)) for h in range(4)]
    whole, apart, three = logp_of(
        "llama", rows, [(TokenPatch("head_out", 1, tokens, donor),), tuple(heads), tuple(heads[:3])]
    )
    np.testing.assert_allclose(apart, whole, atol=1e-5)
    assert np.abs(three - whole).max() > 1e-4


def test_keys_and_values_of_a_model_with_states_are_refused() -> None:
    row = PassInput(prompts("mamba2")[0], None, None, LABELS)
    array = np.zeros((1, 1, 4), np.float32)
    with pytest.raises(ModelError, match="recurrent"):
        key_value_reads(backend("mamba2", "hf"), [row], [(1,)])
    with pytest.raises(ModelError, match="recurrent"):
        next(sweep(backend("mamba2", "hf"), [row], [[(KVPatch((0,), (1,), (array,), (array,)),)]]))


def test_a_token_that_a_row_has_not_is_refused() -> None:
    row = PassInput(prompts("llama")[1], None, None, LABELS)
    with pytest.raises(ProbeError, match="0 to 13; found 14"):
        token_reads(backend("llama", "hf"), [row], (HookPoint("resid", 0),), [(14,)])
    assert token_reads(backend("llama", "hf"), [row], (HookPoint("resid", 0),), [(13,)])
