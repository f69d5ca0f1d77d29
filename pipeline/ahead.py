"""What is coming, made in threads while the present is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(items: Iterator[Item], count: int) -> Generator[Item, None, None]:
    """The same items in the same order, up to `count` of them made in a thread while the present
    one is used.

    What making an item raises is raised in its place. Closing this iterator ends the thread.
    """
    thread, end = ThreadPoolExecutor(1), object()
    try:
        coming = deque(thread.submit(next, items, end) for _ in range(count))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]  # what is not the end is an item
    finally:
        thread.shutdown(cancel_futures=True)


def each_ahead(
    make: Callable[[Item], Made], items: Iterable[Item], threads: Executor, count: int
) -> Generator[Made, None, None]:
    """`make` of every item in order, by the threads, up to `count` of them ahead.

    What `make` raises is raised in its item's place. Closing this iterator takes back what no
    thread has begun.
    """
    coming: deque[Future[Made]] = deque()
    try:
        for item in items:
            coming.append(threads.submit(make, item))
            if len(coming) > count:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for left in coming:
            left.cancel()
