"""Shards one after the other in this process, each with its attempts: what `pipeline/run/pool.py` does with actors."""

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable

from pez.errors import UserError
from pipeline.run.stage import OnFailure
from pipeline.sources.base import Unit


def in_turn(
    shards: Iterable[Unit],
    work: Callable[[Unit], Unit | None],
    attempts: int = 1,
    on_note: Callable[[str], None] = lambda _: None,
    on_failure: OnFailure = lambda *_: None,
) -> dict[str, str]:
    """Do the work on shard after shard; those that failed come again after the others.

    Args:
        work: on one shard, or a part of one; returns what is to be done next, before the others, if anything.
        attempts: tries that a shard has before it is given up. An error that is `permanent` has one.
        on_note: called with one line for each failure that is tried again.
        on_failure: called with each attempt that fails: the unit, the reason and the traceback.

    Returns:
        reason by address, of the shards that failed.
    """
    failed = {}
    queue = deque((shard, 1, 0.0) for shard in shards)
    while queue:
        shard, attempt, not_before = queue.popleft()
        time.sleep(max(not_before - time.monotonic(), 0))
        try:
            if (following := work(shard)) is not None:
                queue.appendleft((following, 1, 0.0))
        except Exception as error:  # whatever befell this shard, the others are done
            # Our own errors are one line, in which names stay as they are.
            message = str(error) if isinstance(error, UserError) else " ".join(str(error).split())[:500]
            reason = message or type(error).__name__
            on_failure(shard, reason, traceback.format_exc())
            if attempt < attempts and not getattr(error, "permanent", False):
                queue.append((shard, attempt + 1, time.monotonic() + retry_delay(attempt)))
                on_note(f"{shard.stem}{shard.which}: {reason}; it is tried again")
            else:
                failed[shard.url] = reason
    return failed


def retry_delay(failures: int) -> float:
    """Seconds before a shard that failed is tried again: 1, 2, 4 to 60, so that many attempts outlast a store's bad minutes."""
    return min(2.0 ** (failures - 1), 60.0)
