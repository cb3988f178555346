"""Verification of the shards of a run, while it trains.

Reading every shard before the first step would delay a run on a large dataset by hours. So the
first part is verified before the first step, which is all of a small dataset, and the rest in the
background, each rank its share.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.data.index import Dataset

__all__ = ["ShardVerification"]

FOREGROUND_BYTES = 2**28
"""Half a second of hashing."""
LOWEST_PRIORITY = 19


class ShardVerification:
    """Compares the shards of datasets with their checksums, in a thread of this process.

    hashlib computes without Python's lock, and the thread has the lowest priority: it takes what
    the training leaves. A context manager: leaving it ends the thread.

    Args:
        datasets: remote ones verify what they fetch, and are left out.
        rank: takes the shards rank, rank + world, … of all.
        world: number of ranks.

    Attributes:
        total: shards of this rank.
        done: those that are verified by now.
        fault: what is wrong with the first bad one, or None.
    """

    def __init__(self, datasets: Sequence[Dataset], *, rank: int = 0, world: int = 1) -> None:
        shards = [(dataset, shard) for dataset in datasets for shard in dataset.unverified_shards()]
        self._shards = shards[rank::world]
        self.total = len(self._shards)
        self.done = 0
        self.fault: str | None = None
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._verify, name="shard verification", daemon=True)

    def __enter__(self) -> ShardVerification:
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _verify(self) -> None:
        hashed = 0
        try:
            for dataset, shard in self._shards:
                if hashed >= FOREGROUND_BYTES and not self._begun.is_set():
                    self._begun.set()
                    # Linux has a priority for each thread; elsewhere it stays as it is.
                    with suppress(OSError, AttributeError):
                        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
                fault = dataset.shard_fault(shard, stop=self._ended.is_set)
                if self._ended.is_set():
                    return
                if fault is not None:
                    self.fault = fault
                    return
                hashed += dataset.manifest.shards[shard].bytes
                self.done += 1
        except BaseException as error:
            self.fault = f"the shards cannot be verified: {type(error).__name__}: {error}"
            raise
        finally:
            self._begun.set()
