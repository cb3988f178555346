"""Which ranks are gone, asked once a collective has failed: they do not answer."""

from __future__ import annotations

import socket
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["RollCall"]

# The others find out a moment later than this one, or have been waiting a moment less.
ANSWER_SECONDS = 5.0
POLL_SECONDS = 0.05


class RollCall:
    """What the ranks leave in the store that they met at. All of them make one.

    Args:
        store: of the process group; on torch's own terms it is served by rank 0 or by torchrun.
        rank: of this process.
        world: number of ranks.
    """

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store = PrefixStore("toto/roll_call", store)
        self._rank = rank
        self._world = world
        self._store.set(f"host/{rank}", socket.gethostname())

    def missing(self) -> list[str]:
        """The ranks, each with its machine, that do not come here within a few seconds.

        Empty where all do, and where the store itself is gone: nothing is known then.
        """
        found: list[str] = []
        # In a thread: of a store whose process is stopped, no call returns.
        asking = threading.Thread(target=lambda: found.extend(self._asked()), daemon=True)
        asking.start()
        asking.join(2 * ANSWER_SECONDS)
        if asking.is_alive():
            return ["rank 0, or the launcher, at which the ranks met"]
        return found

    def _asked(self) -> list[str]:
        try:
            self._store.set_timeout(timedelta(seconds=ANSWER_SECONDS))
            self._store.set(f"here/{self._rank}", "")
            waited_for = list(range(self._world))
            until = time.monotonic() + ANSWER_SECONDS
            while waited_for and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
                waited_for = [r for r in waited_for if not self._store.check([f"here/{r}"])]
            return [f"rank {r} on {self._store.get(f'host/{r}').decode()}" for r in waited_for]
        except dist.DistError:
            return []
