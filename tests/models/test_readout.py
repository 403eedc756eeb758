"""A store's readout gives the model's own label logits from the stored residual, without the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from probe.models import find_model
from probe.models.loading import load_backend
from probe.models.points import residual_points
from probe.models.protocol import Reads
from probe.models.readout import Readout, find_readout
from tests.tiny_models import FAMILIES, save_tiny_model

TOKENS = (35, 36, 37, 305)


def logits_of(readout: Readout, x: np.ndarray) -> np.ndarray:
    """The formula of docs/FORMAT.md, in numpy."""
    if readout.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + readout.eps) * readout.weight + readout.bias
    logits = readout.scale * (normed @ readout.unembed.T + readout.unembed_bias)
    return np.asarray(readout.softcap * np.tanh(logits / readout.softcap) if readout.softcap else logits)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mamba2"])
def test_the_last_point_gives_the_models_logits_and_another_point_does_not(tmp_path: Path, family: str) -> None:
    source = find_model(str(save_tiny_model(tmp_path / family, family, scale=3.0)))
    backend = load_backend(source, backend="hf", dtype="auto", device="cpu", attention=None)
    readout = find_readout(backend, TOKENS)
    assert readout is not None
    ids = torch.randint(5, 600, (2, 9), generator=torch.Generator().manual_seed(7))
    n_layers = backend.facts.shape.n_layers
    got = backend.forward(
        ids, torch.ones_like(ids), Reads(residual_points((n_layers - 1, n_layers)), torch.tensor([[8], [8]]))
    )
    expected = got.logits[:, 0, list(TOKENS)].numpy()
    scale = np.abs(expected).max()
    assert np.abs(logits_of(readout, got.values["resid"][1, :, 0].numpy()) - expected).max() < 1e-4 * scale
    assert np.abs(logits_of(readout, got.values["resid"][0, :, 0].numpy()) - expected).max() > 1e-2 * scale


def test_a_head_of_another_form_has_no_readout(tmp_path: Path) -> None:
    source = find_model(str(save_tiny_model(tmp_path / "tiny", "llama", scale=3.0)))
    backend = load_backend(source, backend="hf", dtype="auto", device="cpu", attention=None)
    assert find_readout(backend, TOKENS) is not None
    head = backend.model.lm_head  # type: ignore[attr-defined]
    handle = head.register_forward_hook(lambda _module, _args, output: output**3)
    assert find_readout(backend, TOKENS) is None
    handle.remove()


def test_the_same_model_gives_the_same_bytes_whatever_was_drawn_before(tmp_path: Path) -> None:
    source = find_model(str(save_tiny_model(tmp_path / "tiny", "gpt2", scale=3.0)))
    backend = load_backend(source, backend="hf", dtype="auto", device="cpu", attention=None)
    first = find_readout(backend, TOKENS)
    torch.randn(3)
    second = find_readout(backend, TOKENS)
    assert first is not None
    assert second is not None
    assert all(np.array_equal(a, b) for a, b in zip(first.tensors().values(), second.tensors().values(), strict=True))
