"""Each operator is its formula, row by row and only where it acts."""

from __future__ import annotations

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
    }


@pytest.mark.parametrize("kind", ["add", "patch", "ablate", "set"])
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
