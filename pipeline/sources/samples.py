"""Names of the time before Item; removed with their last user."""

from pez.images import ImageError, decode_image
from pipeline.sources.base import Item as Sample
from pipeline.sources.base import LateCaption
from pipeline.sources.base import UnitError as ShardError

__all__ = ["ImageError", "LateCaption", "Sample", "ShardError", "decode_image"]
