"""The actors of a job: each holds a model, and is given shards."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

import pez
from pipeline.description import model_of
from pipeline.rows import ShardReport
from pipeline.run import warning_log
from pipeline.run.resources import ActorPlan
from pipeline.run.shared_disk import SharedDisk
from pipeline.run.stage import Stage
from pipeline.settings import LearnSettings, VerifySettings
from pipeline.sources.base import Source
from pipeline.sources.shards import Shard
from pipeline.stages.learn import Captioner, Progress, caption_shard
from pipeline.stages.parts import PartReport
from pipeline.stages.verified_table import VerifiedTable, VerifyReport
from pipeline.stages.verify import Verifier, VerifyProgress, verify_shard
from pipeline.table import PromptTable


class _Actor:
    """What all actors have in common: the start, which looks around and then loads a model."""

    def __init__(self, threads: int, disk: SharedDisk) -> None:
        import torch

        torch.set_num_threads(threads)
        warning_log.install()
        self.problem: Exception | None = None
        with self._told():
            disk.check(ray.util.get_node_ip_address())

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """An error is raised by `ready`: of one that a constructor raises, Ray keeps no more than a traceback as text."""
        try:
            yield
        except Exception as error:
            self.problem = error

    def ready(self) -> str:
        if self.problem is not None:
            raise self.problem
        return ray.get_runtime_context().get_node_id()


@ray.remote
class CaptionActor(_Actor):
    """Holds one model and captions shards, several at a time."""

    def __init__(
        self,
        settings: LearnSettings,
        method: pez.PezSettings,
        plan: ActorPlan,
        url: str,
        described: dict[str, Any],
        retry_failed: bool,
        disk: SharedDisk,
        source: Source | None,
    ) -> None:
        super().__init__(plan.threads, disk)
        if self.problem is None:
            with self._told():
                self.captioner = Captioner(settings, method, plan.device, plan.threads, source=source)
                self.table = PromptTable(url, described, columns=self.captioner.source.columns)
                self.retry_failed = retry_failed

    def run(self, shard: Shard) -> ShardReport | PartReport:
        return caption_shard(shard, self.captioner, self.table, self.retry_failed)

    def progress(self) -> Progress:
        return self.captioner.progress


@ray.remote
class VerifyActor(_Actor):
    """Holds one generator and the CLIP that compares, and verifies shards, one at a time."""

    def __init__(
        self,
        settings: VerifySettings,
        plan: ActorPlan,
        table: tuple[str, dict[str, Any], dict[str, Any]],
        disk: SharedDisk,
    ) -> None:
        super().__init__(plan.threads, disk)
        if self.problem is None:
            with self._told():
                url, captioned, verified = table
                self.verifier = Verifier(settings, model_of(captioned).model, plan.device, plan.threads)
                self.table = VerifiedTable(PromptTable(url, captioned), verified, settings.keep_images)

    def run(self, shard: Shard) -> VerifyReport:
        return verify_shard(shard, self.verifier, self.table)

    def progress(self) -> VerifyProgress:
        return self.verifier.progress


def actor_starter(
    settings: LearnSettings,
    method: pez.PezSettings,
    plan: ActorPlan,
    url: str,
    described: dict[str, Any],
    retry_failed: bool = False,
    at_once: int = 1,
    disk: SharedDisk = SharedDisk(),  # noqa: B008 - frozen
    source: Source | None = None,
) -> Callable[[], Any]:
    """What makes the job's actors.

    Args:
        at_once: shards that an actor may be given at a time.
        disk: what each must see.
        source: how units are read; default = as the settings say.
    """
    # One more thread answers progress() while shards are in work.
    options = {"num_cpus": plan.cpus, "num_gpus": plan.gpus, "max_concurrency": at_once + 1}
    told = (settings, method, plan, url, described, retry_failed, disk, source)
    return lambda: CaptionActor.options(**options).remote(*told)  # type: ignore[attr-defined]


def verify_stage(
    settings: VerifySettings,
    plan: ActorPlan,
    table: VerifiedTable,
    shards: Sequence[Shard],
    on_report: Callable[[VerifyReport], None],
    disk: SharedDisk = SharedDisk(),  # noqa: B008 - frozen
) -> Stage:
    """The stage of verification.

    Args:
        shards: that were captioned by an earlier run.
        disk: what each actor must see.
    """
    options = {"num_cpus": plan.cpus, "num_gpus": plan.gpus, "max_concurrency": 2}
    told = (table.prompts.url, table.prompts.settings, table.settings)
    return Stage(
        "verification",
        lambda: VerifyActor.options(**options).remote(settings, plan, told, disk),  # type: ignore[attr-defined]
        plan.actors,
        on_report,
        shards,
        plan.asks,
    )
