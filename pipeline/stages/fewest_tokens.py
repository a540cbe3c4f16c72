"""The fewest tokens that keep the meaning of a text: one length after the other, for the texts that need more."""

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from pez.models.joint import AnyClip
from pez.settings import PezSettings
from pipeline.sources.ahead import batches as in_batches
from pipeline.stages.lanes import BATCH, Request, Result, SharedLanes


class FewestTokens:
    """Learns prompts of 1, 2, ... tokens for each request, until one is similar enough. One stream at a time.

    Args:
        settings: its tokens are the most that a prompt may have.
        lanes: number of prompts learned side by side, a multiple of 16.
        keep: the similarity to reach.

    Raises:
        UserError: more tokens than the model has room for, or an empty vocabulary.
    """

    def __init__(self, clip: AnyClip, settings: PezSettings, lanes: int, keep: float) -> None:
        self.clip, self.settings, self.keep, self._lanes = clip, settings, keep, lanes
        self._by_tokens = {settings.tokens: SharedLanes(clip, settings, lanes)}
        self._turn = threading.Lock()

    @property
    def learning(self) -> int:
        """Number of prompts being learned."""
        return sum(lanes.learning for lanes in list(self._by_tokens.values()))

    @property
    def busy_lanes(self) -> int:
        """Number of searches in progress."""
        return sum(lanes.busy_lanes for lanes in list(self._by_tokens.values()))

    @property
    def steps(self) -> int:
        """Total number of steps of these prompts so far, at the current length."""
        return sum(lanes.steps for lanes in list(self._by_tokens.values()))

    def results(self, batches: Iterable[list[Request]]) -> Iterator[list[Result]]:
        """Learn for the requests of one stream; see SharedLanes.

        Yields:
            lists of results, short prompts first. A text that no prompt is similar enough to has its longest one.
        """
        with self._turn:
            left: Iterable[list[Request]] = batches
            for tokens in range(1, self.settings.tokens + 1):
                longer: list[Request] = []
                with_requests = ([dataclasses.replace(request, handle=request) for request in batch] for batch in left)
                for done in self._of(tokens).results(with_requests):
                    kept: list[Result] = []
                    for result in done:
                        request: Request = result.handle
                        if result.prompt.similarity >= self.keep or tokens == self.settings.tokens:
                            kept.append(dataclasses.replace(result, handle=request.handle))
                        else:
                            longer.append(request)
                    if kept:
                        yield kept
                left = list(in_batches(longer, BATCH))

    def score_captions(self, captions: Sequence[str | None], directions: Tensor) -> list[float | None]:
        """See SharedLanes."""
        return self._of(self.settings.tokens).score_captions(captions, directions)

    def _of(self, tokens: int) -> SharedLanes:
        if tokens not in self._by_tokens:
            settings = dataclasses.replace(self.settings, tokens=tokens)
            self._by_tokens[tokens] = SharedLanes(self.clip, settings, self._lanes)
        return self._by_tokens[tokens]
