"""A resumed forward is tried before it is trusted, and leaves the model as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from probe.models import resume
from probe.models.caches import SlotCache
from probe.models.edits import Edit
from probe.models.hf import HFBackend
from probe.models.points import HookPoint, residual_points
from probe.models.protocol import Forward, Reads
from probe.models.resume import Resumer, Start
from tests.capture.architectures import fresh

IDS = torch.arange(20, 40).reshape(2, 10)
NOTHING = Reads((), torch.zeros((2, 1), dtype=torch.long))


@pytest.fixture
def backend() -> HFBackend:
    loaded = fresh("llama", "hf")
    assert isinstance(loaded, HFBackend)
    return loaded


def resumed(backend: HFBackend, layer: int, *, edits: list[Edit] | None = None, n: int = 4) -> Tensor:
    """The logits of two rows whose last tokens are run again, from a layer on."""
    assert backend.resumer is not None
    cache = SlotCache(backend.resumer.layout, *IDS.shape)
    cache.see(0, 2, 0, 0)
    every = Reads(residual_points((layer,)), torch.arange(10).expand(2, -1))
    whole = backend.forward(IDS, torch.ones_like(IDS), every, cache=cache)
    cache.see(0, 2, 0, 10 - n)
    start = Start(layer, whole.values["resid"][0][:, -n:])
    return backend.resumer.forward(
        IDS[:, -n:], torch.ones_like(IDS), NOTHING, start, cache=cache, edits=edits or []
    ).logits


@pytest.mark.parametrize("layer", range(4))
def test_a_resumed_forward_gives_what_a_whole_one_gives(backend: HFBackend, layer: int) -> None:
    whole = backend.forward(IDS, torch.ones_like(IDS), NOTHING).logits
    torch.testing.assert_close(resumed(backend, layer), whole, rtol=0, atol=1e-4)


def test_a_model_whose_blocks_talk_past_the_residual_is_not_resumed(backend: HFBackend) -> None:
    """One block hands a number to the next beside the residual: where it stands aside, the number is an old one."""
    one, two, _ = backend.blocks
    assert HFBackend(backend.model).resumer is not None
    said: list[Tensor] = []
    one.register_forward_hook(lambda _m, _a, out: said.append(out[:, -1:].clone()))
    two.register_forward_hook(lambda _m, _a, out: out + (said[-1] if said[-1].shape[0] == len(out) else 0))
    assert HFBackend(backend.model).resumer is None


def opened(where: slice) -> Any:
    """The wider mask with some of its columns open to every version of a token."""
    own = resume._WiderMask._make

    def make(self: Any, mask: Tensor | None) -> Tensor:
        found = own(self, mask).clone()
        found[..., where] = True
        return found

    return make


@pytest.mark.parametrize("where", [slice(-3, None), slice(0, 3)], ids=["they see one another", "they see pads"])
def test_versions_that_see_what_they_must_not_do_not_stand_abreast(
    backend: HFBackend, where: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.resumer is not None and backend.resumer.abreast
    monkeypatch.setattr(resume._WiderMask, "_make", opened(where))
    broken = resume.find_resumer(backend)
    assert broken is not None and not broken.abreast


def test_a_start_from_the_residual_of_another_row_is_not_trusted(
    backend: HFBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Resumer.forward

    def forward(self: Resumer, ids: Tensor, mask: Tensor, reads: Reads, start: Start, **more: Any) -> Forward:
        return own(self, ids, mask, reads, replace(start, hidden=start.hidden.roll(1, 0)), **more)

    assert resume.find_resumer(backend) is not None
    monkeypatch.setattr(Resumer, "forward", forward)
    assert resume.find_resumer(backend) is None


def test_whatever_happens_the_model_is_as_it_was(backend: HFBackend) -> None:
    class Broken(Edit):
        def __call__(self, hidden: Tensor) -> Tensor:
            raise RuntimeError("broken")

    def state() -> list[Any]:
        modules = [module for block in backend.blocks for module in block.modules()]
        return [(dict(m._forward_hooks), dict(m._forward_pre_hooks), m.__dict__.get("forward")) for m in modules]

    own = backend.blocks[0].forward
    backend.blocks[0].forward = own  # an instance's own, as tools set them that place models on devices
    before, wanted = state(), resumed(backend, 2)
    edit = Broken(HookPoint("resid", 2), "add", torch.ones((2, 4), dtype=torch.bool))
    with pytest.raises(RuntimeError, match="broken"):
        resumed(backend, 2, edits=[edit])
    assert state() == before
    assert torch.equal(resumed(backend, 2), wanted)
