"""Tables of swap reads whose paths are known: urgencies that prompt, text and both together move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

OPTIONS = ("home", "clinic", "emergency")
NONE, P = "none", "p"


def with_urgency(urgency: np.ndarray) -> np.ndarray:
    """Log-probabilities of three labels whose expected rank (0 to 2) is this."""
    share = urgency / 2
    p = np.stack([(1 - share) ** 2, 2 * share * (1 - share), share**2], axis=1)
    return np.log(p)


def world(
    rng: np.random.Generator,
    n: int = 120,
    per_family: int = 1,
    /,
    *,
    text: float = 0.0,
    direct: float = 0.0,
    both: float = 0.0,
    noise: float = 0.05,
) -> pd.DataFrame:
    """Four reads of n cases: expected urgency 1 + ``text`` where the text is p's, + ``direct`` where the prompt is,
    + ``both`` where both are; each read has noise of its own, each family a shift of all four."""
    family = np.arange(n) // per_family
    common = rng.normal(0, 0.1, family.max() + 1)[family]
    parts = []
    for persona in (P, NONE):
        for author in (P, NONE):
            mine, theirs = persona == P, author == P
            urgency = 1 + common + text * theirs + direct * mine + both * (mine and theirs) + rng.normal(0, noise, n)
            logp = with_urgency(np.clip(urgency, 0.01, 1.99))
            parts.append(
                pd.DataFrame({"case": np.arange(n).astype(str), "family": family.astype(str)}).assign(
                    persona=persona,
                    author=author,
                    masked=False,
                    stratum=np.where(np.arange(n) % 2, "odd", "even"),
                    target="clinic",
                    text_logp=rng.normal(-20, 1, n),
                    n_text=10,
                    n_masked=0,
                    **{f"logp_{option}": logp[:, k] for k, option in enumerate(OPTIONS)},
                )
            )
    reads = pd.concat(parts, ignore_index=True)
    reads.attrs = {"options": list(OPTIONS), "high_risk": "emergency"}
    return reads


def heard(rng: np.random.Generator, authors: Sequence[str], p: Mapping[str, np.ndarray], n: int) -> pd.DataFrame:
    """Texts of one word that each author draws from its own distribution p, read by all: a listener's exact world."""
    words = {author: rng.choice(len(p[author]), n, p=p[author]) for author in authors}
    rows = [
        {"case": str(i), "persona": persona, "author": author, "masked": False, "stratum": "s", "target": "home"}
        | {"text_logp": float(np.log(p[persona][words[author][i]])), "n_text": 1, "n_masked": 0}
        for author in authors
        for persona in authors
        for i in range(n)
    ]
    return pd.DataFrame(rows)
