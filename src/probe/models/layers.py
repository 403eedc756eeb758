"""Where the blocks of a decoder are. Knows module trees; knows no architecture by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from probe.values import ModelError


def find_blocks(model: Any) -> nn.ModuleList:
    """The decoder blocks: the one ``ModuleList`` below ``get_decoder()`` that is as long as the config says.

    Searching from the model's root would be ambiguous for models with more than one tower.

    Raises:
        ModelError: none or several lists have that length.
    """
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder = model.get_decoder()
    found = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    outermost = [
        (name, module) for name, module in found if not any(name.startswith(f"{other}.") for other, _ in found)
    ]
    if len(outermost) != 1:
        raise ModelError(
            f"the {n_layers} blocks of {type(model).__name__} cannot be told apart: "
            f"{len(outermost)} module lists of that length below its decoder; this architecture is not supported yet"
        )
    return outermost[0][1]
