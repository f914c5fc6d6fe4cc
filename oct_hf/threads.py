"""Work on threads with the results in order and only a few in flight, so that memory stays flat.

Pillow and numpy release the interpreter lock while they decode, resize and draw, so threads are enough.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def in_order(function: Callable, items: Iterable) -> Iterator[tuple]:
    """`(item, function(item))` for each item, in order; an exception of `function` is raised at its item's turn."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        pending = deque()
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) >= 4 * workers:
                item, result = pending.popleft()
                yield item, result.result()
        for item, result in pending:
            yield item, result.result()
