"""What a run means to capture, so that a lost row is noticed. Knows cells and hashes; knows nothing of arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from probe.values import Cell, Condition, NewerVersion, PlannedRow, StoreError, canonical_json, sha256_of

PLAN_SCHEMA = "persona-acts-plan/1"

_LINES_AT_ONCE = 32
"""Lines that are parsed together: faster than one by one, and not all of a large plan at once in memory."""

_CONDITION = frozenset(known.name for known in fields(Condition))


@dataclass(frozen=True)
class Plan:
    """Every row that a study asks for, in the order of capture, with the personas and cases that it crosses.

    ``personas`` are mappings with ``id role style sha256`` in study order, ``cases`` with ``id family stratum target
    sha256`` (and perhaps ``text``). ``split_seed`` divides families into fitting and judging. ``batch_size`` is part of
    the plan because it moves low bits. ``interventions`` tell in plain values what the hashes of conditions stand for:
    ``name``, ``sha256``, ``edits`` and ``about``.
    """

    rows: tuple[PlannedRow, ...]
    personas: tuple[Mapping[str, Any], ...]
    cases: tuple[Mapping[str, Any], ...]
    split_seed: int
    batch_size: int
    interventions: tuple[Mapping[str, Any], ...] = ()

    @cached_property
    def intervention_names(self) -> dict[str, str]:
        """What results call the interventions, by hash: their names, of unedited runs "", of unknown ones the hash."""
        told = {str(entry["sha256"]): str(entry["name"]) for entry in self.interventions}
        hashes = (row.cell.condition.intervention for row in self.rows)
        return {one: told.get(one, one) for one in dict.fromkeys(hashes)}

    @cached_property
    def hash(self) -> str:
        """Hex sha256 of the plan's file, which bears it as its name."""
        return hashlib.sha256(self.file).hexdigest()

    @cached_property
    def file(self) -> bytes:
        """The plan as JSON lines: a header, then one line per row.

        Raises:
            StoreError: two rows are one cell, a row's persona or case is not listed, or a text is not Unicode.
        """
        self._check()
        try:
            return "".join(f"{canonical_json(line)}\n" for line in self._lines()).encode()
        except (TypeError, ValueError) as error:
            raise StoreError(f"a plan holds only plain JSON values in Unicode: {error}") from error

    def _check(self) -> None:
        personas, cases = ({entry["id"] for entry in entries} for entries in (self.personas, self.cases))
        if len(personas) < len(self.personas) or len(cases) < len(self.cases):
            raise StoreError("a plan lists each persona and each case once")
        seen = set()
        for row in self.rows:
            if row.cell.row_id in seen:
                raise StoreError(f"a plan holds each cell once; {cell_name(row.cell)} stands in it twice")
            if row.cell.persona not in personas or row.cell.case not in cases:
                raise StoreError(f"a plan lists the persona and case of every row; those of {cell_name(row.cell)} miss")
            seen.add(row.cell.row_id)

    def _lines(self) -> Iterator[dict[str, Any]]:
        personas, cases = ([dict(entry) for entry in entries] for entries in (self.personas, self.cases))
        yield {
            "schema": PLAN_SCHEMA,
            "n_rows": len(self.rows),
            "persona_set_sha256": sha256_of(personas),
            "case_set_sha256": sha256_of(cases),
            "personas": personas,
            "cases": cases,
            "split_seed": self.split_seed,
            "batch_size": self.batch_size,
            **({"interventions": [dict(entry) for entry in self.interventions]} if self.interventions else {}),
        }
        for row in self.rows:
            line = {
                "row_id": row.cell.row_id,
                "shard": row.shard,
                "persona": row.cell.persona,
                "case": row.cell.case,
                "condition": row.cell.condition.changed,
                "prompt_sha": row.prompt_sha,
                "tokens_sha": row.tokens_sha,
                "n_tok": row.n_tokens,
            }
            if row.text is not None:
                line["text"] = row.text
            if row.planned is not None:
                line["planned"] = {channel: list(values) for channel, values in row.planned.items()}
            yield line


def parse_plan(name: str, content: bytes) -> Plan:
    """The plan in a file named ``<name>.jsonl``.

    Raises:
        NewerVersion: a newer version wrote it.
        StoreError: the content is not the plan that was written under this name.
    """
    if hashlib.sha256(content).hexdigest() != name:
        raise StoreError(f"plan/{name}.jsonl is damaged: its name is not the sha256 of its bytes; restore it")
    try:
        first, *lines = content.removesuffix(b"\n").split(b"\n")
        header = json.loads(first.decode())
        if header["schema"] != PLAN_SCHEMA:
            raise NewerVersion(
                f"plan/{name}.jsonl has schema {header['schema']!r}, not {PLAN_SCHEMA!r}; upgrade persona-probe"
            )
        return Plan(
            rows=tuple(_rows(lines)),
            personas=tuple(header["personas"]),
            cases=tuple(header["cases"]),
            split_seed=header["split_seed"],
            batch_size=header["batch_size"],
            interventions=tuple(header.get("interventions", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"plan/{name}.jsonl is not a plan of this tool: {error!r}") from error


def cell_of(entry: Mapping[str, Any]) -> Cell:
    """The cell that a line of a plan or of a shard's row table names; what its condition leaves out is the default.

    Raises:
        NewerVersion: the condition has a field that this version does not know.
    """
    condition = entry["condition"]
    unknown = [name for name in condition if name not in _CONDITION]
    if unknown:
        raise NewerVersion(
            f"the condition of {entry['persona']}/{entry['case']} has a field {unknown[0]!r}, which a newer version "
            "wrote; upgrade persona-probe"
        )
    return Cell(entry["persona"], entry["case"], Condition(**condition))


def cell_name(cell: Cell) -> str:
    """``persona/case`` as messages show it, with whatever is not printable escaped."""
    name = f"{cell.persona}/{cell.case}"
    return name if name.isprintable() else ascii(name)


def _rows(lines: Sequence[bytes]) -> Iterator[PlannedRow]:
    """Lines of JSON as rows. Large plans are most of what opening a store costs: rows share the few conditions."""
    conditions: dict[tuple[tuple[str, Any], ...], Condition] = {}
    for first in range(0, len(lines), _LINES_AT_ONCE):
        block = b",".join(lines[first : first + _LINES_AT_ONCE]).decode()
        for line in json.loads(f"[{block}]"):
            changed = (*line["condition"].items(),)
            if changed not in conditions:
                conditions[changed] = cell_of(line).condition
            cell = Cell(line["persona"], line["case"], conditions[changed])
            # computed when the plan was written; the file's name vouches for its bytes
            object.__setattr__(cell, "row_id", line["row_id"])
            yield PlannedRow(
                cell,
                line["shard"],
                line["prompt_sha"],
                line["tokens_sha"],
                line["n_tok"],
                line.get("text"),
                line.get("planned"),
            )
