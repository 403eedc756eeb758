"""At which answer site the latent label is read. Knows the columns of a table of cells; computes no metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probe.behaviour.columns import sites_of
from probe.behaviour.outcomes import options_of
from probe.values import ProbeError
from probe.values.nearest import nearest

DEFAULT_SITE = "prompt_end"


def latent_at(table: pd.DataFrame, site: str, *, options: Sequence[str] | None = None) -> pd.DataFrame:
    """The table with its latent label read at another answer site: ``forced``, ``after_reasoning``, ``answer``, ....

    ``logp_<label>`` and ``label_mass`` are those of the site; ``y_latent`` follows from them, and what the table told
    of the end of the prompt alone (entropy, margin, planned distributions) is left out. Rows without the site have no
    latent label. ``prompt_end`` gives the table itself.

    Raises:
        ProbeError: the table has no label reads at this site.
    """
    if site == DEFAULT_SITE:
        return table
    names, _ = options_of(table, options)
    prefix = "stated_" if site == "answer" else f"{site}_"
    if any(f"{prefix}logp_{option}" not in table for option in names):
        known = [DEFAULT_SITE, *sites_of(table, names)]
        known += ["answer"] if f"stated_logp_{names[0]}" in table else []
        raise ProbeError(f"the table has no label reads at the site {site!r}. {nearest(site, known, 'site')}")
    gone = [name for name in table if str(name).startswith("planned_") or name in ("entropy", "margin", "y_latent")]
    moved = {f"logp_{option}": table[f"{prefix}logp_{option}"] for option in names}
    moved["label_mass"] = table.get(f"{prefix}label_mass", pd.Series(np.nan, index=table.index))
    return table.drop(columns=gone).assign(**moved)
