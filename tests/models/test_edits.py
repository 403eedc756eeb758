"""Each operator is its formula, row by row and only where it acts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from probe.models.edits import Edit
from probe.models.points import HookPoint, points_of

POINT = HookPoint("resid", 1)
WHERE = torch.tensor([[True, False, True], [False, False, True]])


def hidden(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def bases(k: int = 2) -> Tensor:
    drawn = torch.randn(2, 8, k, generator=torch.Generator().manual_seed(2))
    return torch.linalg.qr(drawn).Q.transpose(1, 2).contiguous()


def vectors() -> Tensor:
    return torch.randn(2, 8, generator=torch.Generator().manual_seed(3))


def edits() -> dict[str, Edit]:
    coordinates = torch.tensor([[3.0, -1.0], [0.5, 2.0]])
    return {
        "add": Edit(POINT, "add", WHERE, vector=vectors()),
        "patch": Edit(POINT, "patch", WHERE, vector=vectors()),
        "ablate": Edit(POINT, "ablate", WHERE, basis=bases()),
        "set": Edit(POINT, "set", WHERE, basis=bases(), coordinates=coordinates),
        "cap": Edit(POINT, "cap", WHERE, basis=bases(), coordinates=coordinates - 6),
        "relative": Edit(POINT, "add", WHERE, vector=vectors(), relative=True),
    }


@pytest.mark.parametrize("kind", list(edits()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_operator_acts_where_it_should_and_leaves_every_other_bit(kind: str, dtype: torch.dtype) -> None:
    x, edit = hidden(dtype), edits()[kind]
    before = x.clone()
    after = edit(x)
    assert after.dtype == dtype
    assert torch.equal(x, before)
    assert torch.equal(after[~WHERE], x[~WHERE])
    assert not torch.isclose(after[WHERE].float(), x[WHERE].float(), rtol=1e-2).all(-1).any()


def test_add_and_patch_use_each_rows_own_vector() -> None:
    x = hidden()
    for row, place in ((0, 0), (0, 2), (1, 2)):
        torch.testing.assert_close(edits()["add"](x)[row, place], x[row, place] + vectors()[row])
        torch.testing.assert_close(edits()["patch"](x)[row, place], vectors()[row])


def test_ablate_removes_a_span_and_set_gives_it_coordinates_and_neither_touches_the_rest() -> None:
    x, basis = hidden(), bases()
    inside = torch.einsum("bkd,bpd->bpk", basis, x)
    outside = x - torch.einsum("bpk,bkd->bpd", inside, basis)
    for kind, wanted in (("ablate", torch.zeros(2, 2)), ("set", torch.tensor([[3.0, -1.0], [0.5, 2.0]]))):
        after = edits()[kind](x)
        now = torch.einsum("bkd,bpd->bpk", basis, after)
        torch.testing.assert_close(now[0, 2], wanted[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(now[1, 2], wanted[1], rtol=1e-5, atol=1e-5)
        rest = after - torch.einsum("bpk,bkd->bpd", now, basis)
        torch.testing.assert_close(rest, outside, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(edits()[kind](after), after, rtol=1e-5, atol=1e-5)  # once is as good as twice


def test_what_is_added_relative_is_in_units_of_each_tokens_own_norm() -> None:
    x = hidden() * torch.tensor([1.0, 10.0, 100.0])[None, :, None]
    after = edits()["relative"](x)
    for row, place in ((0, 0), (0, 2), (1, 2)):
        size = float(x[row, place].norm())
        torch.testing.assert_close(after[row, place] - x[row, place], size * vectors()[row], rtol=1e-4, atol=1e-4)
    plain = edits()["add"](x)
    assert not torch.isclose(after[0, 2], plain[0, 2], rtol=0.1).all()


def test_cap_lowers_what_is_above_and_leaves_what_is_below_and_the_rest() -> None:
    x, basis = hidden(), bases()
    inside = torch.einsum("bkd,bpd->bpk", basis, x)
    bounds = torch.stack([inside[0, 0] + torch.tensor([0.5, -0.5]), inside[1, 2] - 1.0])
    after = Edit(POINT, "cap", WHERE, basis=basis, coordinates=bounds)(x)
    now = torch.einsum("bkd,bpd->bpk", basis, after)
    torch.testing.assert_close(now[0, 0], torch.stack([inside[0, 0, 0], bounds[0, 1]]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(now[1, 2], bounds[1], rtol=1e-5, atol=1e-5)
    outside = x - torch.einsum("bpk,bkd->bpd", inside, basis)
    torch.testing.assert_close(after - torch.einsum("bpk,bkd->bpd", now, basis), outside, rtol=1e-5, atol=1e-5)
    far = Edit(POINT, "cap", WHERE, basis=basis, coordinates=torch.full((2, 2), 1e4))
    torch.testing.assert_close(far(x), x)  # the control: a bound that nothing reaches


def test_capping_the_negative_of_a_direction_bounds_it_from_below() -> None:
    x, basis = hidden(), bases(1)
    after = Edit(POINT, "cap", WHERE, basis=-basis, coordinates=torch.full((2, 1), -5.0))(x)
    along = torch.einsum("bkd,bpd->bpk", basis, after)[..., 0]
    torch.testing.assert_close(along[WHERE], torch.full((3,), 5.0))


@pytest.mark.parametrize("kind", list(edits()))
def test_a_gate_is_open_where_the_projection_is_above_it_and_a_row_without_one_always(kind: str) -> None:
    x, plain = hidden(), edits()[kind]
    gate = torch.stack([vectors()[0], torch.zeros(8)])
    along = x[0] @ gate[0]
    above = torch.tensor([float(along[[0, 2]].mean()), -torch.inf])
    gated = replace(plain, gate=gate, above=above)(x)
    open_at = [place for place in (0, 2) if along[place] > above[0]]
    assert len(open_at) == 1
    torch.testing.assert_close(gated[0, open_at[0]], plain(x)[0, open_at[0]])
    assert torch.equal(gated[0, 2 - open_at[0]], x[0, 2 - open_at[0]])
    torch.testing.assert_close(gated[1], plain(x)[1])


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_leaves_every_bit(relative: bool, dtype: torch.dtype) -> None:
    x = hidden(dtype)
    edit = Edit(POINT, "add", WHERE, vector=0 * vectors(), relative=relative)
    assert torch.equal(edit(x).view(torch.uint8), x.view(torch.uint8))


def test_a_smaller_span_is_filled_up_with_zeros() -> None:
    x, one = hidden(), bases(1)
    filled = torch.cat([one, torch.zeros_like(one)], dim=1)
    torch.testing.assert_close(
        Edit(POINT, "ablate", WHERE, basis=filled)(x), Edit(POINT, "ablate", WHERE, basis=one)(x)
    )


def test_layers_are_points_of_the_residual_and_blocks_of_the_other_streams() -> None:
    found = points_of(("resid", "mlp_out"), (3, 0, 2), 3)
    assert [(point.stream, point.layer) for point in found] == [
        *(("resid", layer) for layer in (3, 0, 2)),
        *(("mlp_out", block) for block in (0, 2)),
    ]
