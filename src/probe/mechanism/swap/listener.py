"""Who wrote this text? What its probability under every persona says. Knows log-probabilities; knows no text.

The imaginary listener: L(q | text) is P(text | prompt of q) over the sum of the same of all personas, each as likely
beforehand (a literal listener, as in rational speech acts). A text ends before its letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import logsumexp, stdtrit

from probe.behaviour.significance import holm
from probe.mechanism.relation.verdicts import clustered_error
from probe.mechanism.splits import families_of
from probe.mechanism.swap.paths import text_keys
from probe.values import ALL

PERMUTATIONS = 999

PAIR, EVERYONE, AUTHOR = "persona and base", "all personas", "all personas, one author"
"""Among whom a listener chooses, and whose texts are heard."""

_METHOD = "t, SE clustered by case family, authors weigh the same; floor: authors permuted within a case"


@dataclass(frozen=True, eq=False)
class HeardTexts:
    """Texts that every one of ``listeners`` has read: ``logp[text, listener]`` in nats, and who wrote each (an index).

    ``name`` is that of a text, plain or masked; ``block`` is equal for texts on one case under one condition;
    ``scored`` are the tokens that ``logp`` sums over, ``hidden`` those of the text that were masked.
    """

    listeners: tuple[str, ...]
    name: np.ndarray
    logp: Float[np.ndarray, "text listener"]
    author: Int[np.ndarray, " text"]
    block: Int[np.ndarray, " text"]
    case: np.ndarray
    family: np.ndarray
    stratum: np.ndarray
    scored: Int[np.ndarray, " text"]
    hidden: Int[np.ndarray, " text"]

    @property
    def log2_posterior(self) -> Float[np.ndarray, "text listener"]:
        """log2 L(q | text)."""
        return np.asarray((self.logp - logsumexp(self.logp, axis=1, keepdims=True)) / np.log(2))

    @property
    def own(self) -> Float[np.ndarray, " text"]:
        """log2 L(author | text)."""
        return np.asarray(self.log2_posterior[np.arange(len(self.author)), self.author])

    @property
    def right(self) -> Float[np.ndarray, " text"]:
        """1 where the author is the listener's first choice; a tie counts as its share."""
        best = self.logp == self.logp.max(1, keepdims=True)
        return np.asarray(best[np.arange(len(self.author)), self.author] / best.sum(1))

    def only(self, rows: np.ndarray) -> HeardTexts:
        """These texts only."""
        arrays = {name: value[rows] for name, value in vars(self).items() if name != "listeners"}
        return HeardTexts(self.listeners, **arrays)

    def balanced(self, score: Float[np.ndarray, " text"]) -> tuple[float, float, float]:
        """Mean over authors of the mean over their texts, and its 95 % t interval clustered by case family."""
        if not len(score):
            return np.nan, np.nan, np.nan
        weight = self._weight(self.author)
        counts = np.maximum(np.bincount(self.author), 1)
        centre = (np.bincount(self.author, score) / counts)[self.author]
        value = float(weight @ score)
        # The influence of each text on the value, times their number: the error of its mean is that of the value.
        error, n_families = clustered_error(weight * (score - centre) * len(score), self.family)
        half = float(stdtrit(n_families - 1, 0.975)) * error if n_families > 1 else np.nan
        return value, value - half, value + half

    def floor(self, rng: np.random.Generator, permutations: int) -> tuple[float, float]:
        """95 % quantile of the mean of ``own`` when the authors of a case are permuted, and the p of what was found."""
        posterior, rows = self.log2_posterior, np.argsort(self.block, kind="stable")
        block, author = self.block[rows], self.author[rows]
        null = np.empty(permutations)
        for k in range(permutations):
            shuffled = author[np.lexsort((rng.random(len(block)), block))]
            null[k] = self._weight(shuffled) @ posterior[rows, shuffled]
        found = self._weight(self.author) @ self.own
        return float(np.quantile(null, 0.95)), float((1 + (null >= found - 1e-9).sum()) / (1 + permutations))

    def _weight(self, author: np.ndarray) -> np.ndarray:
        """One over the number of authors and of each author's texts."""
        counts = np.bincount(author, minlength=len(self.listeners))
        return np.asarray(1 / (counts[author] * (counts > 0).sum()))


def heard_texts(reads: pd.DataFrame, listeners: Sequence[str], *, masked: bool) -> HeardTexts:
    """The texts of these personas that all of them have read under their prompts.

    ``reads`` as in :func:`probe.mechanism.swap.paths.four_reads`, with text_logp (nats), n_text and n_masked (tokens).
    """
    chosen = reads[
        reads["persona"].isin(listeners) & reads["author"].isin(listeners) & (reads["masked"].astype(bool) == masked)
    ]
    chosen = chosen.assign(family=families_of(chosen), stratum=chosen.get("stratum", ""))
    keys = text_keys(chosen)
    wide = chosen.pivot(index=["author", *keys], columns="persona", values="text_logp").reindex(columns=list(listeners))
    wide = wide.dropna()
    own = chosen.drop_duplicates(["author", *keys]).set_index(["author", *keys]).loc[wide.index]
    frame = wide.index.to_frame(index=False)
    return HeardTexts(
        tuple(listeners),
        np.array(["\x1f".join(map(str, row)) for row in frame.itertuples(index=False)], dtype=object),
        wide.to_numpy(float),
        frame["author"].map({name: k for k, name in enumerate(listeners)}).to_numpy(int),
        frame.groupby(keys, sort=False, dropna=False).ngroup().to_numpy(int),
        frame["case"].to_numpy(object),
        own["family"].to_numpy(object),
        own["stratum"].to_numpy(object),
        (own["n_text"] - own["n_masked"]).to_numpy(int),
        own["n_masked"].to_numpy(int),
    )


def identifiability(
    reads: pd.DataFrame,
    base: str,
    *,
    rng: np.random.Generator | None = None,
    permutations: int = PERMUTATIONS,
) -> pd.DataFrame:
    """How well its text tells a persona apart, in bits: log2 K plus the mean log2 posterior of the author.

    0: the listener knows no more than beforehand; log2 K (``most``): it is always sure, and right; below 0: it is
    misled. For texts drawn at temperature 1 it is the mutual information of persona and text given the case, for greedy
    texts a score of identification. Among each persona and its base (K = 2), and among all personas, over all texts and
    those of each author, where every persona has read every text.

    Tidy: among, persona, base, stratum, masked, value, low, high (bits), most, floor (95 % of permuted authors), p,
    p_adjusted (Holm over the personas), right (share of first choices), chance, per_token (bits), n, texts, method,
    note.
    """
    rng = rng or np.random.default_rng(0)
    rows = []
    for among, persona, masked, heard in _audiences(reads, base):
        for stratum, inside in _within(heard):
            rows.append(
                {"among": among, "persona": persona, "base": base, "stratum": stratum, "masked": masked}
                | _identified(inside, rng, permutations if among != AUTHOR else 0)
            )
    names = ["among", "persona", "base", "stratum", "masked", "value", "low", "high", "most", "floor", "p"]
    columns = [*names, "right", "chance", "per_token", "n", "texts", "method", "note"]
    table = pd.DataFrame(rows, columns=columns)
    adjusted = np.full(len(table), np.nan)
    for _, part in table[table["p"].notna()].groupby(["among", "stratum", "masked"]):
        adjusted[part.index.to_numpy(int)] = holm(part["p"].tolist())
    table.insert(names.index("p") + 1, "p_adjusted", adjusted)
    return table


def confusion(reads: pd.DataFrame, base: str) -> pd.DataFrame:
    """What the listener hears in each author's texts: mean L(persona | text), and how often that is its first choice.

    Tidy: author, persona (the guess), stratum, masked, value, low, high, first, n (cases), texts, note; only where
    every persona has read every text.
    """
    rows = []
    for among, _, masked, heard in _audiences(reads, base):
        if among != EVERYONE:
            continue
        for stratum, inside in _within(heard):
            posterior = 2**inside.log2_posterior
            for a, author in enumerate(inside.listeners):
                theirs = inside.author == a
                part = inside.only(theirs)
                first = part.logp == part.logp.max(1, keepdims=True)
                for k, persona in enumerate(inside.listeners):
                    mean = part.balanced(posterior[theirs, k])
                    rows.append(
                        {"author": author, "persona": persona, "stratum": stratum, "masked": masked}
                        | dict(zip(("value", "low", "high"), mean, strict=True))
                        | {"first": float((first[:, k] / first.sum(1)).mean()) if len(first) else np.nan}
                        | {"n": len(set(part.case.tolist())), "texts": len(part.case)}
                        | {"note": "" if len(part.case) else "undefined: no text"}
                    )
    columns = ["author", "persona", "stratum", "masked", "value", "low", "high", "first", "n", "texts", "note"]
    return pd.DataFrame(rows, columns=columns)


def parroting(reads: pd.DataFrame, base: str) -> pd.DataFrame:
    """How many bits of identification fall when the personas' own words are masked from the texts.

    The same texts twice, with a masked word neither scored nor shown; ``value`` is plain minus masked, ``plain`` and
    ``masked`` are the two. Tidy: among, persona, base, stratum, value, low, high (bits), plain, masked,
    share_masked (of tokens), n, texts, method, note. Nothing is there where nothing was masked on purpose.
    """
    heard = {(among, persona, masked): own for among, persona, masked, own in _audiences(reads, base)}
    rows = []
    for (among, persona, masked), plain in heard.items():
        hidden = heard.get((among, persona, True))
        if masked or hidden is None:
            continue
        one, other = _both(plain, hidden)
        for stratum, inside in _within(one):
            rows_in = np.full(len(other.case), True) if stratum == ALL else other.stratum == stratum
            under = other.only(rows_in)
            mean = inside.balanced(inside.own - under.own)
            most = np.log2(len(inside.listeners))
            tokens = (under.hidden + under.scored).sum()
            rows.append(
                {"among": among, "persona": persona, "base": base, "stratum": stratum}
                | dict(zip(("value", "low", "high"), mean, strict=True))
                | {"plain": inside.balanced(inside.own)[0] + most, "masked": under.balanced(under.own)[0] + most}
                | {"share_masked": under.hidden.sum() / tokens if tokens else np.nan}
                | {"n": len(set(inside.case.tolist())), "texts": len(inside.case), "method": _METHOD.partition(";")[0]}
                | {"note": "" if len(inside.case) else "undefined: no text was read plain and masked"}
            )
    columns = ["among", "persona", "base", "stratum", "value", "low", "high", "plain", "masked", "share_masked"]
    return pd.DataFrame(rows, columns=[*columns, "n", "texts", "method", "note"])


def _audiences(reads: pd.DataFrame, base: str) -> Iterator[tuple[str, str, bool, HeardTexts]]:
    """(among, persona, masked, texts): each persona with the base, then all personas where all have read all."""
    personas = list(dict.fromkeys(reads["author"]))
    seen = set(zip(reads["persona"], reads["author"], reads["masked"].astype(bool), strict=True))
    for masked in (False, True):
        for persona in (one for one in personas if one != base):
            pair = (base, persona)
            if all((listener, author, masked) in seen for listener in pair for author in pair):
                yield PAIR, persona, masked, heard_texts(reads, pair, masked=masked)
        if len(personas) < 3 or any((one, other, masked) not in seen for one in personas for other in personas):
            continue
        heard = heard_texts(reads, personas, masked=masked)
        yield EVERYONE, ALL, masked, heard
        for a, author in enumerate(personas):
            yield AUTHOR, author, masked, heard.only(heard.author == a)


def _within(heard: HeardTexts) -> Iterator[tuple[str, HeardTexts]]:
    yield ALL, heard
    found = tuple(dict.fromkeys(heard.stratum.tolist()))
    if len(found) > 1:
        for stratum in found:
            yield stratum, heard.only(heard.stratum == stratum)


def _identified(heard: HeardTexts, rng: np.random.Generator, permutations: int) -> dict[str, object]:
    most = float(np.log2(len(heard.listeners)))
    counts = {"n": len(set(heard.case.tolist())), "texts": len(heard.case), "method": _METHOD}
    fixed = {"most": most, "chance": 1 / len(heard.listeners), **counts}
    if not len(heard.case):
        undefined = dict.fromkeys(("value", "low", "high", "floor", "p", "right", "per_token"), np.nan)
        return {**fixed, **undefined, "note": "undefined: no text was read by all"}
    value, low, high = heard.balanced(heard.own)
    floor, p = heard.floor(rng, permutations) if permutations else (np.nan, np.nan)
    return fixed | {
        "value": value + most,
        "low": low + most,
        "high": high + most,
        "floor": floor + most,
        "p": p,
        "right": heard.balanced(heard.right)[0],
        "per_token": heard.balanced((heard.own + most) / np.maximum(heard.scored, 1))[0],
        "note": "",
    }


def _both(plain: HeardTexts, hidden: HeardTexts) -> tuple[HeardTexts, HeardTexts]:
    """The texts that were read in both ways, in one order."""
    _, one, other = np.intersect1d(plain.name.astype(str), hidden.name.astype(str), return_indices=True)
    return plain.only(one), hidden.only(other)
