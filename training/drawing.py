"""Batches, each from a seed of its own: drawn here, or ahead by other processes for a quicker device."""

import random
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from copy import deepcopy
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import torch

Batch = TypeVar("Batch", covariant=True)


class Drawer(Protocol[Batch]):
    def draw(self, rng: random.Random, news: Any) -> Batch: ...


_own: Drawer[Any]


def _begin(drawer: Drawer[Any]) -> None:
    global _own
    torch.set_num_threads(1)
    _own = drawer


def _draw(seed: int, news: Any) -> Any:
    return drawn(_own, seed, news)


def drawn(drawer: Drawer[Batch], seed: int, news: Any) -> Batch:
    torch.manual_seed(seed)
    return drawer.draw(random.Random(seed), news)


class Ahead(Generic[Batch]):
    """The batches of a run in order; more processes change nothing but how fresh the news is."""

    def __init__(self, drawer: Drawer[Batch], processes: int, seed: int) -> None:
        self.drawer, self.seed = drawer, seed
        #: As many wait as are being drawn.
        self.most = 2 * processes
        self.coming: deque[Future[Batch]] = deque()
        self.pool = (
            ProcessPoolExecutor(processes, get_context("spawn"), _begin, (drawer,)) if processes else None
        )

    def __enter__(self) -> "Ahead[Batch]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def next(self, news: Any = None) -> Batch:
        """The next batch; what `news` tells the drawer holds from the next one that is begun."""
        if self.pool is None:
            self.seed += 1
            return drawn(self.drawer, self.seed, news)
        while len(self.coming) < self.most:
            # A copy: it is sent by another thread, while the caller goes on to change it.
            self.seed += 1
            self.coming.append(self.pool.submit(_draw, self.seed, deepcopy(news)))
        return self.coming.popleft().result()
