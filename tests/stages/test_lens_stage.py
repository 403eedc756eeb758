"""The lens of whole stores: the model's own norm and head again, additive for every norm, without torch, and told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from probe import behaviour
from probe.cli import app
from probe.mechanism.lens.head import label_head, project, token_places
from probe.stages.activations import activations
from probe.stages.analysis import cells
from probe.stages.capture import capture
from probe.stages.lens import lens_tables
from probe.store import Store, open_store
from probe.study import Study
from probe.values import ProbeError, StoreError
from tests.capture import architectures
from tests.test_house import WITHOUT_TORCH

NAMES = ("llama", "gemma2", "gpt2")
PERSONAS = [
    {"id": "none", "text": None},
    {"id": "nurse", "text": "You are a nurse."},
    {"id": "physician", "text": "You are an ED physician."},
]
CASES = [{"id": f"case-{i}", "input": f"fever aged {20 + 9 * i} years", "target": "A"} for i in range(6)] + [
    {"id": "nothing", "input": "N/A", "target": "A"}
]


def study(model: str, **changes: object) -> Study:
    settings: dict[str, object] = {
        "name": "lens",
        "model": {"id": model},
        "personas": PERSONAS,
        "task": {"id": "t", "instruction": "{case} {options}", "options": {"A": "home", "B": "care", "C": "ED"}},
        "cases": CASES,
        "conditions": {"rotations": [0, 1]},
        "capture": {"streams": ["resid", "attn_out", "mlp_out"], "positions": ["prompt_end"]},
        "generation": {"max_new_tokens": 3},
    }
    return Study.from_mapping(settings | changes)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    found = {}
    for name in NAMES:
        path = tmp_path_factory.mktemp(name) / "store"
        capture(study(str(architectures.folder_of(name))), store=path)
        found[name] = open_store(path)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_read_as_the_models_own_norm_and_head_read_it(name: str, stores: dict[str, Store]) -> None:
    model, config = architectures.build(name)
    norm, unembed = architectures._final_norm(model), model.get_output_embeddings()
    view = stores[name].select()
    head = label_head(*stores[name].readout())
    softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
    assert head.softcap == softcap
    for layer in (0, 1, 3):
        x = np.asarray(view.resid(layer=layer, position="prompt_end"))
        with torch.inference_mode():
            expected = unembed(norm(torch.tensor(x)))[:, head.token_ids].double().numpy()
        ours = project(head, x).logits(head)
        assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_the_attribution_sums_to_the_shift_of_the_models_own_logits_before_the_softcap(
    name: str, stores: dict[str, Store]
) -> None:
    store = stores[name]
    tables = lens_tables(store, rng=np.random.default_rng(0))
    rows = tables.attribution[tables.attribution["stratum"] == "all"]
    wide = rows.pivot_table(index=["persona", "contrast"], columns="component", values="value")
    np.testing.assert_allclose(wide.drop(columns="total").sum(axis=1), wide["total"], atol=1e-4)
    assert {"embedding", "attn 0", "mlp 2", "norm", "rounding"} <= set(wide.columns)
    assert wide["rounding"].abs().max() < 1e-4
    # The same shift from the model itself, with the softcap undone on its logits.
    model, config = architectures.build(name)
    view = store.select()
    table, variants = view.table(), view.label_variants("prompt_end").ids
    prompts = {record.cell.row_id: record.prompt_tokens for record in view.records()}
    softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
    contrast = np.empty(len(table))
    for i, row_id in enumerate(table["row_id"]):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompts[row_id]]])).logits[0, -1].double().numpy()
        logits = softcap * np.arctanh(logits / softcap) if softcap else logits
        care, ed = (np.logaddexp.reduce(logits[ids[ids >= 0]]) for ids in variants[i, 1:])
        contrast[i] = ed - care
    counted = (table["case"] != "nothing").to_numpy()
    by = {p: contrast[counted & (table["persona"] == p).to_numpy()].mean() for p in ("none", "nurse")}
    assert wide.loc[("nurse", "C-B"), "total"] == pytest.approx(by["nurse"] - by["none"], abs=1e-3)


def test_the_content_free_case_is_found_and_a_wrong_name_is_refused(stores: dict[str, Store]) -> None:
    tables = lens_tables(stores["llama"])
    assert set(tables.checks["baseline"]) == {"content-free case"}
    assert tables.checks["error"].max() < 1e-4
    assert set(tables.contrasts["n"]) == {6}
    named = lens_tables(stores["llama"], content_free=["case-1"])
    assert set(named.contrasts["n"]) == {6}  # the named one in its place
    with pytest.raises(ProbeError, match="'case-x' is not in the store"):
        lens_tables(stores["llama"], content_free=["case-x"])
    with pytest.raises(ProbeError, match="base persona 'nobody' is not in the store"):
        lens_tables(stores["llama"], base="nobody")


def test_no_other_analysis_counts_the_content_free_case(stores: dict[str, Store]) -> None:
    store = stores["llama"]
    assert "nothing" in set(store.table()["case"])  # it was captured all the same
    assert set(cells(store)["case"]) == set(activations(store).table["case"]) == {f"case-{i}" for i in range(6)}
    assert cells(store).attrs == behaviour.generated(store.table()).attrs
    assert "nothing" in set(activations(store.select()).table["case"])  # a selection is the caller's own
    assert "nothing" in set(cells(store.table())["case"])


def test_a_study_of_nothing_but_content_free_cases_keeps_them(tmp_path: Path) -> None:
    path = str(architectures.folder_of("llama"))
    capture(study(path, cases=CASES[-1:], capture={"positions": ["prompt_end"]}), store=tmp_path / "store")
    assert set(cells(open_store(tmp_path / "store"))["case"]) == {"nothing"}


def test_rotated_letters_are_read_as_the_same_options(stores: dict[str, Store]) -> None:
    view = stores["llama"].select()
    table, ids = view.table(), view.label_variants("prompt_end").ids[:, :, 0]
    first, second = (ids[(table["rotation"] == r).to_numpy()][0] for r in (0, 1))
    assert second.tolist() == np.roll(first, -1).tolist()
    head = label_head(*stores["llama"].readout())
    assert (token_places(head, view.label_variants("prompt_end").ids).max(2) >= 0).all()


def test_the_lens_needs_no_torch(stores: dict[str, Store]) -> None:
    code = WITHOUT_TORCH + (
        "from probe.store import open_store\nfrom probe.stages.lens import lens_tables\n"
        f"assert len(lens_tables(open_store({str(stores['llama'].path)!r})).depths)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_writes_tables_and_figures_and_tells_the_check(stores: dict[str, Store], tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["lens", str(stores["llama"].path), "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "gives the pass's own label contrasts to" in shown.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"lens.csv", "lens_depths.csv", "lens_reliability.csv", "lens_attribution.csv"} <= written
    assert {"lens_prompt_end.png", "lens_attribution_prompt_end.svg"} <= written


def test_a_store_without_a_readout_is_refused(stores: dict[str, Store], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(stores["llama"].path, copy)
    (copy / "readout.safetensors").unlink()
    with pytest.raises(StoreError, match=r"has no readout\.safetensors"):
        lens_tables(open_store(copy))
