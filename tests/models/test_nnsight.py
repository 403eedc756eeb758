"""Traces give what plain hooks give, here and by the way that leads to NDIF; the model is shared and not changed."""

from __future__ import annotations

import builtins
from functools import cache
from typing import Any

import pytest
import torch

from probe.models import nnsight
from probe.models.check import check_backend
from probe.models.hf import HFBackend
from probe.models.loading import load_backend
from probe.models.nnsight import NNsightBackend
from probe.models.points import HookPoint
from probe.models.protocol import Reads, WrapsModel
from probe.models.readout import find_readout
from probe.values import ModelError
from tests.capture.architectures import source_of
from tests.models.backend_parity import decoded, differences, edits_at, forward, points_of

SERVED = ("llama", "gpt2", "gemma2", "falcon", "gpt_oss", "qwen3_next")
"""Among them blocks that give a tuple (falcon), post-norms (gemma2), and states beside keys and values (qwen3_next)."""


@cache
def hf(name: str) -> HFBackend:
    return HFBackend.load(source_of(name), dtype="float32", device="cpu", attention=None)


@cache
def traced(name: str, remote: bool | str = False) -> NNsightBackend:
    """On a model of its own: what is compared is two models with the same weights."""
    own = HFBackend.load(source_of(name), dtype="float32", device="cpu", attention=None)
    return NNsightBackend(own, source_of(name), remote)


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_hook_point_gives_bit_for_bit_what_plain_hooks_give(name: str, side: str) -> None:
    assert traced(name).facts.widths == hf(name).facts.widths
    points = points_of(hf(name))
    found = differences(forward(traced(name), points, side), forward(hf(name), points, side))
    assert max(found.values()) == 0, found


@pytest.mark.parametrize("name", SERVED)
def test_the_same_is_read_when_its_cache_goes_on(name: str) -> None:
    points = points_of(hf(name))
    for ours, theirs in zip(decoded(traced(name), points), decoded(hf(name), points), strict=True):
        found = differences(ours, theirs)
        assert max(found.values()) == 0, found


@pytest.mark.parametrize(
    ("name", "remote"), [("llama", False), ("granite", False), ("falcon", False), ("granite", "local")]
)
def test_each_operator_acts_as_in_plain_hooks_on_every_stream(name: str, remote: bool | str) -> None:
    points = points_of(hf(name))
    plain = forward(hf(name), points)
    for stream, width in hf(name).facts.widths.items():
        for edit in edits_at(HookPoint(stream, 1), width):
            theirs = forward(hf(name), points, edits=(edit,))
            found = differences(forward(traced(name, remote), points, edits=(edit,)), theirs)
            assert max(found.values()) <= 1e-6, (edit.kind, edit.point, found)
            assert max(differences(theirs, plain).values()) > 1e-3  # the control: it acts


def test_edits_at_one_point_act_in_their_order_and_between_streams() -> None:
    points = points_of(hf("llama"))
    edits = (
        *edits_at(HookPoint("resid_mid", 1), 32),
        *edits_at(HookPoint("attn_out", 1), 32),
        *edits_at(HookPoint("resid", 1), 32),
        *edits_at(HookPoint("resid", 3), 32),
    )
    for some in (edits, edits[::-1]):
        found = differences(forward(traced("llama"), points, edits=some), forward(hf("llama"), points, edits=some))
        assert max(found.values()) <= 1e-6, found
    orders = [forward(hf("llama"), points, edits=some) for some in (edits, edits[::-1])]
    assert max(differences(*orders).values()) > 1e-3  # the control: the order matters


@pytest.mark.parametrize("name", ["llama", "falcon"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_packed_up_as_for_ndif_a_trace_gives_the_same_and_no_cache(name: str, side: str) -> None:
    remote = traced(name, "local")
    points = points_of(hf(name))
    ours = forward(remote, points, side)
    assert max(differences(ours, forward(hf(name), points, side)).values()) == 0
    assert remote.facts.caching == "none"
    assert ours.cache is None


def test_of_a_hosted_model_residual_points_are_read_and_the_rest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = nnsight.NDIFBackend(source_of("llama"))  # a folder: by its name alone, as a model on NDIF would be
    assert next(backend._traces._traced._module.parameters()).device.type == "meta"
    assert not isinstance(backend, WrapsModel)
    assert find_readout(backend, (35, 36)) is None
    monkeypatch.setattr(backend._traces, "_remote", "local")  # all of the way to NDIF but the network
    check_backend(backend)
    points = points_of(backend)
    assert max(differences(forward(backend, points), forward(hf("llama"), points)).values()) == 0
    with pytest.raises(
        ModelError, match="has no stream 'attn_out': of a model on NDIF this version reads residual poi"
    ):
        forward(backend, (HookPoint("attn_out", 0),))


def test_the_model_is_shared_and_what_it_gives_elsewhere_is_not_changed() -> None:
    own = HFBackend.load(source_of("llama"), dtype="float32", device="cpu", attention=None)
    points = points_of(own)
    before = forward(own, points)
    backend = NNsightBackend(own, source_of("llama"))
    assert isinstance(backend, WrapsModel)
    assert backend.model is own.model
    edit = next(iter(edits_at(HookPoint("resid", 1), 32)))
    forward(backend, points, edits=(edit,))
    assert max(differences(forward(own, points), before).values()) == 0
    assert find_readout(backend, (35, 36)) is not None
    check_backend(backend, own.model)


def test_an_exception_in_the_middle_of_a_trace_keeps_its_kind_and_leaves_the_logits_as_they_were() -> None:
    backend = traced("llama")
    points = points_of(backend)
    plain = forward(backend, points)
    edits = tuple(edits_at(HookPoint("resid", 1), 32))

    def fail(_module: Any, _args: Any) -> None:
        raise torch.OutOfMemoryError("in the middle")

    handle = backend.model.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError, match="in the middle"):  # what makes a shard go on with fewer rows
        forward(backend, points, edits=edits)
    handle.remove()
    assert torch.equal(forward(backend, points).logits, plain.logits)


def test_what_is_saved_is_what_was_indexed_and_not_the_activations() -> None:
    backend, ids = traced("llama"), torch.randint(10, 600, (2, 40))
    got = backend.forward(ids, torch.ones_like(ids), Reads(points_of(backend), torch.tensor([[3], [39]])))
    for stream, values in got.values.items():
        assert values.shape[1:] == (2, 1, backend.facts.widths[stream])
        assert values.untyped_storage().nbytes() == values.nbytes
    assert got.logits.shape == (2, 1, 600)


def test_a_loaded_backend_says_where_it_runs() -> None:
    kinds: tuple[tuple[bool | str, str], ...] = ((False, "attention"), ("local", "none"))
    for remote, caching in kinds:
        loaded = load_backend(
            source_of("llama"), backend="nnsight", dtype="auto", device="cpu", attention=None, remote=remote
        )
        assert (loaded.facts.backend, loaded.facts.caching) == ("nnsight", caching)


def test_without_the_library_one_line_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "nnsight":
            raise ModuleNotFoundError(f"No module named {name!r}", name="nnsight")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError) as refused:
        nnsight.require_library()
    assert 'pip install "persona-probe[nnsight]"' in str(refused.value)
    assert "\n" not in str(refused.value)
