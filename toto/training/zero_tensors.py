"""Whole fp32 tensors of a model that DeepSpeed has parted among the ranks, read and written.

Three ways to hold the same thing, by stage. Every method is to be called by all ranks, with the
same parameters in the same order: whole tensors come together over the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor

from toto.training.optim import MOMENTS, laid_out_as

if TYPE_CHECKING:
    from torch.nn import Parameter

__all__ = ["ZeroTensors", "zero_tensors"]


def zero_tensors(stage: int, wrapped: Any, adamw: torch.optim.AdamW) -> ZeroTensors:
    """How an engine of DeepSpeed's holds its tensors.

    Args:
        stage: of ZeRO.
        wrapped: DeepSpeed's optimizer around `adamw`.
        adamw: torch's.
    """
    if stage == 0:
        return _Whole(adamw)
    return _PartedWeights(wrapped, adamw) if stage == 3 else _PartedState(wrapped, adamw)


class ZeroTensors(ABC):
    """Weights, and AdamW's state as `{slot: tensor}` with the slots of `MOMENTS` and "step"."""

    def __init__(self, adamw: torch.optim.AdamW) -> None:
        self._adamw = adamw

    @abstractmethod
    def shape(self, parameter: Parameter) -> torch.Size:
        """Of the whole parameter."""

    @abstractmethod
    def weight(self, parameter: Parameter) -> Tensor:
        """The whole fp32 weight; not to be changed."""

    @abstractmethod
    def slots(self, parameter: Parameter) -> dict[str, Tensor]:
        """The optimizer's state of a parameter, whole; none where it has had no gradient yet."""

    @abstractmethod
    def set_weight(self, parameter: Parameter, weight: Tensor) -> None:
        """Replace the weight, in whatever forms it stands here."""

    @abstractmethod
    def begin_slots(self, step: float) -> None:
        """Forget the optimizer's state; zeros after so many steps take its place."""

    @abstractmethod
    def set_slots(self, parameter: Parameter, slots: dict[str, Tensor]) -> None:
        """Replace the state of a parameter, after `begin_slots`."""


class _Whole(ZeroTensors):
    """Stage 0: everything stands on every rank."""

    def shape(self, parameter: Parameter) -> torch.Size:
        return parameter.shape

    def weight(self, parameter: Parameter) -> Tensor:
        return parameter.detach()

    def slots(self, parameter: Parameter) -> dict[str, Tensor]:
        return dict(self._adamw.state.get(parameter, {}))

    def set_weight(self, parameter: Parameter, weight: Tensor) -> None:
        with torch.no_grad():
            parameter.copy_(weight)

    def begin_slots(self, step: float) -> None:
        self._adamw.state.clear()

    def set_slots(self, parameter: Parameter, slots: dict[str, Tensor]) -> None:
        self._adamw.state[parameter] = {
            slot: laid_out_as(parameter, tensor).to(parameter.device, copy=True)
            for slot, tensor in slots.items()
        }


class _Parted(ZeroTensors):
    """Stages 1 to 3: AdamW works on flat fp32 tensors, of this rank's part of many parameters."""

    def __init__(self, wrapped: Any, adamw: torch.optim.AdamW) -> None:
        super().__init__(adamw)
        self._wrapped = wrapped

    @abstractmethod
    def _flats(self) -> list[Tensor]:
        """What AdamW works on."""

    def weight(self, parameter: Parameter) -> Tensor:
        weight: Tensor = safe_get_full_fp32_param(parameter)
        return weight

    def slots(self, parameter: Parameter) -> dict[str, Tensor]:
        moments = {slot: safe_get_full_optimizer_state(parameter, slot) for slot in MOMENTS}
        step = self._adamw.state[self._flats()[0]]["step"]
        return moments | {"step": step.clone()}  # a file holds no tensor twice

    def begin_slots(self, step: float) -> None:
        for flat in self._flats():
            # AdamW's fused kernel wants its count beside the tensor.
            count = torch.tensor(step, dtype=torch.float32, device=flat.device)
            moments = {slot: torch.zeros_like(flat) for slot in MOMENTS}
            self._adamw.state[flat] = moments | {"step": count}


class _PartedState(_Parted):
    """Stages 1 and 2: each rank has the whole weights, and its part of the rest."""

    def _flats(self) -> list[Tensor]:
        return [flat for group in self._adamw.param_groups for flat in group["params"]]

    def shape(self, parameter: Parameter) -> torch.Size:
        return parameter.shape

    def set_weight(self, parameter: Parameter, weight: Tensor) -> None:
        with torch.no_grad():
            parameter.copy_(weight)
        safe_set_full_fp32_param(parameter, weight.to(parameter.device))

    def begin_slots(self, step: float) -> None:
        super().begin_slots(step)
        # DeepSpeed looks for it once, when the first group of parameters has had its first step
        # and the others have no state yet.
        self._wrapped._hp_optimizer_states_linked = False
        self._wrapped._lazy_init_hp_params_optimizer_state()

    def set_slots(self, parameter: Parameter, slots: dict[str, Tensor]) -> None:
        for slot in MOMENTS:
            safe_set_full_optimizer_state(parameter, slots[slot].to(parameter.device), slot)


class _PartedWeights(_Parted):
    """Stage 3: each rank has its part of everything, the last one filled up with zeros."""

    def _flats(self) -> list[Tensor]:
        flats: list[Tensor] = self._wrapped.fp32_partitioned_groups_flat
        return flats

    def shape(self, parameter: Parameter) -> torch.Size:
        return torch.Size(parameter.ds_shape)  # type: ignore[attr-defined]

    def set_weight(self, parameter: Parameter, weight: Tensor) -> None:
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            parameter.copy_(weight)
        safe_set_local_fp32_param(parameter, self._part(parameter, weight))

    def set_slots(self, parameter: Parameter, slots: dict[str, Tensor]) -> None:
        for slot in MOMENTS:
            safe_set_local_optimizer_state(parameter, self._part(parameter, slots[slot]), slot)

    def _part(self, parameter: Parameter, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor, as DeepSpeed cuts it."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        start = size * torch.distributed.get_rank()
        part = whole.flatten()[start : start + size].to(parameter.device)
        return torch.nn.functional.pad(part, (0, size - len(part)))
