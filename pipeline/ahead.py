"""What is coming, made in a thread while the present is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


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
