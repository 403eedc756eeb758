"""The options of ``probe run`` and ``probe capture``, each written once. Knows names and help texts; runs nothing.

A command takes them as one value: ``expanded`` gives it the fields of an options class as options of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from probe.values import ProbeError

if TYPE_CHECKING:
    from probe.engines import Engine
    from probe.stages.analysis import Question
    from probe.stages.policy import CapturePolicy
    from probe.stages.swap import SwapRequest
    from probe.study import Study

StudyFile = Annotated[Path, typer.Argument(help="A study file (YAML).", metavar="STUDY.yaml")]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="Where the captures lie.", show_default="cache/<study name>")
]
FiguresOption = Annotated[
    Path | None, typer.Option("--out", help="Where tables, figures and report go.", show_default="figures/<name>")
]

Target = Annotated[str, typer.Argument(metavar="STUDY|STORE", help="A study file, or the folder or URL of a store.")]
Base = Annotated[str | None, typer.Option(help="The persona that the others are compared with.")]
ColumnNames = Annotated[
    list[str] | None,
    typer.Option(metavar="OURS=THEIRS", help="A column that the table calls otherwise: case=question_id; repeatable."),
]
Backend = Annotated[str | None, typer.Option(help="How the model is read: hf, transformer-lens or nnsight.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove what the store holds and start again.")]


@dataclass(frozen=True)
class StudyOptions:
    """What ``run`` and ``capture`` have in common: a study, the settings changed for this run, and its store."""

    study: StudyFile
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many cases, spread over the strata.")] = None
    batch_size: Annotated[str | None, typer.Option(help="Prompts per forward pass: auto or a number.")] = None
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = None
    device_map: Annotated[
        str | None,
        typer.Option(
            metavar="MAP",
            help="Lay a model's blocks on several devices: auto, balanced, balanced_low_0 or sequential.",
        ),
    ] = None
    tensor_parallel: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Cut every block of a model into N parts, a device for each.")
    ] = None
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None
    backend: Backend = None
    remote: Annotated[bool, typer.Option("--remote", help="Run the model on NDIF, through --backend nnsight.")] = False
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the split into fitting and judging cases, not of sampling.")
    ] = None
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting of the study; repeatable.")
    ] = None
    store: StoreOption = None
    fresh: Fresh = False
    on_changed: Annotated[
        str,
        typer.Option(
            metavar="error|recapture|new-condition",
            help="Where a text was edited under its old id: refuse; capture it anew and keep the old rows, superseded; "
            "or capture it as a condition of its own.",
        ),
    ] = "error"
    writer: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="One of N writers of this store, counted from 0: 0/2 and 1/2 share the work."),
    ] = None
    allow_nonfinite: Annotated[
        bool,
        typer.Option("--allow-nonfinite", help="Store rows with NaN or infinities, marked, instead of failing them."),
    ] = False
    strict_numerics: Annotated[
        bool,
        typer.Option(
            "--strict-numerics", help="Refuse to continue a store under other versions, devices or batch sizes."
        ),
    ] = False

    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Capture rows again that failed before.")] = False

    def policy(self, engine: Engine | None = None) -> CapturePolicy:
        """How the capture treats what it finds, and where it runs, by default in this process."""
        from probe.engines import Engine
        from probe.stages.policy import CapturePolicy
        from probe.store import ON_CHANGED, Share

        known = {choice: choice for choice in ON_CHANGED}
        if self.on_changed not in known:
            raise ProbeError(f"--on-changed is one of {', '.join(ON_CHANGED)}; found {self.on_changed!r}")
        share = None if self.writer is None else Share.parse(self.writer)
        return CapturePolicy(
            on_changed=known[self.on_changed],
            share=share,
            allow_nonfinite=self.allow_nonfinite,
            strict_numerics=self.strict_numerics,
            retry_failed=self.retry_failed,
            engine=engine or Engine(),
        )

    def load(self) -> Study:
        """The study with the other options as overrides; ``--set`` comes last and wins."""
        from probe.study import Study

        return Study.load(self.study, overrides=self.overrides, limit=self.limit)

    def load_all(self) -> tuple[Study, ...]:
        """The study once for each of its models, with the other options as overrides.

        Raises:
            ProbeError: there are several, and one place is named for the captures of all.
        """
        from probe.study import Study

        studies = Study.load_all(self.study, overrides=self.overrides, limit=self.limit)
        if len(studies) > 1 and self.store is not None:
            raise ProbeError(
                f"--store is the place of one model's captures, and {self.study} names {len(studies)}; leave it out: "
                "each has its own, cache/<name>.<model>"
            )
        return studies

    @property
    def overrides(self) -> list[str]:
        """The options that change settings of the study, as ``--set`` writes them."""
        named = {
            "capture.batch_size": self.batch_size,
            "model.device": self.device,
            "model.device_map": self.device_map,
            "model.tensor_parallel": self.tensor_parallel,
            "model.dtype": self.dtype,
            "model.backend": self.backend,
            "model.remote": "true" if self.remote else None,
            "split_seed": self.seed,
        }
        return [*(f"{key}={value}" for key, value in named.items() if value is not None), *(self.set_ or [])]


@dataclass(frozen=True)
class SwapOptions:
    """What ``swap`` is asked beside the options of a run."""

    base: Base = None
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Every persona's texts under every persona, not only with the base.")
    ] = False
    mask: Annotated[
        bool, typer.Option("--mask/--no-mask", help="Read the texts again with the personas' own words masked.")
    ] = True
    mask_word: Annotated[list[str] | None, typer.Option(metavar="WORD", help="Mask this word too; repeatable.")] = None
    margin: Annotated[
        float, typer.Option(min=0, help="The change, in expected urgency, within which a persona stands still.")
    ] = 0.10
    out: FiguresOption = None

    @property
    def request(self) -> SwapRequest:
        """The options in the words of the stage."""
        from probe.stages.swap import SwapRequest

        return SwapRequest(self.base, self.all_pairs, self.mask, tuple(self.mask_word or ()))


@dataclass(frozen=True)
class EngineOptions:
    """Where ``run`` and ``capture`` run their shards."""

    engine: Annotated[str, typer.Option(metavar="local|ray|slurm", help="Where shards run (docs/scale.md).")] = "local"
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that hold the model.", show_default="1; on Ray, as many as fit"),
    ] = None
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster: auto or HOST:PORT.", show_default="one that is found")
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(min=0, help="Devices of each worker; .5 shares one.", show_default="1 if the study runs on CUDA"),
    ] = None
    cpus_per_worker: Annotated[
        int | None,
        typer.Option(min=1, help="Cores and threads of each worker.", show_default="1; local workers share all"),
    ] = None
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="A parameter of submitit: slurm_partition=gpu, timeout_min=240, ...; repeatable."
        ),
    ] = None

    @property
    def chosen(self) -> Engine:
        """The engine.

        Raises:
            ProbeError: there is no such engine, or an option is not one of it.
        """
        from probe.engines import Engine

        parameters: dict[str, str | int] = {}
        for text in self.slurm or ():
            key, equals, value = text.partition("=")
            if not key or not equals or not value:
                raise ProbeError(f"--slurm is written KEY=VALUE, as slurm_partition=gpu; found {text!r}")
            parameters[key] = int(value) if value.isdecimal() else value
        return Engine(self.engine, self.workers, self.address, self.gpus_per_worker, self.cpus_per_worker, parameters)


@dataclass(frozen=True)
class MetricsOptions:
    """What is asked of a study, a store or a table of predictions."""

    target: Annotated[
        str,
        typer.Argument(metavar="STUDY|STORE|TABLE", help="A study, a store, or predictions (CSV, JSONL, Parquet)."),
    ]
    base: Base = None
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PERSONA", help="Whose wordings make the noise floor; repeatable.", show_default="role control"
        ),
    ] = None
    options: Annotated[str | None, typer.Option(metavar="A,B,C", help="The labels in rising urgency.")] = None
    high_risk: Annotated[str | None, typer.Option(metavar="LABEL", help="The high-urgency label.")] = None
    bins: Annotated[int, typer.Option(min=1, help="Bins of the ECE.")] = 10
    ece: Annotated[str, typer.Option(metavar="KIND", help="Bins shown: equal-width or equal-mass.")] = "equal-width"
    cut: Annotated[
        str, typer.Option(metavar="CUT", help="What over- and under-triage are: high-vs-rest, strict or ordinal.")
    ] = "high-vs-rest"
    site: Annotated[
        str,
        typer.Option(metavar="SITE", help="Where the latent label is read: prompt_end, forced, after_reasoning, ..."),
    ] = "prompt_end"
    columns: ColumnNames = None
    parser: Annotated[
        str | None,
        typer.Option(metavar="FILE|builtin", help="Read the stored answers anew by these settings (docs/parsing.md)."),
    ] = None
    store: StoreOption = None
    out: FiguresOption = None

    @property
    def question(self) -> Question:
        """The options in the words of the analysis."""
        from probe.behaviour import CUTS, Settings
        from probe.stages.analysis import Question

        for name, given, known in (("cut", self.cut, CUTS), ("ece", self.ece, ("equal-width", "equal-mass"))):
            if given not in known:
                raise ProbeError(f"--{name} must be one of {', '.join(known)}, found {given!r}")
        return Question(
            base=self.base,
            controls=tuple(self.control) if self.control else None,
            options=None if self.options is None else tuple(label.strip() for label in self.options.split(",")),
            high_risk=self.high_risk,
            settings=Settings(n_bins=self.bins, cut=CUTS[self.cut]),
            equal_mass=self.ece == "equal-mass",
            site=self.site,
        )


def column_names(given: list[str] | None) -> dict[str, str]:
    """``OURS=THEIRS`` of the command line as a mapping from our names to those of the table."""
    names: dict[str, str] = {}
    for text in given or ():
        ours, equals, theirs = text.partition("=")
        if not ours or not equals or not theirs:
            raise ProbeError(f"--columns is written OURS=THEIRS, as case=question_id; found {text!r}")
        if ours in names:
            raise ProbeError(f"--columns names {ours!r} twice, as {names[ours]!r} and {theirs!r}; keep one")
        names[ours] = theirs
    return names


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is an options class replaced by the fields of that class.

    Typer reads a command's signature; this writes the one it needs, so that no option is written twice.
    """
    hints = get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    shown: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            shown |= _parameters_of(groups[name])
        else:
            shown[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])

    @functools.wraps(command)
    def gathered(**given: Any) -> None:
        built = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**built, **given)

    # Typer reads both of these; functools.wraps has copied those of the command itself.
    vars(gathered)["__signature__"] = inspect.Signature(list(shown.values()))
    gathered.__annotations__ = {name: parameter.annotation for name, parameter in shown.items()}
    return gathered


def _parameters_of(kind: Any) -> dict[str, inspect.Parameter]:
    """The fields of a dataclass as keyword parameters with their annotations and defaults."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    }
