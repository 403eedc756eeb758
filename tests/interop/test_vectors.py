"""A vector that leaves for another tool is added there at the very point where we add it, and one off is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from probe.interop import (
    ControlVector,
    control_vector,
    directions_of,
    gguf_name,
    hookpoint,
    persona_vectors_row,
    point_of_gguf,
    point_of_hook,
    point_of_hookpoint,
    point_of_row,
)
from probe.interop.gguf_files import read_gguf
from probe.models import find_model
from probe.models.block_names import block_names
from probe.models.edits import Edit
from probe.models.hf import HFBackend
from probe.models.points import HookPoint, residual_points
from probe.models.protocol import Reads
from probe.stages.direction_files import load_directions, save_directions
from probe.stages.vectors import Chosen, ForModel, export_vector, import_vector
from probe.values import Direction, ProbeError, Site
from tests.tiny_models import save_tiny_model

L, D = 3, 32
FORMATS = {"gguf": ".gguf", "persona-vectors": ".pt", "lm-eval": ".pt", "safetensors": ".safetensors"}


def directions(points: tuple[int, ...] = tuple(range(L + 1)), persona: str = "nurse") -> list[Direction]:
    rng = np.random.default_rng(3)
    told = {"model": "tiny", "n_layers": L, "split_seed": 4}
    return [
        Direction(
            Site(point, "prompt_end"),
            rng.normal(size=D).astype(np.float32),
            persona,
            "none",
            7,
            frozenset({"f1", "f2"}),
            frozenset({"c1"}),
            "paired_mean",
            told,
        )
        for point in points
    ]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param, scale=3.0)


@pytest.fixture(scope="module")
def backend(folder: Path) -> HFBackend:
    return HFBackend.load(find_model(str(folder)), dtype="auto", device="cpu", attention=None)


IDS = torch.tensor([[5, 6, 7, 8]])


def ours(backend: HFBackend, point: int, vector: np.ndarray) -> torch.Tensor:
    """The logits with our own intervention at a point."""
    edit = Edit(
        HookPoint("resid", point), "add", torch.ones_like(IDS, dtype=torch.bool), torch.from_numpy(vector)[None]
    )
    reads = Reads(residual_points((L,)), torch.tensor([[IDS.shape[1] - 1]]))
    return backend.forward(IDS, torch.ones_like(IDS), reads, edits=(edit,)).logits[:, -1]


def hooked(backend: HFBackend, module: torch.nn.Module, vector: Any) -> torch.Tensor:
    """The logits with a plain hook that adds a vector to what a module returns."""

    def add(_module: Any, _args: Any, out: Any) -> Any:
        steer = torch.as_tensor(np.asarray(vector))
        return (out[0] + steer, *out[1:]) if isinstance(out, tuple) else out + steer

    handle = module.register_forward_hook(add)
    try:
        with torch.no_grad():
            return backend.model(input_ids=IDS).logits[:, -1]
    finally:
        handle.remove()


def blocks_of(backend: HFBackend) -> Any:
    return backend.model.transformer.h if hasattr(backend.model, "transformer") else backend.model.model.layers


def as_llama_cpp(path: Path, backend: HFBackend) -> list[tuple[torch.nn.Module, Any]]:
    """``direction.N`` is added to the output of block N, and block 0 never has one."""
    tensors = {one.name: np.array(one.data) for one in gguf.GGUFReader(path).tensors}
    return [(blocks_of(backend)[int(name.split(".")[1])], array) for name, array in tensors.items()]


def as_persona_vectors(path: Path, backend: HFBackend) -> list[tuple[torch.nn.Module, Any]]:
    """Row k is added to the output of block k - 1, as its steerer does with the layer it is told."""
    rows = torch.load(path, weights_only=True)
    return [(blocks_of(backend)[k - 1], rows[k].numpy()) for k in range(1, len(rows)) if torch.isfinite(rows[k]).all()]


def as_lm_eval(path: Path, backend: HFBackend) -> list[tuple[torch.nn.Module, Any]]:
    """Hookpoints are modules of ``base_model``; what is added is coefficient times vector."""
    modules = dict(backend.model.base_model.named_modules())
    steering = torch.load(path, weights_only=True)
    assert all(entry["action"] == "add" and entry["bias"] is None for entry in steering.values())
    return [
        (modules[name], (entry["steering_coefficient"] * entry["steering_vector"]).numpy())
        for name, entry in steering.items()
    ]


AS: dict[str, Callable[[Path, HFBackend], list[tuple[torch.nn.Module, Any]]]] = {
    "gguf": as_llama_cpp,
    "persona-vectors": as_persona_vectors,
    "lm-eval": as_lm_eval,
}


@pytest.mark.parametrize("to", AS)
def test_a_plain_hook_on_what_the_file_says_is_our_intervention_at_that_point_and_at_no_other(
    to: str, backend: HFBackend, folder: Path, tmp_path: Path
) -> None:
    source = save_directions(tmp_path / "directions.safetensors", directions())
    for point in range(L + 1):
        out = tmp_path / f"{point}{FORMATS[to]}"
        try:
            written = export_vector(source, to, out, Chosen(points=(point,)), ForModel(str(folder)))
        except ProbeError:
            assert not out.exists()
            assert point in {"gguf": (0, 1), "persona-vectors": (L,), "lm-eval": (0,)}[to]
            continue
        if point == 0:
            continue  # the embedding is the output of no block: persona_vectors holds it, and steers by no row 0
        [(module, vector)] = AS[to](out, backend)
        found = hooked(backend, module, vector)
        torch.testing.assert_close(found, ours(backend, point, written.vectors[point]), rtol=1e-5, atol=1e-4)
        for other in range(L + 1):
            if other != point:
                assert not torch.allclose(found, ours(backend, other, written.vectors[point]), rtol=1e-3, atol=1e-2)


def test_every_name_of_a_point_leads_back_to_it() -> None:
    blocks = tuple(f"model.layers.{k}" for k in range(6))
    for point in range(7):
        if point > 1:
            assert gguf_name(point, 6) == f"direction.{point - 1}"
            assert point_of_gguf(gguf_name(point, 6), 6) == point
        if point > 0:
            assert point_of_hookpoint(hookpoint(point, blocks), 6) == point
        if point < 6:
            assert persona_vectors_row(point, 6) == point == point_of_row(point, 6)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: gguf_name(0, 6), "no block writes it"),
        (lambda: gguf_name(1, 6), r"llama\.cpp refuses a control vector for block 0 \(direction\.0\)"),
        (lambda: gguf_name(7, 6), "residual points 0 to 6; found 7"),
        (lambda: point_of_gguf("direction.0", 6), r"direction\.1 to direction\.5.*found 'direction\.0'"),
        (lambda: point_of_gguf("direction.6", 6), r"found 'direction\.6'"),
        (lambda: point_of_gguf("directions.1", 6), "found 'directions.1'"),
        (lambda: persona_vectors_row(6, 6), "after the final norm"),
        (lambda: point_of_row(6, 6), "after the final norm"),
        (lambda: hookpoint(0, ("layers.0",)), "no block writes it"),
        (lambda: point_of_hookpoint("layers.6", 6), "a whole block"),
        (lambda: point_of_hookpoint("layers.3.mlp", 6), "a whole block"),
        (lambda: point_of_hookpoint("layers.3.mlp.experts.2", 6), "a whole block"),
    ],
)
def test_a_point_without_a_place_and_a_name_without_a_point_are_refused(wrong: Callable[[], Any], match: str) -> None:
    with pytest.raises(ProbeError, match=match):
        wrong()


def test_the_names_of_blocks_are_those_of_the_model_itself(folder: Path, backend: HFBackend) -> None:
    modules = dict(backend.model.base_model.named_modules())
    names = block_names(find_model(str(folder)))
    assert [modules[name] for name in names] == list(blocks_of(backend))


@pytest.mark.parametrize("to", FORMATS)
def test_what_goes_out_comes_back_at_the_same_points(to: str, tmp_path: Path, folder: Path) -> None:
    made = directions()
    source = save_directions(tmp_path / "ours.safetensors", made)
    out, back = tmp_path / f"theirs{FORMATS[to]}", tmp_path / "back.safetensors"
    written = export_vector(source, to, out, Chosen(), ForModel(str(folder)))
    expected = {"gguf": (2, 3), "persona-vectors": (0, 1, 2), "lm-eval": (1, 2, 3), "safetensors": (0, 1, 2, 3)}[to]
    assert tuple(written.vectors) == expected
    import_vector(out, back, ForModel(n_layers=L), persona="nurse" if to in ("persona-vectors", "lm-eval") else None)
    found = load_directions(back)
    assert tuple(one.site.layer for one in found) == expected
    for one in found:
        np.testing.assert_array_equal(one.vector, made[one.site.layer].vector)
        assert one.persona == "nurse"
        if to in ("gguf", "safetensors"):  # these files have room for who fitted it, so that judging stays honest
            told = (one.base, one.site.position, one.fitted_on, one.cases, one.maker, one.n_cases)
            assert told == ("none", "prompt_end", frozenset({"f1", "f2"}), frozenset({"c1"}), "paired_mean", 7)
        else:
            assert (one.base, one.site.position, one.maker) == ("unknown", "unknown", "imported")
        assert one.provenance["imported_from"] == out.name


def test_a_coefficient_is_kept_in_lm_evals_file_and_multiplied_on_the_way_back(tmp_path: Path, folder: Path) -> None:
    source = save_directions(tmp_path / "ours.safetensors", directions())
    out = tmp_path / "steer.pt"
    export_vector(source, "lm-eval", out, Chosen(points=(2,)), ForModel(str(folder)), coefficient=-2.5)
    [entry] = torch.load(out, weights_only=True).values()
    assert entry["steering_coefficient"] == -2.5
    np.testing.assert_array_equal(entry["steering_vector"].numpy(), directions()[2].vector)
    [back] = import_vector(out, tmp_path / "back.safetensors", ForModel(n_layers=L))
    np.testing.assert_allclose(back.vector, -2.5 * directions()[2].vector, rtol=1e-6)
    with pytest.raises(ProbeError, match="only lm-eval's files keep a coefficient"):
        export_vector(source, "gguf", tmp_path / "x.gguf", Chosen(), ForModel(str(folder)), coefficient=2.0)


def test_rows_of_a_persona_vectors_tensor_without_a_vector_are_not_numbers(tmp_path: Path, folder: Path) -> None:
    source = save_directions(tmp_path / "ours.safetensors", directions())
    out = tmp_path / "nurse.pt"
    export_vector(source, "persona-vectors", out, Chosen(points=(1,)), ForModel(str(folder)))
    rows = torch.load(out, weights_only=True)
    assert rows.shape == (L + 1, D)
    assert torch.isfinite(rows).all(dim=1).tolist() == [False, True, False, False]


def test_a_persona_vectors_tensor_gives_up_its_last_row_and_rows_of_zeros(tmp_path: Path) -> None:
    rows = torch.randn(L + 1, D, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    rows[0] = 0  # the last prompt token is the same token on both sides
    torch.save(rows, tmp_path / "evil_prompt_last_diff.pt")
    found = import_vector(
        tmp_path / "evil_prompt_last_diff.pt", tmp_path / "evil.safetensors", ForModel(), position="prompt_end"
    )
    assert [(one.site.layer, one.site.position, one.persona) for one in found] == [
        (1, "prompt_end", "evil_prompt_last_diff"),
        (2, "prompt_end", "evil_prompt_last_diff"),
    ]
    np.testing.assert_array_equal(found[0].vector, rows[1].float().numpy())
    with pytest.raises(ProbeError, match="a model of 3 blocks, and 5 were expected"):
        import_vector(tmp_path / "evil_prompt_last_diff.pt", tmp_path / "x.safetensors", ForModel(n_layers=5))


def test_a_foreign_control_vector_needs_the_depth_of_its_model_and_layer_count_is_not_it(tmp_path: Path) -> None:
    path = tmp_path / "happy.gguf"
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 1)
    vector = np.arange(D, dtype=np.float32)
    writer.add_tensor("direction.2", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ProbeError, match=r"how many blocks its model has.*--model.*--n-layers"):
        import_vector(path, tmp_path / "x.safetensors", ForModel())
    with pytest.raises(ProbeError, match=r"direction\.1 to direction\.1.*found 'direction\.2'"):
        import_vector(path, tmp_path / "x.safetensors", ForModel(n_layers=2))
    [found] = import_vector(path, tmp_path / "x.safetensors", ForModel(n_layers=L))
    assert (found.site.layer, found.persona, found.fitted_on) == (3, "happy", frozenset())
    np.testing.assert_array_equal(found.vector, vector)


def broken_files(tmp_path: Path) -> list[tuple[str, str]]:
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    (tmp_path / "text.gguf").write_text("hello")
    torch.save({"a": {"steering_vector": torch.zeros(4), "action": "clamp"}}, tmp_path / "clamp.pt")
    torch.save({"layers.1.mlp": {"steering_vector": torch.zeros(4), "action": "add"}}, tmp_path / "mlp.pt")
    torch.save({"layers.1": torch.zeros(4)}, tmp_path / "flat.pt")
    torch.save(torch.zeros(4), tmp_path / "one.pt")
    torch.save(Path("x"), tmp_path / "code.pt")
    save_file({"layer.3": np.zeros(4, np.float32)}, tmp_path / "names.safetensors")
    save_file({"blocks.0.hook_resid_post": np.zeros((2, 4), np.float32)}, tmp_path / "two.safetensors")
    twice = {"blocks.0.hook_resid_post": np.ones(4, np.float32), "blocks.1.hook_resid_pre": np.ones(4, np.float32)}
    save_file(twice, tmp_path / "twice.safetensors")
    one = {"blocks.0.hook_resid_post": np.ones(4, np.float32)}
    for name, told in (("list", "[1]"), ("text", "{"), ("kinds", '{"n_layers": 3, "fitted_on": "f1"}')):
        save_file(one, tmp_path / f"{name}.safetensors", metadata={"persona-probe-control-vector": told})
    save_file(one, tmp_path / "deep.safetensors", metadata={"persona-probe-control-vector": '{"n_layers": 7}'})
    (tmp_path / "v.npy").write_bytes(b"")
    return [
        ("no.gguf", "cannot be read as a GGUF file"),
        ("text.gguf", "cannot be read as a GGUF file"),
        ("clamp.pt", "only steering that adds a vector .* action 'clamp'"),
        ("mlp.pt", "a whole block"),
        ("flat.pt", "a mapping of hookpoints to mappings"),
        ("one.pt", r"\[n_layers \+ 1, d_model\]; found shape \(4,\)"),
        ("code.pt", "never unpickled"),
        ("names.safetensors", "a residual hook is"),
        ("two.safetensors", "one vector for a residual point"),
        ("twice.safetensors", "one vector for a residual point"),
        ("list.safetensors", "not JSON of ours"),
        ("text.safetensors", "not JSON of ours"),
        ("kinds.safetensors", "an origin that is not ours"),
        ("deep.safetensors", "for a model of 7 blocks, and 3 were expected"),
        ("v.npy", "end in .gguf, .safetensors or .pt"),
        ("nothing.pt", "there is no file"),
    ]


def test_a_file_that_is_no_vector_is_refused_in_one_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    for name, match in broken_files(tmp_path):
        with pytest.raises(ProbeError, match=match) as caught:
            import_vector(tmp_path / name, tmp_path / "out.safetensors", ForModel(n_layers=L))
        assert "\n" not in str(caught.value), name
    assert not (tmp_path / "out.safetensors").exists()


def test_a_control_vector_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    export_vector(save_directions(tmp_path / "ours.safetensors", directions()), "gguf", whole, Chosen(), ForModel())
    content = whole.read_bytes()
    assert len(read_gguf(whole).vectors) == 2
    for length in range(0, len(content), 13):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(ProbeError, match=r"cannot be read as a GGUF file|general\.architecture"):
            read_gguf(tmp_path / "cut.gguf")


def test_a_file_of_several_personas_asks_which_and_the_nearest_name_is_told(tmp_path: Path, folder: Path) -> None:
    source = save_directions(tmp_path / "two.safetensors", [*directions(), *directions(persona="physician")])
    out = tmp_path / "x.gguf"
    with pytest.raises(ProbeError, match=r"one persona's.*--persona"):
        export_vector(source, "gguf", out, Chosen(), ForModel())
    with pytest.raises(ProbeError, match=r"'nurs'.*nurse"):
        export_vector(source, "gguf", out, Chosen(persona="nurs"), ForModel())
    with pytest.raises(ProbeError, match="no such direction at residual point 9"):
        export_vector(source, "gguf", out, Chosen(persona="nurse", points=(9,)), ForModel())
    with pytest.raises(ProbeError, match=r"must end in \.gguf"):
        export_vector(source, "gguf", tmp_path / "x.bin", Chosen(persona="nurse"), ForModel())
    with pytest.raises(ProbeError, match=r"no format 'ggfu'.*gguf"):
        export_vector(source, "ggfu", out, Chosen(persona="nurse"), ForModel())
    with pytest.raises(ProbeError, match="of 3 blocks, and 4 were expected"):
        export_vector(source, "gguf", out, Chosen(persona="nurse"), ForModel(n_layers=4))
    export_vector(source, "gguf", out, Chosen(persona="physician"), ForModel())
    with pytest.raises(ProbeError, match="never writes over"):
        export_vector(source, "gguf", out, Chosen(persona="physician"), ForModel())
    old = [replace(one, provenance={}) for one in directions()]
    with pytest.raises(ProbeError, match="does not say how many blocks"):
        export_vector(save_directions(tmp_path / "old.safetensors", old), "gguf", out, Chosen(), ForModel())


def test_plain_safetensors_say_in_each_name_where_the_vector_is_added(tmp_path: Path, folder: Path) -> None:
    source = save_directions(tmp_path / "ours.safetensors", directions())
    export_vector(source, "safetensors", tmp_path / "plain.safetensors", Chosen(), ForModel())
    tensors = load_file(tmp_path / "plain.safetensors")
    assert sorted(tensors) == [
        *(f"blocks.{k}.hook_resid_pre" for k in range(2)),
        "blocks.2.hook_resid_post",
        "blocks.2.hook_resid_pre",
    ]
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, directions()[point_of_hook(name, L)].vector)
    save_file(tensors, tmp_path / "bare.safetensors")  # without metadata: anybody's file
    found = import_vector(tmp_path / "bare.safetensors", tmp_path / "back.safetensors", ForModel(n_layers=L))
    assert [one.site.layer for one in found] == [0, 1, 2, 3]


def test_a_control_vector_holds_one_width_finite_values_and_points_of_its_model() -> None:
    ones = np.ones(4, np.float32)
    with pytest.raises(ProbeError, match="one model width, found no vector"):
        ControlVector(3, {})
    with pytest.raises(ProbeError, match=r"one model width, found \[3, 4\]"):
        ControlVector(3, {1: ones, 2: ones[:3]})
    with pytest.raises(ProbeError, match="residual points 0 to 3; found 4"):
        ControlVector(3, {4: ones})
    with pytest.raises(ProbeError, match="point 2 must be finite"):
        ControlVector(3, {1: ones, 2: ones * np.nan})
    one = directions()[0]
    with pytest.raises(ProbeError, match="several at point 0"):
        control_vector([one, one], 3)
    with pytest.raises(ProbeError, match="found a direction of mlp_out"):
        control_vector([replace(one, site=Site(0, "prompt_end", "mlp_out"))], 3)
    kept = control_vector(directions(), L)
    assert json.loads(json.dumps(dict(kept.origin)))["persona"] == "nurse"
    assert [one.site.layer for one in directions_of(kept, "nurse")] == [0, 1, 2, 3]


def test_a_control_vector_remembers_every_family_that_fitted_any_of_its_points() -> None:
    one, other = directions((1, 2))
    kept = control_vector([one, replace(other, fitted_on=frozenset({"f3"}))], L)
    assert {name for back in directions_of(kept, "nurse") for name in back.fitted_on} == {"f1", "f2", "f3"}
