"""The study file: what is asked of whom, under which conditions. Knows YAML and JSONL; knows no tokenizer or model."""

from probe.study.given_texts import GivenSpec
from probe.study.label_spec import LabelSpec
from probe.study.overrides import Override, parse_override
from probe.study.recipe_specs import GateSpec, RecipeSpec
from probe.study.scaffold import new_study
from probe.study.spec import (
    ANALYSES,
    CONFIRMABLE,
    USUAL_ANALYSES,
    CaptureSpec,
    ConditionSpec,
    GenerationSpec,
    ModelSpec,
    PlannedContrast,
)
from probe.study.study import Study

__all__ = [
    "ANALYSES",
    "CONFIRMABLE",
    "USUAL_ANALYSES",
    "CaptureSpec",
    "ConditionSpec",
    "GateSpec",
    "GenerationSpec",
    "GivenSpec",
    "LabelSpec",
    "ModelSpec",
    "Override",
    "PlannedContrast",
    "RecipeSpec",
    "Study",
    "new_study",
    "parse_override",
]
