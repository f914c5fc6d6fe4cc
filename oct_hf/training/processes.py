"""One training on several processes, as torchrun starts them: who writes, who waits, and what all must agree on.

A recipe's `batch_size` is what a step sees of all processes together, so the same recipe takes the same steps on any
number of them, and a run that was stopped on two goes on on one. What differs is the running statistics of batch
norm: each process keeps those of its own batches, and those of the first count, as DistributedDataParallel has it.
Everything here does nothing on a single process.
"""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

_PATIENCE = timedelta(hours=24)  # while the first process decodes a large set, the others wait


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def join() -> None:
    """Takes up contact with the other processes; once."""
    if count() > 1 and not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
        atexit.register(leave)


def leave() -> None:
    """Ends contact; best while all are here, since one that is left alone when the interpreter ends may abort."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def largest(value: int) -> int:
    """The largest of all processes' values."""
    if count() == 1:
        return value
    found = torch.tensor(value)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return int(found)


def wait() -> None:
    """Until all processes are here."""
    largest(0)


@contextmanager
def main_first() -> Iterator[None]:
    """The first process does the block before the others, which then find its files."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def from_main(act: Callable[[], Any]) -> Any:
    """What `act` gives on the first process, on all of them."""
    if count() == 1:
        return act()
    found = [act() if is_main() else None]
    distributed.broadcast_object_list(found)
    return found[0]


def take_buffers_of_main(module: torch.nn.Module) -> None:
    """Gives a network the first process's buffers, such as running statistics of batch norm."""
    if count() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)
