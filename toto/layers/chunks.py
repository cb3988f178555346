"""Into what parts the selective scan cuts a sequence. No torch here, so that plans can count."""

from __future__ import annotations

__all__ = ["CHUNK_ELEMENTS", "chunk_positions"]

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**27}
"""Values of a chunk's `CBSE` tensors. On a CPU they stay in the second cache from one operation to
the next; on CUDA there is enough work for the device, at half a GiB a tensor."""


def chunk_positions(state_values: int, states: int, device: str) -> int:
    """Positions of a chunk: a multiple of S, so that the states that are kept take no more than u.

    Args:
        state_values: B·S·E, of one position.
        states: S.
        device: a key of `CHUNK_ELEMENTS`.
    """
    return max(CHUNK_ELEMENTS[device] // state_values // states, 1) * states
