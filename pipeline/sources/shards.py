"""Names of the time before Unit; removed with their last user."""

from pipeline.sources.base import Unit as Shard
from pipeline.sources.stores import listing_options, missing_driver
from pipeline.sources.units import hashed_stem
from pipeline.sources.units import name_units as name_shards

__all__ = ["Shard", "hashed_stem", "listing_options", "missing_driver", "name_shards"]
