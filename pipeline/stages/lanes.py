"""One model whose lanes are shared by several streams of images or texts, so that none is idle between units.

The thread of a unit reads, decodes and waits for results. One more thread does all computation: targets, learning, scores of
prompts and captions. At most two streams are read at a time, and the earliest is served first, so that a lost worker loses the
work on one or two units, or on all its small ones. A prompt does not depend on its neighbors, so the rows are the same as if
units were processed one by one.
"""

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from pez.engine import Engine
from pez.learn import engine_for, own_tokens_of, prompts_of
from pez.models.joint import AnyClip
from pez.prompt import Prompt
from pez.settings import PezSettings
from pez.tasks import Learned, Task
from pez.threads import begin_thread

T = TypeVar("T")

BATCH = 16  # requests, see pez.models.clip
_STREAMS_READ = 2  # streams whose decoded images wait in memory
_PATIENCE = 5.0  # seconds that an interrupted caller waits for the current step


@dataclasses.dataclass(frozen=True)
class Direction:
    """A target whose feature is known, such as the mean of a group of images."""

    feature: Tensor
    """(dim,) float; its dot product with the unit feature of a prompt is the score"""


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt to learn."""

    key: str
    """determines the random start, together with the seed of the settings"""
    target: Tensor | str | Direction
    """(3, height, width) float pixels, preprocessed for the model; a text; or a direction in feature space"""
    caption: str | None = None
    """a caption to score as well"""
    handle: Any = None
    """anything; returned with the result"""


@dataclasses.dataclass(frozen=True)
class Result:
    """The prompt of a request."""

    handle: Any
    prompt: Prompt
    caption_similarity: float | None
    """None without a caption"""
    direction: Tensor
    """(dim,) float, on the CPU: the feature of the target"""


class SharedLanes:
    """Learns for many streams of requests, in a thread of its own.

    Args:
        lanes: number of prompts learned side by side, a multiple of 16. Up to as many requests per stream wait for lanes.
        caption_weight: weight of a request's caption in its target; the image has the rest.
        engine: learns; default = one for the settings.

    Raises:
        UserError: more tokens than the model has room for, or an empty vocabulary.
    """

    def __init__(
        self,
        clip: AnyClip,
        settings: PezSettings,
        lanes: int,
        caption_weight: float = 0.0,
        engine: Engine | None = None,
    ) -> None:
        self._caption_weight = caption_weight
        self.clip, self._settings = clip, settings
        self._engine = engine or engine_for(clip, settings, lanes)
        self._batches_ahead = max(1, lanes // BATCH)
        self._changed = threading.Condition()
        self._reading = threading.Semaphore(_STREAMS_READ)
        self._streams: list[_Stream] = []  # in order of arrival
        self._calls: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None  # while there are streams or calls

    @property
    def learning(self) -> int:
        """Number of prompts being learned."""
        return self._engine.learning

    @property
    def busy_lanes(self) -> int:
        """Number of searches in progress: one for each restart of a prompt."""
        return self._engine.busy_lanes

    @property
    def steps(self) -> int:
        """Total number of steps of these prompts so far."""
        return self._engine.steps

    def results(self, batches: Iterable[list[Request]]) -> Iterator[list[Result]]:
        """Learn for the requests of one stream, in the caller's thread; other threads may call it concurrently.

        Yields:
            lists of results, in the order in which they finish.

        Raises:
            errors of reading the batches, of computing their targets and of learning.
        """
        stream = _Stream()
        with self._changed:
            self._streams.append(stream)
            self._ensure_thread()
        try:
            with self._reading:
                for batch in batches:
                    self._offer(stream, batch)
                    if done := self._take(stream):
                        yield done
            while done := self._wait(stream):
                yield done
        finally:
            with self._changed:
                self._streams.remove(stream)
                self._changed.notify_all()
                # If possible, no step for a caller that has given up outlives the call.
                self._changed.wait_for(lambda: self._thread is None or self._streams or self._calls, _PATIENCE)

    def score_captions(self, captions: Sequence[str | None], directions: Tensor) -> list[float | None]:
        """Similarities between captions and the targets that they came with.

        Args:
            directions: (captions, dim) float, as in results.

        Returns:
            a similarity for each caption; None if it is None or empty.
        """
        return self._on_the_thread(lambda: self._score_captions(captions, directions.to(self.clip.device)))

    def _on_the_thread(self, work: Callable[[], T]) -> T:
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            self._calls.append(call)
            self._ensure_thread()
            self._changed.notify_all()
        return future.result()

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lanes", daemon=True)
            self._thread.start()

    def _offer(self, stream: "_Stream", batch: list[Request]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(stream.batches) < self._batches_ahead or stream.error)
            stream.check()
            stream.batches.append(batch)
            stream.missing += len(batch)
            self._changed.notify_all()

    def _take(self, stream: "_Stream") -> list[Result]:
        with self._changed:
            done, stream.done = stream.done, []
            return done

    def _wait(self, stream: "_Stream") -> list[Result]:
        """Wait for results; empty once all have been returned."""
        with self._changed:
            self._changed.wait_for(lambda: stream.done or stream.error or not stream.missing)
            stream.check()
        return self._take(stream)

    def _run(self) -> None:
        """The body of the thread: one action after another, until no stream is left."""
        begin_thread()
        while (act := self._next_act()) is not None:
            act()

    def _next_act(self) -> Callable[[], None] | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._calls or not self._streams or self._ready() is not None or self._engine.busy
            )
            if self._calls:
                return self._calls.popleft()
            if not self._streams:
                self._engine.clear()  # of tasks whose streams ended early
                self._thread = None
                self._changed.notify_all()
                return None
            stream = self._ready()
            if stream is None or not self._engine.free:
                return self._step
            batch = stream.batches.popleft()
            self._changed.notify_all()
            return partial(self._submit, stream, batch)

    def _ready(self) -> "_Stream | None":
        return next((stream for stream in self._streams if stream.batches), None)

    def _submit(self, stream: "_Stream", batch: list[Request]) -> None:
        try:
            features = self._features_of([request.target for request in batch])
            captions = self._captions_of(batch)
        except Exception as error:  # of these requests; other streams continue
            self._fail([stream], error)
            return
        for request, feature, caption in zip(batch, features, captions, strict=True):
            parts = torch.stack([feature, caption]) if caption is not None else feature[None]
            direction = feature
            if caption is not None:
                direction = torch.lerp(feature, caption, self._caption_weight)
            ticket = _Ticket(stream, request.caption, request.handle, parts)
            text = request.target if isinstance(request.target, str) else None
            own = None if text is None else own_tokens_of(self.clip, [self._beginning(text)])
            self._engine.submit(Task(request.key, direction, handle=ticket, own_tokens=own))

    def _step(self) -> None:
        try:
            finished = self._engine.step()
            results = self._results_of(finished) if finished else []
        except Exception as error:  # for all current streams; later ones may succeed
            self._engine.clear()
            self._fail(self._streams, error)
            return
        with self._changed:
            for learned, result in zip(finished, results, strict=True):
                stream = learned.task.handle.stream
                stream.done.append(result)
                stream.missing -= 1
            if results:
                self._changed.notify_all()

    def _fail(self, streams: "list[_Stream]", error: Exception) -> None:
        with self._changed:
            for stream in streams:
                stream.error = error
                stream.batches.clear()
            self._changed.notify_all()

    def _captions_of(self, batch: list[Request]) -> list[Tensor | None]:
        """(dim,) features of the captions that are part of targets."""
        if not self._caption_weight or not any(request.caption for request in batch):
            return [None] * len(batch)
        features = self.clip.text_features([self._beginning(request.caption or "") for request in batch])
        return [feature if request.caption else None for request, feature in zip(batch, features, strict=True)]

    def _features_of(self, targets: list[Tensor | str | Direction]) -> Tensor:
        """(targets, dim) float; all targets of a stream are of one kind."""
        if isinstance(targets[0], str):
            return self.clip.text_features([self._beginning(str(text)) for text in targets])
        if isinstance(targets[0], Direction):
            features = torch.stack([target.feature for target in targets if isinstance(target, Direction)])
            return features.to(self.clip.device, self.clip.full)
        return self.clip.pixel_features(torch.stack([pixels for pixels in targets if isinstance(pixels, Tensor)]))

    def _results_of(self, finished: list[Learned]) -> list[Result]:
        tickets = [learned.task.handle for learned in finished]
        features = torch.stack([ticket.parts[0] for ticket in tickets])
        prompts = prompts_of(self.clip, finished, self._settings, [ticket.parts for ticket in tickets])
        of_captions = self._score_captions([ticket.caption for ticket in tickets], features)
        # Copies, so that a result does not keep its neighbors in memory.
        own = [feature.clone() for feature in features.cpu()]
        found = zip(tickets, prompts, of_captions, own, strict=True)
        return [Result(ticket.handle, *values) for ticket, *values in found]

    def _score_captions(self, captions: Sequence[str | None], directions: Tensor) -> list[float | None]:
        if not any(captions):
            return [None] * len(captions)
        texts = [self._beginning(caption or "") for caption in captions]
        similarities = (self.clip.text_features(texts) * directions).sum(-1).tolist()
        return [similarity if c else None for similarity, c in zip(similarities, captions, strict=True)]

    def _beginning(self, text: str) -> str:
        """The part of a text that can matter: the model reads its first tokens only, and tokenizers are slow on a megabyte."""
        return " ".join(text.split())[: 16 * self.clip.context_length]


@dataclasses.dataclass(frozen=True)
class _Ticket:
    """Links a task to its stream."""

    stream: "_Stream"
    caption: str | None
    handle: Any
    parts: Tensor
    """(n, dim) features of the target: the image or the text, then the caption if it counts"""


class _Stream:
    """The requests and results of one caller."""

    def __init__(self) -> None:
        self.batches: deque[list[Request]] = deque()
        self.done: list[Result] = []
        self.missing = 0
        """requests without a result yet"""
        self.error: Exception | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error
