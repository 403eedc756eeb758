"""Module names of a model's blocks, as other tools hook them. Knows a configuration; loads no weights."""

from __future__ import annotations

from probe.models.layers import find_blocks
from probe.models.sources import ModelSource
from probe.values import ModelError


def block_names(source: ModelSource) -> tuple[str, ...]:
    """The blocks' module names below the model's ``base_model``, in order: ``layers.0``, ``h.0``, ...

    The module tree is built without memory for its weights.

    Raises:
        ModelError: the configuration is not one that transformers knows, or the blocks cannot be told apart.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(
            str(source.folder), trust_remote_code=source.trust_remote_code, local_files_only=True
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source.folder}/config.json is not usable: {str(error).strip().splitlines()[0]}") from error
    blocks = {id(block): at for at, block in enumerate(find_blocks(model))}
    found = {blocks[id(module)]: name for name, module in model.base_model.named_modules() if id(module) in blocks}
    if len(found) < len(blocks):
        raise ModelError(
            f"the blocks of {type(model).__name__} do not lie below its base_model, where lm-eval hooks them"
        )
    return tuple(found[at] for at in range(len(blocks)))
