"""Frozen values that every room shares. Knows numpy; knows no tokenizer, model, file or figure."""

from probe.values.canonical import canonical_json, sha256_of
from probe.values.cases import ALL, Case
from probe.values.cells import Cell, CellRecord, Condition, LabelRead, PlannedRow, is_cut
from probe.values.directions import Direction
from probe.values.errors import (
    ChangedPrompt,
    CorruptShard,
    DiskFull,
    LabelError,
    MissingShard,
    ModelError,
    NewerVersion,
    NoStore,
    ProbeError,
    ProbeWarning,
    RowRefused,
    StoreBusy,
    StoreChanged,
    StoreError,
    StoreMismatch,
    StudyError,
)
from probe.values.estimates import Estimate
from probe.values.given import GivenText
from probe.values.interventions import EDIT_POSITIONS, OPERATORS, Gate, Intervention
from probe.values.parsing import DEFAULT_PARSER, ParserSettings, Reasoning
from probe.values.patches import KeyValues, KVPatch, SweepRead, TokenPatch
from probe.values.personas import Persona
from probe.values.recipes import PerCase, Recipe, steering
from probe.values.sites import LABEL_SITES, POSITIONS, STREAMS, AbsentSite, Site
from probe.values.tasks import Option, Task

__all__ = [
    "ALL",
    "DEFAULT_PARSER",
    "EDIT_POSITIONS",
    "LABEL_SITES",
    "OPERATORS",
    "POSITIONS",
    "STREAMS",
    "AbsentSite",
    "Case",
    "Cell",
    "CellRecord",
    "ChangedPrompt",
    "Condition",
    "CorruptShard",
    "Direction",
    "DiskFull",
    "Estimate",
    "Gate",
    "GivenText",
    "Intervention",
    "KVPatch",
    "KeyValues",
    "LabelError",
    "LabelRead",
    "MissingShard",
    "ModelError",
    "NewerVersion",
    "NoStore",
    "Option",
    "ParserSettings",
    "PerCase",
    "Persona",
    "PlannedRow",
    "ProbeError",
    "ProbeWarning",
    "Reasoning",
    "Recipe",
    "RowRefused",
    "Site",
    "StoreBusy",
    "StoreChanged",
    "StoreError",
    "StoreMismatch",
    "StudyError",
    "SweepRead",
    "Task",
    "TokenPatch",
    "canonical_json",
    "is_cut",
    "sha256_of",
    "steering",
]
