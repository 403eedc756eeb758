"""Stores made of what other tools captured: the same findings as from the capture itself, or one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

import probe
from probe.behaviour import Settings
from probe.stages.analysis import shift_tables
from probe.stages.importing import Origin, import_store, run_import
from probe.store import Store, StoreLock, UnknownName, open_store, open_writer
from probe.values import ProbeError, StoreMismatch
from tests.store import store_samples as samples

ABSENT = "case-0002"
MODEL = Origin("someone/model")
N, D = 12, 8


@pytest.fixture
def captured(tmp_path: Path) -> Store:
    """A store of twelve cells that this tool captured; one case has no answer."""
    path, plan = tmp_path / "captured", samples.plan()
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            rows = [row for row in plan.rows if row.shard == shard]
            writer.commit([samples.record(row, answer=row.cell.case != ABSENT) for row in rows])
    return open_store(path)


@pytest.fixture
def table() -> pd.DataFrame:
    """The least that an import needs, beside the labels."""
    cases = [f"case-{k}" for k in range(N // 2)]
    rng = np.random.default_rng(3)
    logp = np.log(rng.dirichlet(np.ones(4), N))
    return pd.DataFrame(
        {
            "case": cases * 2,
            "persona": ["nurse"] * (N // 2) + ["none"] * (N // 2),
            "target": ["home", "clinic", "emergency"] * (N // 3),
            "y_gen": ["home"] * N,
            **{f"logp_{option}": logp[:, k] for k, option in enumerate(samples.OPTIONS)},
        }
    )


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {f"resid.prompt_end.L{k:02d}": rng.standard_normal((N, D)).astype(np.float32) for k in range(3)}


def saved(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    return folder


def bring(tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray], **options: Any) -> Store:
    return import_store(table, [saved(tmp_path / "arrays", arrays)], tmp_path / "out", MODEL, **options)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_exported_store_comes_back_with_the_same_table_residuals_and_findings(
    captured: Store, tmp_path: Path, kind: str
) -> None:
    folder = captured.export("numpy", tmp_path / "exported")
    table = captured.table()
    table.attrs = {}
    file = tmp_path / f"table.{kind}"
    if kind == "csv":
        table.to_csv(file, index=False)
    elif kind == "jsonl":
        table.to_json(file, orient="records", lines=True, double_precision=15)
    else:
        table.to_parquet(file)
    found = import_store(file, [folder], tmp_path / "out", Origin("tiny", high_risk="emergency"))
    ours, theirs = found.table(), table[[name for name in table if not name.startswith("planned")]]
    ours.attrs = {}
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert found.verify() == []
    for position in samples.POSITIONS:
        for layer, resid in captured.select().iter_layers(position=position, missing="nan"):
            got = found.select().resid(layer=layer, position=position, missing="nan")
            assert np.array_equal(got.numpy(), resid.numpy(), equal_nan=True)
    assert found.table()["case"].eq(ABSENT).sum() == 2
    pd.testing.assert_frame_equal(shift_tables(found, base="none"), shift_tables(captured, base="none"))
    settings = Settings(n_bins=5)
    measured, expected = (probe.metrics(store, settings=settings) for store in (found, captured))
    same = [name for name in measured if "planned" not in name]  # the planted truth is not imported
    pd.testing.assert_frame_equal(measured[same], expected[same])


def test_every_row_of_an_import_says_that_it_was_imported_and_a_captured_row_does_not(
    captured: Store, tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray]
) -> None:
    found = bring(tmp_path, table, arrays)
    assert found.provenance()["imported"].tolist() == [True] * N
    assert not captured.provenance()["imported"].any()
    assert found.manifest["model"] == {"id": "someone/model"}
    sources = found.manifest["imported"]["activations"]
    assert [source["file"] for source in sources] == sorted(f"{name}.npy" for name in arrays)
    assert all(len(source["sha256"]) == 64 for source in sources)
    assert [record.positions["prompt_end"] for record in found.select().records()] == [-2] * N


def _npy(folder: Path, arrays: dict[str, np.ndarray]) -> list[Path]:
    return [saved(folder, arrays)]


def _one_safetensors(folder: Path, arrays: dict[str, np.ndarray]) -> list[Path]:
    folder.mkdir()
    save_file(arrays, folder / "all.safetensors")
    return [folder / "all.safetensors"]


def _many_safetensors(folder: Path, arrays: dict[str, np.ndarray]) -> list[Path]:
    folder.mkdir()
    for name, array in arrays.items():
        save_file({"activations": array}, folder / f"{name}.safetensors")
    return [folder]


def _pt(folder: Path, arrays: dict[str, np.ndarray]) -> list[Path]:
    folder.mkdir()
    first, *others = arrays
    torch.save(torch.from_numpy(arrays[first]), folder / f"{first}.pt")
    torch.save({name: torch.from_numpy(arrays[name]).requires_grad_() for name in others}, folder / "rest.pt")
    return [folder / f"{first}.pt", folder / "rest.pt"]


@pytest.mark.parametrize("save", [_npy, _one_safetensors, _many_safetensors, _pt])
def test_every_kind_of_file_gives_the_same_rows(
    tmp_path: Path,
    table: pd.DataFrame,
    arrays: dict[str, np.ndarray],
    save: Callable[[Path, dict[str, np.ndarray]], list[Path]],
) -> None:
    found = import_store(table, save(tmp_path / "files", arrays), tmp_path / "out", MODEL)
    for k, array in enumerate(arrays.values()):
        assert np.array_equal(found.select().resid(layer=k, position="prompt_end").numpy(), array)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_bfloat16_is_kept_as_it_is(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray], kind: str
) -> None:
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    file = tmp_path / f"all.{kind}"
    if kind == "pt":
        torch.save({name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}, file)
    else:
        save_file(narrow, file)
    found = import_store(table, [file], tmp_path / "out", MODEL)
    for k, array in enumerate(narrow.values()):
        resid = found.select().resid(layer=k, position="prompt_end")
        assert resid.dtype == array.dtype
        assert np.array_equal(resid.numpy(raw=True), array)


def test_block_names_become_residual_points(tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray]) -> None:
    embedding, first, second = arrays.values()
    named = {
        "resid_pre.prompt_end.L00": embedding,
        "resid_post.prompt_end.L00": first,
        "resid_post.prompt_end.L01": second,
    }
    found = bring(tmp_path, table, named)
    assert found.layout.layers == (0, 1, 2)
    assert np.array_equal(found.select().activation_cache(position="prompt_end")["resid_post", 1], second)
    with pytest.raises(ProbeError, match=r"residual point 1 at prompt_end is given once"):
        bring(tmp_path, table, named | {"resid_pre.prompt_end.L01": first})


def test_a_map_names_arrays_that_are_called_otherwise(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray]
) -> None:
    first, second, third = arrays.values()
    saved(tmp_path / "mine", {"layer_one": first})
    save_file({"model.layers.1": second, "model.layers.2": third}, tmp_path / "mine" / "x.safetensors")
    names = tmp_path / "names.yaml"
    names.write_text(
        "resid.prompt_end.L01: mine/layer_one.npy\n"
        "resid_post.prompt_end.L01: {file: mine/x.safetensors, key: model.layers.1}\n"
        "resid.prompt_end.L07: {file: mine/x.safetensors, key: model.layers.2}\n",
        encoding="utf-8",
    )
    found = import_store(table, [], tmp_path / "out", MODEL, name_map=names)
    for layer, array in zip((1, 2, 7), (first, second, third), strict=True):
        assert np.array_equal(found.select().resid(layer=layer, position="prompt_end").numpy(), array)
    names.write_text("resid.prompt_end.L01: mine/x.safetensors", encoding="utf-8")
    with pytest.raises(ProbeError, match=r"names one array of .*, which holds model\.layers\.1, model\.layers\.2"):
        import_store(table, [], tmp_path / "other", MODEL, name_map=names)
    with pytest.raises(ProbeError, match=r"found 'layer_one' in .*layer_one\.npy: rename it"):
        import_store(table, [tmp_path / "mine"], tmp_path / "other", MODEL)


@pytest.mark.parametrize("by", ["persona and case", "row_id", "rows array"])
def test_rows_in_another_order_are_found_by_their_key_and_lost_without_it(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray], by: str
) -> None:
    order = np.random.default_rng(5).permutation(N)[:9]  # three rows were not captured
    shuffled = {name: array[order] for name, array in arrays.items()}
    rows = None
    if by == "rows array":
        shuffled["rows.prompt_end"] = order
    else:
        rows = tmp_path / "rows.csv"
        whole = table.assign(row_id=[f"r{k}" for k in range(N)]) if by == "row_id" else table
        columns = ["row_id"] if by == "row_id" else ["persona", "case"]
        whole.iloc[order][columns].to_csv(rows, index=False)
        table = whole
    found = bring(tmp_path, table, shuffled, rows=rows)
    resid = found.select().resid(layer=1, position="prompt_end", missing="drop")
    assert resid.kept.tolist() == sorted(order)
    assert np.array_equal(resid.numpy(), arrays["resid.prompt_end.L01"][sorted(order)])
    with pytest.raises(ProbeError, match=r"\[rows, d_model\] = \[12, 8\].*found \[9, 8\]"):
        saved(tmp_path / "plain", {name: array for name, array in shuffled.items() if name != "rows.prompt_end"})
        import_store(table, [tmp_path / "plain"], tmp_path / "plain-out", MODEL)


def _without(name: str) -> Callable[..., None]:
    def change(table: pd.DataFrame, arrays: dict[str, np.ndarray]) -> None:
        del table[name]

    return change


def _set(name: str, line: int, value: object) -> Callable[..., None]:
    def change(table: pd.DataFrame, arrays: dict[str, np.ndarray]) -> None:
        table[name] = table[name].astype(object) if name in table else [None] * len(table)
        table.loc[line, name] = value

    return change


def _array(name: str, of: Callable[[np.ndarray], np.ndarray]) -> Callable[..., None]:
    def change(table: pd.DataFrame, arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = of(arrays.get(name, next(iter(arrays.values()))))

    return change


def _spoiled(array: np.ndarray) -> np.ndarray:
    spoiled = array.copy()
    spoiled[7, 3] = np.nan
    return spoiled


LAST = "resid.prompt_end.L02"
BROKEN = {
    "no persona": (_without("persona"), r"needs the columns case and persona.*'persona' is missing"),
    "a line without case": (_set("case", 4, None), r"every line names its case; line 5 of the table has none"),
    "a cell twice": (_set("case", 1, "case-0"), r"lines 1 and 2 are both nurse/case-0"),
    "a case with two strata": (_set("stratum", 3, "odd"), r"a case has one stratum; case 'case-3' has 'odd'"),
    "an unknown label": (_set("y_gen", 2, "hme"), r"y_gen of line 3 .*one of the options home, clinic.*'hme'"),
    "an unknown status": (_set("status", 2, "fine"), r"status is one of parsed.*line 3 .* has 'fine'"),
    "a label without being parsed": (_set("status", 0, "refused"), r"line 1 .* has 'home' and 'refused'"),
    "half a read": (_set("logp_home", 5, None), r"all empty; line 6 \(nurse/case-5\) has nan"),
    "no log-probabilities": (_set("logp_home", 5, 2.0), r"log-probabilities in nats.*line 6"),
    "a mass of another softmax": (_set("label_mass", 3, 0.01), r"from the same softmax, .*line 4 .* has 0\.01, and"),
    "a mass above one": (_set("label_mass", 3, 1.5), r"is the probability on all options.*line 4 .* has 1\.5"),
    "a mass in words": (_set("label_mass", 3, "high"), r"label_mass is a number from 0; line 4 .* has 'high'"),
    "an entropy below zero": (_set("entropy", 3, -2.0), r"entropy is a number from 0; line 4 .* has -2"),
    "a length in words": (_set("n_prompt", 1, "long"), r"n_prompt is a whole number from 0; line 2 .* has 'long'"),
    "half a token": (_set("n_gen", 1, 3.5), r"n_gen is a whole number from 0; line 2 .* has 3\.5"),
    "a flag that is none": (_set("letter_first", 1, "yes"), r"letter_first is true or false; line 2 .* has 'yes'"),
    "another latent label": (_set("y_latent", 0, "home"), r"y_latent is the option of highest logp_; line 1"),
    "an array less": (_array(LAST, lambda a: a[:-1]), r"L02\.npy has the shape .*\[12, 8\].*found \[11, 8\]"),
    "another width": (_array(LAST, lambda a: a[:, :5]), r"L02\.npy has the shape .*one width; found \[12, 5\]"),
    "three axes": (_array(LAST, lambda a: a[None]), r"L02\.npy has the shape .*found \[1, 12, 8\]"),
    "float16": (_array(LAST, lambda a: a.astype(np.float16)), r"is float16; .*nothing silently: allow it with --to-fl"),
    "float64": (_array(LAST, lambda a: a.astype(np.float64)), r"is float64; .*rounded from float64"),
    "integers": (_array(LAST, lambda a: a.astype(np.int32)), r"is int32; a store keeps float32 and bfloat16"),
    "NaN": (_array(LAST, _spoiled), r"L02\.npy has NaN or infinity in entry 7 \(from 0\)"),
    "a point less at one position": (_array("resid.answer.L00", lambda a: a), r"answer lacks 1, 2, which another"),
    "a strange name": (_array("layer3", lambda a: a), r"called resid\.<position>.*found 'layer3'"),
    "another stream": (
        _array("attn_out.prompt_end.L01", lambda a: a),
        r"residual points alone .*attn_out\.prompt_end\.L01",
    ),
    "rows of nothing": (_array("rows.answer", lambda a: np.arange(3)), r"rows\.answer is given, and no array"),
    "rows beyond the table": (_array("rows.prompt_end", lambda a: np.arange(1, N + 1)), r"from 0 to 11; found int64"),
    "a row twice": (_array("rows.prompt_end", lambda a: np.zeros(N, int)), r"the rows of prompt_end name one twice"),
}


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_what_does_not_fit_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray], what: str
) -> None:
    change, sentence = BROKEN[what]
    assert len(bring(tmp_path, table, arrays).table()) == N  # the control: unchanged, it is imported
    changed, given = table.copy(), dict(arrays)
    change(changed, given)
    with pytest.raises(ProbeError, match=sentence) as refused:
        import_store(changed, [saved(tmp_path / "changed", given)], tmp_path / "refused", MODEL)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "refused").exists()


def test_float16_and_float64_are_converted_where_it_is_asked_for(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray]
) -> None:
    kinds = (np.float16, np.float64, np.float32)
    mixed = {name: array.astype(kind) for (name, array), kind in zip(arrays.items(), kinds, strict=True)}
    origin = Origin("m", to_float32=True)
    found = import_store(table, [saved(tmp_path / "mixed", mixed)], tmp_path / "out", origin)
    for k, array in enumerate(mixed.values()):
        assert np.array_equal(found.select().resid(layer=k, position="prompt_end").numpy(), array.astype(np.float32))
    mixed[LAST] = np.full((N, D), 1e300)
    with pytest.raises(ProbeError, match="finite in float32"):
        import_store(table, [saved(tmp_path / "huge", mixed)], tmp_path / "other", Origin("m", to_float32=True))


def test_code_in_a_pt_file_is_never_run_and_the_sentence_says_so(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray]
) -> None:
    sentinel = tmp_path / "sentinel"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {sentinel}",)

    torch.save({LAST: torch.zeros(N, D), "evil": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ProbeError, match="holds more than tensors, and what could run code is never unpickled"):
        import_store(table, [tmp_path / "evil.pt"], tmp_path / "out", MODEL)
    objects = np.empty(N, object)
    objects[:] = Evil()
    np.save(tmp_path / f"{LAST}.npy", objects, allow_pickle=True)
    with pytest.raises(ProbeError, match="no array of numbers"):
        import_store(table, [tmp_path / f"{LAST}.npy"], tmp_path / "out", MODEL)
    assert not sentinel.exists()
    for name in ("bad.pt", "bad.npy", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"not a file of any kind")
        with pytest.raises(ProbeError, match=name):
            import_store(table, [tmp_path / name], tmp_path / "out", MODEL)
    with pytest.raises(ProbeError, match="there is no file"):
        import_store(table, [tmp_path / "none.npy"], tmp_path / "out", MODEL)


def test_importing_again_changes_nothing_and_other_activations_are_refused(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray]
) -> None:
    bring(tmp_path, table, arrays)
    before = {name: content for name, content in samples.content(tmp_path / "out").items() if "runs" not in name}
    assert len(bring(tmp_path, table, arrays).table()) == N
    after = {name: content for name, content in samples.content(tmp_path / "out").items() if "runs" not in name}
    assert after == before
    with pytest.raises(StoreMismatch, match="imported"):
        bring(tmp_path, table, {name: array + 1 for name, array in arrays.items()})


def test_named_conditions_are_numbered_and_recorded_and_own_names_are_read_again(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray]
) -> None:
    names = (["plain"] * 3 + ["chain of thought"] * 3) * 2
    two = table.assign(case=[f"case-{k % 3}" for k in range(N)], condition=names)
    two = two.drop(columns="target")
    found = bring(tmp_path, two, arrays)
    assert found.manifest["imported"]["conditions"] == {"plain": 0, "chain of thought": 1}
    assert found.table()["instruction"].tolist() == ([0] * 3 + [1] * 3) * 2
    own = two.assign(condition=["system/rotation=1" if name == "plain" else "user/seed=2" for name in two["condition"]])
    again = import_store(own, [tmp_path / "arrays"], tmp_path / "again", MODEL)
    assert again.table()["condition"].tolist() == own["condition"].tolist()
    assert "conditions" not in again.manifest["imported"]


def test_a_named_condition_beside_parts_of_one_keeps_both_and_a_contradiction_is_refused(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray]
) -> None:
    cases, names = [f"case-{k % 3}" for k in range(N)], (["plain"] * 3 + ["chain of thought"] * 3) * 2
    two = table.assign(case=cases, condition=names, seed=range(N)).drop(columns="target")
    found = bring(tmp_path, two, arrays).table()
    assert found["instruction"].tolist() == ([0] * 3 + [1] * 3) * 2
    assert found["seed"].tolist() == list(range(N))
    with pytest.raises(ProbeError, match=r"'plain'.* is numbered as an instruction, and the table has a column `instr"):
        import_store(two.assign(instruction=0), [tmp_path / "arrays"], tmp_path / "x", MODEL)
    own = two.assign(condition=[f"system/seed={k}" if k else "system" for k in range(N)])
    again = import_store(own, [tmp_path / "arrays"], tmp_path / "own", MODEL)
    assert again.table()["condition"].tolist() == own["condition"].tolist()
    own.loc[4, "seed"] = 7
    with pytest.raises(
        ProbeError, match=r"line 5 of the table says 'system/seed=4' .* and 'system/seed=7' in its parts"
    ):
        import_store(own, [tmp_path / "arrays"], tmp_path / "x", MODEL)
    assert not (tmp_path / "x").exists()


def test_a_tensor_that_numpy_cannot_hold_is_refused_by_its_name(tmp_path: Path, table: pd.DataFrame) -> None:
    for kind, tensor in {
        "float8_e4m3fn": torch.zeros(N, D).to(torch.float8_e4m3fn),
        "sparse": torch.eye(N).to_sparse(),
    }.items():
        torch.save({LAST: tensor}, tmp_path / "odd.pt")
        with pytest.raises(ProbeError, match=rf"odd\.pt holds 'resid\.prompt_end\.L02' as .*{kind}"):
            import_store(table, [tmp_path / "odd.pt"], tmp_path / "out", MODEL)


def test_a_latent_label_without_logits_is_kept_and_the_order_of_options_must_be_told(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray]
) -> None:
    bare = table[["case", "persona", "target"]].assign(y_latent="clinic", confidence=0.5)
    with pytest.raises(ProbeError, match="name them with --options"):
        bring(tmp_path, bare, arrays)
    origin = Origin("m", options=samples.OPTIONS, high_risk="emergency")
    done = run_import(bare, [saved(tmp_path / "arrays", arrays)], tmp_path / "out", origin)
    assert done.left_out == ("confidence",)
    found = open_store(done.store).table()
    assert found["y_latent"].tolist() == ["clinic"] * N
    assert (found["n_prompt"].tolist(), found["n_gen"].tolist()) == ([-1] * N, [-1] * N)
    assert found["y_gen"].isna().all()
    assert found["logp_home"].isna().all()
    accuracy = probe.metrics(open_store(done.store)).query("metric.str.contains('accuracy')", engine="python")
    assert len(accuracy) > 0
    with pytest.raises(ProbeError, match="the high-risk option is one of"):
        run_import(bare, [tmp_path / "arrays"], tmp_path / "x", Origin("m", samples.OPTIONS, "emergncy"))


def test_an_import_into_an_object_store_is_the_same(
    tmp_path: Path, table: pd.DataFrame, arrays: dict[str, np.ndarray]
) -> None:
    pytest.importorskip("fsspec")
    folder = saved(tmp_path / "arrays", arrays)
    remote, local = (import_store(table, [folder], to, MODEL) for to in ("memory://imports/a", tmp_path / "a"))
    assert [shard.name for shard in remote.shards] == [shard.name for shard in local.shards]
    assert remote.table().equals(local.table())
    with pytest.raises(UnknownName, match="points 0, 1, 2"):
        remote.select().resid(layer=3, position="prompt_end")
