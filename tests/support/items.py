"""The items of one tar, as tests look at them."""

from collections import Counter

from pipeline.sources.base import Item, LateCaption, Unit
from pipeline.sources.tars import TarSource


def items_of(
    unit: Unit | str, left_out: Counter[str] | None = None, late: bool = False, **settings: object
) -> list[Item]:
    """The items of a tar.

    Args:
        late: with the captions that are found after their item.
        settings: of TarSource.
    """
    found = TarSource(**settings).read(Unit(unit, "a") if isinstance(unit, str) else unit, left_out)  # type: ignore[arg-type]
    return [item for item in found if late or not isinstance(item, LateCaption)]
