"""Work on threads or processes with the results in order and only a few in flight, so that memory stays flat.

Pillow and numpy release the interpreter lock while they decode, resize and draw, so threads do for a few cores; what
Python does between them is one core's at a time, so many cores need processes.
"""

import ctypes
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from oct_hf.errors import OCTError


@contextmanager
def lean_arrow() -> Iterator[None]:
    """Arrow with the C library's allocator: its own keeps tens of megabytes that writing batches of pictures freed."""
    import pyarrow as pa

    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def give_memory_back() -> None:
    """What was freed goes back to the system, where the C library is one that would keep it (Linux)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)
# glibc no longer adapts its thresholds once one was set: these are the ones that it comes to where tensors are freed.
_AFTERWARDS = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside the block freed memory stays with the process, where glibc manages it.

    A step's activations are freed and wanted again at every step. Returned to the system between, each of their pages
    is zeroed anew, which took a quarter of a step on a CPU.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        yield
        return
    set_option(_MMAP_MAX, 0)
    set_option(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        for option, value in _AFTERWARDS.items():
            set_option(option, value)
        give_memory_back()


def in_order(
    function: Callable, items: Iterable, workers: int | None = None, ahead: int | None = None
) -> Iterator[tuple]:
    """`(item, function(item))` for each item, in order; an exception of `function` is raised at its item's turn.

    Args:
        function, items: what is to be done.
        workers: threads; as many as there are cores where not given.
        ahead: items in flight at most; four a thread where not given.
    """
    workers = workers or os.cpu_count() or 1
    ahead = ahead or 4 * workers
    with ThreadPoolExecutor(workers) as pool:
        pending = deque()
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) >= ahead:
                item, result = pending.popleft()
                yield item, result.result()
        for item, result in pending:
            yield item, result.result()


def in_processes(function: Callable, items: Iterable, workers: int) -> Iterator:
    """`function(item)` for each item, in order, on processes that import the package anew.

    Args:
        function: of an importable module; it, the items and the results are pickled.
        items: read as they are needed.
        workers: processes.

    Raises:
        OCTError: a process was killed; the exceptions of `function`.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import BrokenProcessPool

    items = iter(items)
    head = list(islice(items, 1))
    if not head:
        return  # no process is started for nothing
    # loky's processes don't run the caller's script again, so it needs no `if __name__ == "__main__"`.
    options: dict[str, Any] = {"return_as": "generator", "batch_size": 1, "pre_dispatch": "2*n_jobs"}
    pool = Parallel(n_jobs=workers, backend="loky", **options)
    try:
        yield from pool(delayed(function)(item) for item in chain(head, items))
    except BrokenProcessPool as error:
        raise OCTError(
            f"a worker process was killed ({str(error).splitlines()[0]}); is memory short? Try fewer workers"
        ) from None


def import_ray() -> Any:
    """Ray's module, which then tells nobody of its use.

    Raises:
        OCTError: it isn't installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise OCTError("Ray isn't installed: pip install 'oct-hf[ray]'") from None
    return ray


@contextmanager
def _no_usage_process() -> Iterator[None]:
    """A cluster that is started in the block has no process for statistics of use.

    Even where they are turned off and there is no dashboard, that process asks addresses of three clouds where it runs
    (ray 2.60, `UsageStatsHead.run`), and nothing public keeps it from being started.
    """
    try:
        from ray._private import services

        start = services.start_api_server
    except (ImportError, AttributeError):  # another version of Ray
        yield
        return
    services.start_api_server = lambda *_, **__: ("", None)  # as where it couldn't be started
    try:
        yield
    finally:
        services.start_api_server = start


@contextmanager
def ray_cluster(cpus: int | None = None) -> Iterator:
    """Inside the block Ray's module, connected to the cluster that RAY_ADDRESS names.

    Args:
        cpus: of the cluster of this machine that is started where none is named, and stopped at the end; as many as
            there are cores where not given.

    Raises:
        OCTError: Ray isn't installed, or the cluster isn't there.
    """
    ray = import_ray()
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        # Without "local" Ray would take up whatever cluster it finds running here.
        own = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        try:
            _knock(address)
            with _no_usage_process():
                ray.init(**({"address": address} if address else own), log_to_driver=False, logging_level="error")
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise OCTError(f"no Ray cluster at {address or 'this machine'} ({str(error).splitlines()[0]})") from None
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def shares(ray, workers: int | None = None) -> tuple[int, int, int]:
    """How the machines of a cluster are shared: workers at a time, and the CPUs and GPUs of each.

    Args:
        ray: the module, connected (`ray_cluster`).
        workers: at a time; where not given, as many as there are GPUs, or else machines.

    Raises:
        OCTError: no machine has a CPU.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    cpus = [int(machine.get("CPU", 0)) for machine in machines if machine.get("GPU") or not gpus]
    cpus = [count for count in cpus if count]
    if not cpus:
        raise OCTError("the Ray cluster has no machine with a CPU to spare")
    slots = min(workers or gpus or len(cpus), gpus or sum(cpus), sum(cpus))
    share = max(share for share in range(1, max(cpus) + 1) if sum(count // share for count in cpus) >= slots)
    return slots, share, int(gpus > 0)


def _knock(address: str | None) -> None:
    """Raises OSError where nobody answers at `host:port`: Ray itself would try for minutes, and then in many lines."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def on_ray(function: Callable, items: Iterable, workers: int | None = None) -> Iterator:
    """`function(item)` for each item, in order, on a Ray cluster; what a lost machine had is done again elsewhere.

    Args:
        function, items, workers: as for `in_processes`. The cluster is that of `ray_cluster`; one of this machine has
            so many workers.

    Raises:
        OCTError: Ray isn't installed, or the cluster isn't there; the exceptions of `function`.
    """
    with ray_cluster(workers) as ray:
        try:
            remote = ray.remote(max_retries=3)(function)
            in_flight = 2 * int(ray.cluster_resources().get("CPU", 1))
            pending = deque()
            for item in items:
                pending.append(remote.remote(item))
                if len(pending) >= in_flight:
                    yield ray.get(pending.popleft())
            while pending:
                yield ray.get(pending.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
