"""The reads of a swap as a table, and their control. Knows stores; captures nothing, imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from probe.mechanism.swap.paths import text_keys
from probe.stages.swap_texts import SWAPPED, Author, answers_by_reason
from probe.store import Store
from probe.values import CellRecord, ProbeError

TOLERANCE = 1e-4
"""How far a label's log-probability, read under its own text, may lie from that read while the text was generated."""

_KEYS = ("case", "instruction", "rotation", "placement", "prefix", "seed")


def swap_reads(store: Store) -> pd.DataFrame:
    """Every read of a store of swapped texts: the labels at the letter, and how probable the text before it is.

    One row for each persona (of the prompt), author (of the text), plain or ``masked``, case and condition (``seed`` is
    the author's). Columns: persona, author, masked, case, family, stratum, target, instruction, rotation, placement,
    prefix, seed, logp_<label> (nats, full softmax), latent_logp_<label> (at the prompt's end), text_logp (nats, summed
    over the tokens before the letter that are not masked), n_text, n_masked (tokens). A text without a masked word
    stands in both. ``attrs``: options, high_risk, and ``elsewhere``, the masked reads left out because their letter was
    found at another token.

    Raises:
        ProbeError: the store holds no such read.
    """
    view = store.select()
    table = view.table().set_index("row_id")
    attrs = {name: table.attrs[name] for name in ("options", "high_risk")}
    told = pd.DataFrame(_read_rows(view.records()))
    if told.empty:
        raise ProbeError(f"{store.place.url} holds no read at a letter; `probe swap STUDY.yaml` captures them")
    told = told.set_index("row_id")
    names = ["persona", "case", "family", "stratum", "target", *_KEYS[1:-1]]
    before = {f"logp_{option}": f"latent_logp_{option}" for option in attrs["options"]}
    reads = told.join(table[[name for name in (*names, *before) if name in table]].rename(columns=before))
    reads = reads.rename(columns={f"k{k}": f"logp_{option}" for k, option in enumerate(attrs["options"])})
    known = {persona["id"] for persona in store.plan.personas}  # other sources of given texts are no authors
    reads = reads[reads["author"].isin(known)].reset_index(drop=True)
    reads.attrs = {}
    plain, masked = reads[~reads["masked"]], reads[reads["masked"]]
    elsewhere = 0
    if any(Author.of(row.cell.condition.given).masked for row in store.plan.rows):
        masked, elsewhere = _masked_reads(store, plain, masked)
    found = pd.concat([plain.assign(n_masked=0), masked], ignore_index=True)
    found["text_logp"] = [
        float(logp[:n][keep[:n]].sum())
        for logp, n, keep in zip(found["logp"], found["n_text"], found["kept"], strict=True)
    ]
    found = found.drop(columns=["logp", "tokens", "kept"])
    found.attrs.update(attrs | {"elsewhere": elsewhere})
    return found


def control(reads: pd.DataFrame, source: Store) -> pd.DataFrame:
    """Y(p,p) against what was read while p generated the same text: they are to be the same read.

    Columns: persona, n (cases), rows, largest and mean (absolute difference of a label's log-probability, nats),
    largest_p (of its probability), tolerance, same.
    """
    options = list(reads.attrs["options"])
    own = reads[(reads["persona"] == reads["author"]) & ~reads["masked"]]
    generated = answers_by_reason(source)
    generated = generated[generated["reason"] == SWAPPED]
    keys = ["persona", *text_keys(own)]
    stated = [f"stated_logp_{option}" for option in options]
    both = own.merge(generated[[*keys, *stated]], on=keys)
    rows = []
    for persona, part in both.groupby("persona", sort=False):
        one, other = part[[f"logp_{option}" for option in options]].to_numpy(float), part[stated].to_numpy(float)
        apart = np.abs(one - other)
        rows.append(
            {"persona": persona, "n": part["case"].nunique(), "rows": len(part)}
            | {"largest": float(apart.max()), "mean": float(apart.mean())}
            | {"largest_p": float(np.abs(np.exp(one) - np.exp(other)).max())}
            | {"tolerance": TOLERANCE, "same": bool(apart.max() <= TOLERANCE)}
        )
    columns = ["persona", "n", "rows", "largest", "mean", "largest_p", "tolerance", "same"]
    return pd.DataFrame(rows, columns=columns)


def left_out(source: Store) -> pd.DataFrame:
    """What became of each persona's answers, by stratum: persona, stratum, reason (``swapped``, or why not), n."""
    answers = answers_by_reason(source)
    counts = answers.groupby(["persona", "stratum", "reason"], sort=False, dropna=False).size()
    return counts.rename("n").reset_index()


def _read_rows(records: Iterator[CellRecord]) -> Iterator[dict[str, object]]:
    for record in records:
        at, read = record.positions.get("answer", -1), record.labels.get("answer")
        if not record.given_logp or at < 0 or read is None:
            continue
        author = Author.of(record.cell.condition.given)
        tokens = np.array(record.gen_tokens)
        yield {
            "row_id": record.cell.row_id,
            "author": author.persona,
            "seed": author.seed,
            "masked": author.masked,
            **{f"k{k}": float(value) for k, value in enumerate(read.logp)},
            "logp": np.array(record.given_logp, dtype=float),
            "tokens": tokens,
            "kept": np.full(len(tokens), True),
            "n_text": at - len(record.prompt_tokens) + 1,
        }


def _masked_reads(store: Store, plain: pd.DataFrame, masked: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """A masked read for every plain one: its own, or the plain one again where its text has no masked word.

    Those whose letter stands at another token than in the plain text are left out and counted.
    """
    keys = ["persona", "author", *(name for name in _KEYS if name in plain)]
    beside = plain[[*keys, "tokens", "n_text"]]
    own = masked.merge(beside, on=keys, suffixes=("", "_plain"))
    same = own["n_text"] == own["n_text_plain"]
    own = own[same].copy()
    own["kept"] = [one == other for one, other in zip(own["tokens"], own["tokens_plain"], strict=True)]
    own["n_masked"] = [int((~keep[:n]).sum()) for keep, n in zip(own["kept"], own["n_text"], strict=True)]
    planned = {
        (author.persona, author.seed, cell.case, cell.condition.instruction, cell.condition.rotation)
        for cell in (row.cell for row in store.plan.rows)
        if (author := Author.of(cell.condition.given)).masked
    }
    texts = zip(*(plain[name] for name in ("author", "seed", "case", "instruction", "rotation")), strict=True)
    bare = plain[[text not in planned for text in texts]]
    found = pd.concat([bare.assign(masked=True, n_masked=0), own[[*plain.columns, "n_masked"]]], ignore_index=True)
    return found, len(masked) - int(same.sum())
