"""Answer sites beside a row's own course: the forks that they need, and what these gave. Knows no model or store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from torch import Tensor

from probe.capture.forks import Fork, ForkRead
from probe.capture.planning import Job
from probe.prompts import LabelTokens, Reopening
from probe.values import AbsentSite, LabelRead

_At = Literal["prompt_end", "reasoning_end"]


@dataclass(frozen=True, eq=False)
class ForkedSites:
    """What the sites gave that are read beside a row's own course, by their names.

    ``prompt_end`` is among them where a label of several tokens stands there. ``values[stream, site]`` are activations
    ``[layer, width]`` at the last fed token, ``positions`` its index (see ``probe.values.POSITIONS``), and ``absent``
    says why a site has nothing.
    """

    reads: dict[str, LabelRead] = field(default_factory=dict)
    values: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def forks_of(job: Job) -> tuple[Fork, ...]:
    """One fork for each forced text, and one for each spelling of a label of several tokens, at every site."""
    forks = list(_spelled("prompt_end", job.labels, "prompt_end"))
    if job.forced is not None:
        forks.append(Fork("forced", "prompt_end", job.forced.token_ids, job.forced.labels))
        forks += _spelled("forced", job.forced.labels, "prompt_end", job.forced.token_ids)
    if job.reopener is not None:
        forks.append(Fork("after_reasoning", "reasoning_end", (), job.reopener.labels))
        forks += _spelled("after_reasoning", job.reopener.labels, "reasoning_end")
    return tuple(forks)


def forked_sites(
    job: Job, prompt_read: LabelRead, tokens: list[int], forks: Mapping[str, ForkRead | str]
) -> ForkedSites:
    """What the forks of a row gave, given its read at the prompt's end and the tokens of its answer."""
    found = ForkedSites()
    n_prompt = len(job.prompt.token_ids)
    _keep(found, "prompt_end", _completed(prompt_read, job.labels, "prompt_end", forks))
    if job.forced is not None:
        last = n_prompt + len(job.forced.token_ids) - 1
        _keep_fork(found, "forced", job.forced.labels, forks, last)
    if job.reopener is not None:
        place = job.reopener.find(tokens)
        if isinstance(place, Reopening):
            last = n_prompt + place.n_kept + len(place.token_ids) - 1
            _keep_fork(found, "after_reasoning", job.reopener.labels, forks, last)
        else:
            found.absent["after_reasoning"] = str(place)
    return found


def _spelled(site: str, labels: LabelTokens, at: _At, before: tuple[int, ...] = ()) -> Iterator[Fork]:
    for k, variants in enumerate(labels.spelled):
        for v, tokens in enumerate(variants):
            yield Fork(_name(site, k, v), at, before + tokens)


def _name(site: str, label: int, variant: int) -> str:
    return f"{site}/{label}/{variant}"


def _keep_fork(
    found: ForkedSites, site: str, labels: LabelTokens, forks: Mapping[str, ForkRead | str], position: int
) -> None:
    fork = forks.get(site, str(AbsentSite.UNAVAILABLE))
    if isinstance(fork, str):
        found.absent[site] = fork
        return
    assert fork.read is not None
    found.positions[site] = position
    found.values.update({(stream, site): value for stream, value in fork.values.items()})
    _keep(found, site, _completed(fork.read, labels, site, forks))


def _keep(found: ForkedSites, site: str, read: LabelRead | str) -> None:
    if isinstance(read, str):
        found.absent[site] = read
    else:
        found.reads[site] = read


def _completed(read: LabelRead, labels: LabelTokens, site: str, forks: Mapping[str, ForkRead | str]) -> LabelRead | str:
    """The read with every label of several tokens scored as a continuation, or why one cannot be.

    Its log-probability is the sum over its tokens, each given all that precedes it; spellings are added up. No label's
    tokens begin another's, so the mass is still the probability that the answer goes on with one of the labels; the
    entropy stays that of the next token.
    """
    if not labels.spelled:
        return read
    logp = read.logp.copy()
    for k, variants in enumerate(labels.spelled):
        scores = []
        for v, tokens in enumerate(variants):
            fork = forks.get(_name(site, k, v), str(AbsentSite.UNAVAILABLE))
            if isinstance(fork, str):
                return fork
            scores.append(float(fork.logp[-len(tokens) :].sum(dtype=np.float64)))
        if scores:
            logp[k] = np.logaddexp.reduce(scores)
    return replace(read, logp=logp, mass=float(np.exp(logp.astype(np.float64)).sum()))
