"""Where a study's model and its chat template come from. Knows paths beside the study; loads no model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from probe.study.located import Located
from probe.study.spec import ModelSpec
from probe.study.text_files import is_there, read_text

ORGANISM = "organism"
"""The model id of the embedded model; never a folder."""
PLAIN = "plain"
"""The chat template for base models, which the prompt room provides."""


def model_from(model: ModelSpec, source: Located, directory: Path) -> ModelSpec:
    """The model with its directory found, its hub id split from ``@revision`` and its chat template read.

    An id that is no directory beside the study is left as it is: relative to the working directory, or on the hub.

    Raises:
        StudyError: the revision stands twice or is empty, the chat template is neither ``plain``, a file nor Jinja, or
            the model is to run elsewhere, or on several devices, and cannot.
    """
    _check_spread(model, source)
    if model.remote is not False and model.backend != "nnsight":
        raise source.refusal(
            f"only nnsight runs a model elsewhere, and the backend is {model.backend!r}. "
            "Set `backend: nnsight`, or leave `remote` out",
            "remote",
        )
    model = replace(model, chat_template=_template(model, source, directory))
    beside = directory / model.id
    if model.remote is True and (model.id == ORGANISM or is_there(beside.is_dir) or is_there(Path(model.id).is_dir)):
        raise source.refusal(
            f"NDIF knows models by their hub ids, and {model.id!r} is here only. Set `remote: false`", "remote"
        )
    if model.id == ORGANISM:
        return model
    if is_there(beside.is_dir):
        return replace(model, id=str(beside.resolve()))
    name, at, revision = model.id.rpartition("@")
    if not at or is_there(Path(model.id).is_dir):
        return model
    if model.revision is not None:
        raise source.refusal(
            f"the revision stands twice: {revision!r} after '@', and {model.revision!r} as `revision`. Keep one", "id"
        )
    if not name or not revision:
        raise source.refusal(f"a hub id is NAME@REVISION, found {model.id!r}. Write both or no '@'", "id")
    return replace(model, id=name, revision=revision)


def _check_spread(model: ModelSpec, source: Located) -> None:
    """Refuse what does not go with a model over several devices."""
    asked = [key for key in ("device_map", "tensor_parallel") if getattr(model, key) is not None]
    if not asked:
        return
    if len(asked) > 1:
        raise source.refusal(
            "`device_map` lays whole blocks on devices and `tensor_parallel` cuts every block, so a model is loaded in "
            "one of these ways. Leave one out",
            asked[1],
        )
    if model.backend != "hf":
        raise source.refusal(
            f"only the backend hf reads a model over several devices, and the backend is {model.backend!r}. "
            f"Set `backend: hf`, or leave `{asked[0]}` out",
            asked[0],
        )
    if model.device_map is not None and model.device != "auto":
        raise source.refusal(
            f"`device_map` chooses the devices itself, and `device` is {model.device!r}. Leave `device` out, and hide "
            "devices with CUDA_VISIBLE_DEVICES",
            "device",
        )


def _template(model: ModelSpec, source: Located, directory: Path) -> str | None:
    text = model.chat_template
    if text is None or text == PLAIN or "{" in text:  # a brace is in every template that shows a message
        return text
    path = directory / text
    if path.suffix != ".jinja" or not is_there(path.is_file):
        raise source.refusal(
            f"`chat_template` must be plain, the path of a .jinja file, or Jinja text, found {text[:60]!r}. "
            "A path is relative to the study file",
            "chat_template",
        )
    return read_text(path)
