"""Models behind one protocol. Knows weights, layers and hooks; knows nothing of personas, prompts or stores.

Names that need torch are imported by ``probe.models.protocol`` and ``probe.models.loading``; this front imports none.
"""

from probe.models.configuration import ModelShape, read_shape
from probe.models.sources import ModelSource, find_model, weights_identity

__all__ = ["ModelShape", "ModelSource", "find_model", "read_shape", "weights_identity"]
