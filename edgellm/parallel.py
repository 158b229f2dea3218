"""Work in stretches on several threads, taken back in order: for loading, packing and checking weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def parallel(tasks: Iterable[T], run: Callable[[T], R], n_threads: int) -> Generator[tuple[T, R], None, None]:
    """(task, run(task)) for each task, in order; a few are under way or wait to be taken, so memory stays bounded.

    An error of a task is raised when its turn comes. When the iterator is closed, which an error does too, no other
    task begins and those under way are waited for.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(max_workers=max(1, n_threads)) as pool:
        try:
            for task in tasks:
                waiting.append((task, pool.submit(run, task)))
                if len(waiting) > 2 * n_threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
