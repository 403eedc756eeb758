"""Probes of a store: fitted, tested, drawn, told. Knows the order of the work; imports no torch, captures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from probe import behaviour
from probe.mechanism import Activations, families_of
from probe.mechanism.probes.settings import ProbeSettings, folds_of
from probe.mechanism.probes.tables import probe_table
from probe.mechanism.probes.targets import targets_of
from probe.mechanism.probes.transfer import PERSONA, transfer_table
from probe.report.drawn import save
from probe.report.probes import draw_probes
from probe.stages.activations import activations
from probe.stages.analysis import save_tables
from probe.stages.places import figures_path
from probe.stages.targets import open_target
from probe.stages.terminal import announce_files, say
from probe.stages.terminal_probes import show_probes, show_transfer
from probe.store import Store
from probe.values import ProbeError
from probe.values.nearest import nearest

DEPTH = 2 / 3
"""Where the transfer between personas is judged, as a share of the depth: decided beforehand, so that nothing was
chosen for its score."""


@dataclass(frozen=True)
class Asked:
    """What is probed for, where, and how it is tested; None stands for all there is."""

    targets: tuple[str, ...] | None = None
    positions: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    permutations: int = 200
    folds: int = 5
    families_move: bool = False
    logistic: bool = False


def asked_of(
    targets: str | None,
    positions: str | None,
    layers: str | None,
    *,
    permutations: int,
    folds: int,
    families_move: bool,
    logistic: bool = False,
) -> Asked:
    """The request in the words of the command line: names with commas between them.

    Raises:
        ProbeError: a layer is no whole number.
    """
    names = [
        None if given is None else tuple(filter(None, map(str.strip, given.split(","))))
        for given in (targets, positions, layers)
    ]
    if any(not name.isdecimal() for name in names[2] or ()):
        raise ProbeError(f"--layers are residual points with commas between them, as 0,8,16; found {layers!r}")
    points = None if names[2] is None else tuple(map(int, names[2]))
    return Asked(names[0], names[1], points, permutations, folds, families_move, logistic)


def run_probes(target: str | Path, asked: Asked, *, store: str | Path | None = None, out: Path | None = None) -> None:
    """Probe a study's store: tables as CSV, a figure per target, and what the best layer is worth here."""
    name, opened = open_target(target, store=store)
    folder = figures_path(name, out)
    table = probe_store(opened, asked)
    moved = transfer(opened, asked)
    show_probes(table)
    written = save_tables(folder, {"probes": table, "probes_transfer": moved})
    for part, drawn in draw_probes(table).items():
        written += save(drawn, folder, part)
    show_transfer(moved)
    announce_files(folder, written)


def probe_store(source: Store, asked: Asked | None = None, *, seed: int = 0) -> pd.DataFrame:
    """The table of :mod:`probe.mechanism.probes.tables` for the generated cells of a store; see docs/probes.md.

    Families are split by their hash with the study's ``split_seed``; ``seed`` drives permutations and controls. Where
    there are fewer families than folds, there are as many folds as families.

    Raises:
        ProbeError: a target, position or layer is unknown, or there are fewer than three case families.
    """
    asked = asked or Asked()
    read, outcomes = _read(source)
    found = probe_table(
        read,
        outcomes,
        targets_of(outcomes, asked.targets),
        positions=_positions(read, asked),
        layers=asked.layers,
        settings=_settings(source, read, asked),
        rng=np.random.default_rng(seed),
        track=_shown,
    )
    found.attrs["layers"] = read.layers
    return found


def transfer(source: Store, asked: Asked | None = None, *, layer: int | None = None) -> pd.DataFrame:
    """Every target fitted on one persona (and on all others) and judged on each, at one layer of each position.

    Where personas were captured in several wordings, every wording is held out as well. The layer is two thirds up
    unless told otherwise. Empty with one persona.
    """
    asked = asked or Asked()
    read, outcomes = _read(source)
    settings = _settings(source, read, asked)
    fold = folds_of(read.table, settings)
    at = read.layers[round(DEPTH * (len(read.layers) - 1))] if layer is None else layer
    worded = "wording" in read.table and (read.table.groupby("persona")["wording"].nunique() > 1).any()
    tables = []
    for position in _positions(read, asked):
        site = read.at(at, position)
        for target in targets_of(outcomes, asked.targets).values():
            if target.name != PERSONA and len(outcomes.personas) > 1:
                tables.append(transfer_table(site, read.table, target, fold))
            if worded:
                tables.append(transfer_table(site, read.table, target, fold, by="wording"))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _read(source: Store) -> tuple[Activations, behaviour.Outcomes]:
    read = activations(source)
    if read.table.empty:
        raise ProbeError("there is no captured cell to probe yet; run `probe capture` first")
    return read, behaviour.read_outcomes(read.table)


def _positions(read: Activations, asked: Asked) -> tuple[str, ...]:
    for name in asked.positions or ():
        if name not in read.positions:
            raise ProbeError(f"the position {name!r} was not captured. {nearest(name, read.positions, 'position')}")
    return asked.positions or read.positions


def _settings(source: Store, read: Activations, asked: Asked) -> ProbeSettings:
    families = len(set(families_of(read.table).tolist()))
    if families < 3:
        raise ProbeError(f"probes are fitted and judged on different case families; {families} are too few, capture 3")
    settings = ProbeSettings(
        asked.folds,
        source.plan.split_seed,
        permutations=asked.permutations,
        families_move=asked.families_move,
        logistic=asked.logistic,
    )
    if families >= asked.folds:
        return settings
    say(f"{families} case families are fewer than {asked.folds} folds: each is a fold of its own")
    return replace(settings, folds=families)


def _shown(sites: Iterable[tuple[str, int]], total: int) -> Iterator[tuple[str, int]]:
    with tqdm(sites, total=total, desc="probes", unit="site") as bar:
        for position, layer in bar:
            bar.set_postfix_str(f"{position}, layer {layer}", refresh=False)
            yield position, layer
