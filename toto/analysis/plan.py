"""What a training comes to before it runs: compute, time, memory settings, disk. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from toto.analysis.devices import Device, find_device
from toto.analysis.gpu_memory import Moment, Setting, Stage, highest_moment
from toto.analysis.memory_terms import Frozen, Load
from toto.backbones.memory import Pass
from toto.data.ranks import micro_batches
from toto.errors import UserError
from toto.model_size import ModelSize
from toto.recipe.derived import sequence_macs

if TYPE_CHECKING:
    from toto.recipe.schemas import TrainRecipe
    from toto.training.config import TrainingConfig

__all__ = ["Cluster", "Compute", "Plan", "SettingPlan", "parse_gpus", "table4_macs"]

# Of a device's memory: the rest is for the driver, the libraries and what fragments.
USABLE = 0.9
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
MACS_TO_FLOPS = 2
PAPER_IMAGE = 256
"""Tokens of the image in which the paper counts compute: 16 × 16."""


@dataclass(frozen=True)
class Cluster:
    """Where a plan is for.

    Attributes:
        nodes: machines.
        per_node: GPUs of each.
        device: what they are.
        utilisation: of the device's peak that the products of a step reach, 0 to 1.
    """

    nodes: int
    per_node: int
    device: Device
    utilisation: float

    @classmethod
    def of(cls, gpus: str, device: str, utilisation: float) -> Cluster:
        """From a command line's `8x8`, `h200` and `0.4`.

        Raises:
            UserError: no such device, or no such number of GPUs.
        """
        nodes, per_node = parse_gpus(gpus)
        return cls(nodes, per_node, find_device(device), utilisation)

    @property
    def gpus(self) -> int:
        """R, all of them."""
        return self.nodes * self.per_node


def parse_gpus(text: str) -> tuple[int, int]:
    """`8x4` → 8 nodes of 4 GPUs; `4` → one node.

    Raises:
        UserError: neither.
    """
    match = re.fullmatch(r"(?:([1-9]\d{0,5})x)?([1-9]\d{0,5})", text)
    if match is None:
        raise UserError(
            f"--gpus {text}: write the GPUs of one node, such as 8, or nodes x GPUs of each, "
            "such as 4x8"
        )
    return int(match[1] or 1), int(match[2])


def table4_macs(params: int, tokens: int) -> float:
    """Compute as the paper's Table 4 has it: parameters times images of 16 × 16 tokens.

    It leaves out that every token takes them, attention, and the backward pass (P§4.2).
    """
    return params * tokens / PAPER_IMAGE


@dataclass(frozen=True)
class Compute:
    """Multiply-accumulates of a run.

    Attributes:
        forward: of a sequence.
        recomputed: of a sequence, what recomputation adds.
        sequences: of the run.
        table4: of the run, by `table4_macs`.
        figure9: of the run in the unit of the paper's Figure 9: a million times parameters times
            sequences (P§9).
    """

    forward: int
    recomputed: int
    sequences: int
    table4: float
    figure9: float

    @property
    def training(self) -> int:
        """Of a sequence: the backward pass takes twice the forward one."""
        return 3 * self.forward


@dataclass(frozen=True)
class SettingPlan:
    """One way to run the training.

    Attributes:
        setting: of engine and recomputation.
        moment: the highest of a step; None where the backbone does not say what it keeps.
        fits: into `USABLE` of the device; None where its memory is not stated.
        step_seconds: at the cluster's utilisation; None where the device's rate is not stated.
    """

    setting: Setting
    moment: Moment | None
    fits: bool | None
    step_seconds: float | None


@dataclass(frozen=True)
class Plan:
    """The numbers of a recipe on a cluster.

    Attributes:
        size: of the model.
        compute: of the run.
        sequences_a_step: of all GPUs.
        precision: of the run on that device.
        share: sequences of a step on the GPU that has most.
        micro_batch: of those at once.
        micro_batches: of a step.
        settings: each way to run it, the fastest first.
        chosen: that of the recipe.
        checkpoint_bytes: of one: weights and two moments in fp32.
        kept_checkpoints: at the end: the newest, and those that are kept for good.
        disk_bytes: of those that are kept, and of the next one while it is written.
    """

    size: ModelSize
    compute: Compute
    sequences_a_step: int
    precision: Literal["fp32", "bf16"]
    share: int
    micro_batch: int
    micro_batches: int
    settings: tuple[SettingPlan, ...]
    chosen: Setting
    checkpoint_bytes: int
    kept_checkpoints: int
    disk_bytes: int

    @classmethod
    def of(cls, recipe: TrainRecipe, cluster: Cluster) -> Plan:
        """Work it out; nothing is built and no data are read."""
        training = recipe.training
        share = -(-recipe.batch_sequences // cluster.gpus)
        micro_batch = min(training.micro_batch, share)
        size = ModelSize.of(recipe.tokenizer, recipe.backbone, recipe.target_tokenizer)
        compute = _compute(recipe, size)
        precision = _precision(recipe, cluster.device)
        checkpoint = 12 * size.total
        kept = _kept_checkpoints(training)
        plan = cls(
            size=size,
            compute=compute,
            sequences_a_step=recipe.batch_sequences,
            precision=precision,
            share=share,
            micro_batch=micro_batch,
            micro_batches=micro_batches(
                recipe.batch_sequences, training.micro_batch, world=cluster.gpus
            ),
            settings=(),
            chosen=_chosen(recipe, cluster),
            checkpoint_bytes=checkpoint,
            kept_checkpoints=kept,
            disk_bytes=(kept + 1) * checkpoint,
        )
        return replace(plan, settings=plan._settings(recipe, cluster))

    def _settings(self, recipe: TrainRecipe, cluster: Cluster) -> tuple[SettingPlan, ...]:
        load = self._load(recipe, cluster)
        stages = (None, *STAGES) if cluster.gpus == 1 else STAGES
        return tuple(
            self._setting(Setting(stage, recompute), load, cluster)
            for recompute in (False, True)
            for stage in stages
        )

    def _setting(self, setting: Setting, load: Load | None, cluster: Cluster) -> SettingPlan:
        moment = None if load is None else highest_moment(load, setting)
        memory = cluster.device.memory_gib
        fits = None
        if moment is not None and memory is not None:
            fits = moment.bytes <= USABLE * memory * 2**30
        rate = cluster.device.flops(self.precision)
        macs = self.compute.training + (self.compute.recomputed if setting.recompute else 0)
        flops = MACS_TO_FLOPS * macs * self.share
        seconds = None if rate is None else flops / (rate * cluster.utilisation)
        return SettingPlan(setting, moment, fits, seconds)

    def _load(self, recipe: TrainRecipe, cluster: Cluster) -> Load | None:
        one = Pass(
            batch=self.micro_batch,
            length=recipe.layout.length,
            precision=self.precision,
            device=cluster.device.kind,
            compiled=recipe.training.compile,
        )
        block = recipe.backbone.block_memory(one)
        if block is None:
            return None
        return Load(
            size=self.size,
            backbone=recipe.backbone,
            block=block,
            one=one,
            targets=recipe.layout.num_targets(recipe.target.output),
            micro_batches=self.micro_batches,
            gpus=cluster.gpus,
            patch_dim=recipe.tokenizer.patch_dim,
            target_dim=recipe.target.patch_dim,
            frozen=_frozen(recipe, cluster.device, self.micro_batch),
            deepspeed=recipe.training.deepspeed,
        )


def _chosen(recipe: TrainRecipe, cluster: Cluster) -> Setting:
    """As `toto train` chooses: one process is the local engine's, unless the recipe says else."""
    training = recipe.training
    local = cluster.gpus == 1 and training.engine != "deepspeed"
    return Setting(None if local else training.deepspeed.zero_stage, training.recompute)


def _compute(recipe: TrainRecipe, size: ModelSize) -> Compute:
    sequences = recipe.training.steps * recipe.batch_sequences
    return Compute(
        forward=sequence_macs(recipe, size),
        recomputed=recipe.backbone.forward_macs(recipe.layout.length),
        sequences=sequences,
        table4=table4_macs(size.total, sequences * recipe.layout.num_visual),
        figure9=size.total * sequences / 1e6,
    )


def _kept_checkpoints(training: TrainingConfig) -> int:
    """How many the last save leaves: one is made every `save_every` steps and at the end."""
    saved = -(-training.steps // training.save_every)
    newest = min(training.keep, saved)
    if training.keep_every is None:
        return newest
    # The rules of a recipe have keep_every a multiple of save_every.
    before = (training.steps - 1) // training.save_every - (newest - 1)
    return newest + before * training.save_every // training.keep_every


def _precision(recipe: TrainRecipe, device: Device) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 on every GPU of the table; of CPUs too few have it to count on it."""
    if recipe.training.precision != "auto":
        return recipe.training.precision
    return "bf16" if device.kind == "cuda" else "fp32"


def _frozen(recipe: TrainRecipe, device: Device, micro_batch: int) -> Frozen:
    """On a GPU a micro-batch's pictures are encoded together, on a CPU a few at a time."""
    sides = [(recipe.tokenizer, recipe.clip.resolution)]
    if recipe.target_tokenizer is not None:
        sides.append((recipe.target_tokenizer, recipe.target_resolution))
    pictures = micro_batch * recipe.clip.frames if device.kind == "cuda" else 1
    encoded = sides if recipe.data.tokens == "in_run" else []
    return Frozen(
        params=sum(tokenizer.num_params() for tokenizer, _ in sides),
        encode_bytes=pictures
        * max((tokenizer.encode_bytes(side) for tokenizer, side in encoded), default=0),
    )
