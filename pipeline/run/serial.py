"""The runner without Ray: the tasks of one stage run sequentially in this process."""

import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.run.stage import OnFailure, Worker
from pipeline.run.tasks import Task
from pipeline.run.work import Executor, WorkQueue


def run_serially(
    tasks: Iterable[Task],
    worker: Worker,
    on_report: Callable[[Any], None],
    attempts: int = 1,
    on_note: Callable[[str], None] = lambda _: None,
    on_failure: OnFailure = lambda *_: None,
) -> dict[str, str]:
    """Run the tasks sequentially; failed tasks are retried after the others.

    Args:
        worker: the opened stage.
        on_report: called with the result of each finished task.
        attempts, on_note, on_failure: see WorkQueue.

    Returns:
        reasons by URL, for the units that were given up.
    """
    queue = WorkQueue[Executor](attempts=attempts, on_note=on_note, on_failure=on_failure)
    queue.add(tasks)
    queue.join(here := Executor())
    while queue.unfinished:
        given = queue.assign()
        if not given:
            time.sleep(queue.seconds_to_next())
        for _, work in given:
            try:
                report = worker.run(work.task)
            except Exception as error:  # of any kind; the other tasks continue
                queue.failed(here, work, error, traceback.format_exc())
            else:
                queue.done(here, work)
                on_report(report)
    return queue.given_up
