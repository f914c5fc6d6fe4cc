"""Single images in, batches through the model: what waits when the model is free goes through together.

Nothing waits for company: an image that finds the model free is a batch of one, and batches grow only because requests
came while it was busy. Reading runs on threads beside it.
"""

import logging
import os
import queue
import threading
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
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="read")
        self._models = [threading.Thread(target=self._work, daemon=True) for _ in range(model_threads)]

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
        future = Future()
        self._readers.submit(self._read, read, future)
        return future

    def _read(self, read: Callable[[], object], future: Future) -> None:
        if future.cancelled():
            return
        try:
            item = read()
        except Exception as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            self._waiting.put((item, future))

    def _work(self) -> None:
        while batch := self._next_batch():
            items, futures = zip(*batch, strict=True)
            self._on_batch(len(items))
            try:
                answers = self._answer(list(items))
                for future, answer in zip(futures, answers, strict=True):
                    future.set_result(answer)
            except Exception as error:
                log.exception("a batch of %d has no answer", len(items))
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            del batch, items, futures  # nothing is kept while this thread waits for the next batch

    def _next_batch(self) -> list[tuple]:
        """What waits, up to the batch size; waits only where nothing does. Empty at the end."""
        batch = []
        while len(batch) < self._batch_size:
            try:
                entry = self._waiting.get(block=not batch)
            except queue.Empty:
                break
            if entry is None:
                self._waiting.put(None)  # for the other threads, and for this one after its last batch
                break
            if entry[1].set_running_or_notify_cancel():
                batch.append(entry)
        return batch
