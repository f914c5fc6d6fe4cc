"""Single images in, batches through the model: what waits when the model is free goes through together.

Nothing waits for company: an image that finds the model free is a batch of one, and batches grow only because requests
came while it was busy. Reading runs on threads beside it. What nobody waits for any more is dropped at once, so that
it takes no memory until its turn.
"""

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

log = logging.getLogger(__name__)


class Batcher:
    """Threads that read images and threads that answer batches of them; use it as a context.

    Args:
        answer: a list of read images to one answer each, in order; runs on the model's threads.
        batch_size: images a call of `answer` at most.
        model_threads: calls of `answer` that may run at the same time.
        on_batch: told the size of each batch.
    """

    def __init__(
        self,
        answer: Callable[[list], list],
        batch_size: int,
        model_threads: int = 1,
        on_batch: Callable[[int], None] = lambda size: None,
    ):
        self._answer, self._batch_size, self._on_batch = answer, batch_size, on_batch
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._reader_threads = os.cpu_count() or 1
        self._readers = ThreadPoolExecutor(self._reader_threads, thread_name_prefix="read")
        self._models = [threading.Thread(target=self._work, daemon=True) for _ in range(model_threads)]
        self._reading, self._answering = _Pace(), _Pace()

    def __enter__(self) -> "Batcher":
        for thread in self._models:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        """Ends once everything submitted has its answer."""
        self._readers.shutdown(wait=True)
        self._waiting.put(None)
        for thread in self._models:
            thread.join()

    def submit(self, read: Callable[[], object]) -> Future:
        """The answer for what `read` returns, or the exception that it raises; cancelled, it isn't computed."""
        work = _Work(read)
        self._readers.submit(self._read, work)
        return work.future

    def seconds(self, images: int) -> float:
        """How long so many images take, as the last ones did; 0 before there was any.

        The slower one of reading and answering sets the pace, since they run beside each other.
        """
        batches = math.ceil(images / self._batch_size)
        return max(
            images * self._reading.seconds / self._reader_threads,
            batches * self._answering.seconds / len(self._models),
        )

    def _read(self, work: "_Work") -> None:
        read = work.read
        if read is None:
            return
        began = time.perf_counter()
        try:
            work.item = read()
        except Exception as error:
            if work.future.set_running_or_notify_cancel():
                work.future.set_exception(error)
        else:
            self._reading.took(time.perf_counter() - began)
            if work.future.cancelled():
                work.drop()
            self._waiting.put(work)

    def _work(self) -> None:
        while batch := self._next_batch():
            self._on_batch(len(batch))
            began = time.perf_counter()
            try:
                answers = self._answer([work.item for work in batch])
                self._answering.took(time.perf_counter() - began)
                for work, answer in zip(batch, answers, strict=True):
                    work.future.set_result(answer)
            except Exception as error:
                log.exception("a batch of %d has no answer", len(batch))
                for work in batch:
                    if not work.future.done():
                        work.future.set_exception(error)
            batch.clear()  # nothing is kept while this thread waits for the next batch

    def _next_batch(self) -> list["_Work"]:
        """What waits, up to the batch size; waits only where nothing does. Empty at the end."""
        batch = []
        while len(batch) < self._batch_size:
            try:
                work = self._waiting.get(block=not batch)
            except queue.Empty:
                break
            if work is None:
                self._waiting.put(None)  # for the other threads, and for this one after its last batch
                break
            if work.future.set_running_or_notify_cancel():
                batch.append(work)
        return batch


class _Work:
    """One image on its way: how to read it, then what was read; neither once it is answered or cancelled."""

    __slots__ = ("future", "item", "read")

    def __init__(self, read: Callable[[], object]):
        self.read: Callable[[], object] | None = read
        self.item: object = None
        self.future = Future()
        self.future.add_done_callback(lambda _: self.drop())

    def drop(self) -> None:
        self.read = self.item = None


class _Pace:
    """How long a step takes: a mean over the last ones, each counting an eighth less than the next."""

    def __init__(self):
        self.seconds = 0.0

    def took(self, seconds: float) -> None:
        # Threads may overwrite each other's step here and there; a mean can bear that.
        self.seconds += (seconds - self.seconds) * (1 / 8 if self.seconds else 1)
