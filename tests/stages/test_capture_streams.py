"""Streams that a study asks for come from the blocks into its store, row by row; what a model has not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probe.models import find_model
from probe.models.loading import load_backend
from probe.models.points import points_of
from probe.models.protocol import Reads
from probe.stages.capture import capture
from probe.stages.preparation import prepare
from probe.store import open_store
from probe.study import Study
from probe.values import STREAMS, ModelError, StudyError
from tests.tiny_models import save_tiny_model


def study(model: str, **capture_settings: Any) -> Study:
    return Study.from_mapping(
        {
            "name": "streams",
            "model": {"id": model},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": 3,
            "capture": {"batch_size": 4, **capture_settings},
            "generation": {"max_new_tokens": 40},
        }
    )


def test_the_store_holds_what_an_unbatched_forward_reads_at_each_token(tmp_path: Path) -> None:
    positions = ["prompt_end", "persona_end", "case_mean", "answer", "response_mean"]
    asked = study("organism", layers=[1, 3], streams=list(STREAMS), positions=positions)
    assert capture(asked, store=tmp_path / "store").committed == 6
    view = open_store(tmp_path / "store").select()
    backend = load_backend(find_model("organism"), backend="hf", dtype="auto", device="cpu", attention=None)
    points = points_of(STREAMS, (1, 3), backend.facts.shape.n_layers)
    compared: list[str] = []
    for record in view.records():
        tokens = torch.tensor([[*record.prompt_tokens, *record.gen_tokens]])
        reads = Reads(points, torch.arange(tokens.shape[1])[None])
        values = backend.forward(tokens, torch.ones_like(tokens), reads).values
        n_prompt = len(record.prompt_tokens)
        for stream in STREAMS:
            assert record.at(stream).keys() == record.resid.keys()
            for position, stored in record.at(stream).items():
                if position == "case_mean":
                    continue
                at = values[stream][:, 0, record.positions[position]]
                if position == "response_mean":
                    at = values[stream][:, 0, n_prompt:].mean(1)
                np.testing.assert_allclose(stored, at.numpy(), rtol=1e-4, atol=1e-4)
                compared.append(position)
    counts = {position: compared.count(position) for position in positions}
    assert counts.pop("case_mean") == 0  # below
    assert counts["persona_end"] == 3 * len(STREAMS)  # of the persona that has a text
    assert min(counts.values()) > 0
    for block in (1, 3):
        mid = np.asarray(view.resid(stream="resid_mid", layer=block, position="case_mean"))
        pre = np.asarray(view.resid(layer=block, position="case_mean"))
        np.testing.assert_allclose(
            mid - pre, view.resid(stream="attn_out", layer=block, position="case_mean"), atol=1e-4
        )


def test_the_plan_counts_the_bytes_of_every_stream_and_its_identity_names_them(tmp_path: Path) -> None:
    plain, more = (prepare(study("organism", streams=streams)) for streams in (["resid"], ["resid", "mlp_out"]))
    n_layers = plain.resolved.shape.n_layers
    assert plain.resolved.row_bytes * (2 * n_layers + 1) == more.resolved.row_bytes * (n_layers + 1)
    assert "streams" not in plain.manifest["capture"]
    width = plain.resolved.shape.d_model
    assert more.manifest["capture"]["streams"] == {"mlp_out": {"layers": list(range(n_layers)), "width": width}}
    assert capture(study("organism", streams=["resid", "mlp_out"]), store=tmp_path / "store").committed == 6
    found = [path.stat().st_size for path in (tmp_path / "store" / "shards").iterdir()]
    rows = list(open_store(tmp_path / "store").select().records())
    stored = sum(values.nbytes for row in rows for stream in STREAMS for values in row.at(stream).values())
    assert stored == sum(len(row.resid) for row in rows) * more.resolved.row_bytes // 2
    assert sum(found) > stored


def test_a_stream_that_the_model_does_not_have_is_refused_before_there_is_a_store(tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path / "tiny", "gpt_neox"))
    with pytest.raises(
        ModelError, match="GPTNeoXForCausalLM has no stream 'resid_mid': block 0 adds attention and MLP"
    ):
        capture(study(folder, streams=["resid", "resid_mid"]), store=tmp_path / "store")
    assert not (tmp_path / "store" / "manifest.json").exists()
    assert capture(study(folder, streams=["resid", "attn_out"]), store=tmp_path / "store").committed == 6
    assert open_store(tmp_path / "store").select().streams == ("resid", "attn_out")


def test_blocks_that_are_not_there_are_refused_without_loading_the_model() -> None:
    last = prepare(study("organism")).resolved.shape.n_layers
    with pytest.raises(StudyError, match=f"names only point {last}, where no block begins to read mlp_out in"):
        prepare(study("organism", layers=[last], streams=["resid", "mlp_out"]))
    assert [
        point.layer
        for point in prepare(study("organism", layers=[last, 0], streams=["resid", "mlp_out"])).resolved.points
    ] == [last, 0, 0]
