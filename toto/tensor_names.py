"""Names of tensors in checkpoints that other programs wrote, without what wrappers add to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["mixed_prefixes", "without_wrappers"]

T = TypeVar("T")

# What the names begin with after `torch.compile(model)`, and under DistributedDataParallel and
# DeepSpeed. Both wrap whole models, so the prefix is on every name.
WRAPPERS = ("_orig_mod.", "module.")
# A block that is compiled alone has it in the middle of the names of its tensors.
COMPILED_PART = "._orig_mod."


def without_wrappers(tensors: Mapping[str, T], wanted: Collection[str] = ()) -> dict[str, T]:
    """Return the tensors under the names that they have in the plain module.

    A prefix of `torch.compile`, DistributedDataParallel or DeepSpeed is removed only if every name
    has it: otherwise it cannot be known which part of the file is meant (`mixed_prefixes` says so).

    Args:
        tensors: by their names in the file.
        wanted: the names of the module, which are never shortened.
    """
    found = dict(tensors)
    while found and not found.keys() & set(wanted):
        prefix = next((p for p in WRAPPERS if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    plain = {name.replace(COMPILED_PART, "."): tensor for name, tensor in found.items()}
    return plain if len(plain) == len(found) else found


def mixed_prefixes(names: Collection[str]) -> str:
    """Return what to change where only some names have a wrapper's prefix; empty if none has."""
    for prefix in WRAPPERS:
        wrapped = [name for name in names if name.startswith(prefix)]
        if wrapped:
            plain = wrapped[0].removeprefix(prefix)
            return (
                f"{len(wrapped)} of {len(names)} names begin with {prefix!r}, which torch.compile "
                "or DistributedDataParallel adds to all names of a model. Keep one copy of each "
                f"tensor, and save it without the prefix: {wrapped[0]!r} as {plain!r}"
            )
    return ""
