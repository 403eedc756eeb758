"""Finished parts of a patching run on disk, and the file that names them. Knows parquet and JSON; computes nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from probe.store.files import write_result
from probe.values import ProbeError

SUFFIX = "-patch"
FILE = "patch.json"
FORMAT = 1
PARTS = "parts"


@dataclass(frozen=True)
class Record:
    """What a folder of parts is of: a study's name and base, the model, the options in rising urgency, the sentences of
    each persona, what was left out or absent, and the parts that make the whole, by key and persona."""

    study: str
    base: str
    model: Mapping[str, Any]
    n_layers: int
    options: tuple[str, ...]
    high_risk: str
    personas: Mapping[str, Mapping[str, str | None]]
    request: Mapping[str, Any]
    parts: tuple[tuple[str, str], ...]
    left_out: tuple[Mapping[str, Any], ...] = ()
    absent: tuple[Mapping[str, Any], ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


class PatchFolder:
    """A folder with one file per finished part, each under the key of what made it: a part is whole or not there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, key: str) -> bool:
        """Whether a part is finished."""
        return self._part(key).exists()

    def save(self, key: str, reads: pd.DataFrame) -> None:
        """Keep the reads of a finished part.

        Raises:
            StoreError: the system refused to write it.
        """
        buffer = io.BytesIO()
        reads.to_parquet(buffer, index=False)
        write_result(self._part(key), [buffer.getvalue()])

    def record(self, told: Record) -> None:
        """Say what the folder is of, before the first part is run."""
        text = json.dumps({"format": FORMAT} | vars(told), indent=1, ensure_ascii=False, allow_nan=False)
        write_result(self.path / FILE, [text.encode()])

    def read_record(self) -> Record:
        """What the folder is of.

        Raises:
            ProbeError: there is no such file, or it is of a newer version.
        """
        try:
            found = json.loads((self.path / FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            raise ProbeError(
                f"{self.path} holds no patching run (no readable {FILE}); `probe patch STUDY.yaml` makes one"
            ) from error
        if found.pop("format", None) != FORMAT:
            raise ProbeError(f"{self.path / FILE} was written by another version of this tool; patch the study again")
        for name in ("options", "left_out", "absent"):
            found[name] = tuple(found[name])
        return Record(**found | {"parts": tuple((key, persona) for key, persona in found["parts"])})

    @property
    def missing(self) -> Mapping[str, str]:
        """Streams that the model was found to lack, by the record of an earlier run; empty without one."""
        return self.read_record().missing if (self.path / FILE).exists() else {}

    def reads(self, told: Record) -> pd.DataFrame:
        """The reads of every finished part that the record names; ``attrs``: options, high_risk and ``pending`` parts.

        Raises:
            ProbeError: none is finished.
        """
        done = [key for key, _ in told.parts if self.has(key)]
        if not done:
            raise ProbeError(f"no part of {self.path} is finished; run `probe patch` on its study again")
        whole = pd.concat([pd.read_parquet(self._part(key)) for key in done], ignore_index=True)
        whole.attrs = {
            "options": list(told.options),
            "high_risk": told.high_risk,
            "pending": len(told.parts) - len(done),
        }
        return whole

    def clear(self) -> None:
        """Remove the parts and the record, and nothing else that may lie in the folder."""
        for file in (*(self.path / PARTS).glob("*.parquet"), self.path / FILE):
            file.unlink(missing_ok=True)

    def _part(self, key: str) -> Path:
        return self.path / PARTS / f"{key}.parquet"
