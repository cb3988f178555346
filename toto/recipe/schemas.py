"""The recipes: one schema a verb; SCHEMAS are those that train a model or a tokenizer.

Every field is described where it is declared.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from toto.backbones.config import BACKBONES, BackboneConfig, MaskConfig
from toto.data.config import ClipConfig, DataConfig
from toto.registry import Config
from toto.sequence import SequenceLayout
from toto.tasks.config import TASKS, ClassifyConfig, DvaeTaskConfig, NextTokenConfig, TaskConfig
from toto.tasks.probe_settings import ProbeSettings
from toto.tokenizers.config import TOKENIZERS, TokenizerConfig
from toto.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig

__all__ = ["SCHEMAS", "ProbeRecipe", "Recipe", "TokenizerRecipe", "TrainRecipe"]


class Recipe(Config):
    """What every recipe that trains something has."""

    verb: str = Field(description="what the recipe is for")
    name: str = Field(description="of the run; the file's name unless it is given")
    title: str = Field("", description="one line for `toto list recipes`")
    output: str = Field(description="the run directory; runs/NAME unless it is given")
    imports: tuple[str, ...] = Field((), description="modules or .py files that register plug-ins")
    seed: NonNegativeInt = Field(
        0, lt=2**63, description="of the initial weights, the order of the data and augmentation"
    )
    tokenizer: Annotated[TokenizerConfig, TOKENIZERS] = Field(
        description="what turns frames into tokens: a name, or a mapping with `name`"
    )
    task: Annotated[TaskConfig, TASKS] = Field(description="what is learned")
    clip: ClipConfig = Field(ClipConfig(), description="how a sequence is cut out of a source")
    data: DataConfig = Field(description="the mixture and how it is read")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="AdamW")
    schedule: ScheduleConfig = Field(
        ScheduleConfig(), description="how the learning rate changes over the run"
    )
    training: TrainingConfig = Field(description="length, batch and machine of the run")

    @property
    def layout(self) -> SequenceLayout:
        """Frames and token grid of one sequence."""
        return SequenceLayout(self.clip.frames, *self.tokenizer.grid(self.clip.resolution))

    @property
    def batch_sequences(self) -> int:
        """B, sequences an optimizer step."""
        return self.training.batch_tokens // self.layout.num_visual


class TrainRecipe(Recipe):
    """`toto train`: a backbone on the tokens of pictures and videos."""

    verb: Literal["train"] = Field("train", description="`toto train` takes it")
    backbone: Annotated[BackboneConfig, BACKBONES] = Field(
        description="the network between embedding and readout: a name, or a mapping with `name`"
    )
    target_tokenizer: Annotated[TokenizerConfig | None, TOKENIZERS] = Field(
        None, description="whose codes patch inputs predict; none: the next token of `tokenizer`"
    )
    mask: MaskConfig = Field(
        MaskConfig(), description="the attention mask: which positions each position reads"
    )
    task: Annotated[TaskConfig, TASKS] = Field(NextTokenConfig(), description="what is learned")
    init_from: str | None = Field(
        None,
        description="run or checkpoint whose weights the training starts from, or hf:FOLDER of "
        "`toto export hf`",
    )

    @property
    def context_frames(self) -> int | None:
        """The most frames that a pass of the model reads; None where it carries a state on."""
        return None if self.backbone.unbounded_context else self.clip.frames

    @property
    def target(self) -> TokenizerConfig:
        """The tokenizer of what is predicted."""
        return self.target_tokenizer or self.tokenizer

    @property
    def loss_unit(self) -> str:
        """What the loss is measured in: cross-entropy of classes or codes, or patches' error."""
        if isinstance(self.task, ClassifyConfig):
            return "nats"
        return "nats/token" if self.target.output == "codes" else "squared error"

    @property
    def target_resolution(self) -> int:
        """Side in pixels of the crop as `target` takes it: there its grid is that of the inputs.

        Raises:
            ValueError: it has that grid at no resolution up to the clip's.
        """
        if self.target_tokenizer is None:
            return self.clip.resolution
        grid = self.tokenizer.grid(self.clip.resolution)
        return self.target_tokenizer.resolution_of(grid, self.clip.resolution)


class TokenizerRecipe(Recipe):
    """`toto tokenizer train`: a tokenizer on pictures and frames."""

    verb: Literal["tokenizer"] = Field("tokenizer", description="`toto tokenizer train` takes it")
    task: Annotated[TaskConfig, TASKS] = Field(
        DvaeTaskConfig(), description="the losses that the tokenizer is trained with"
    )


class ProbeRecipe(Config):
    """`toto probe RUN --recipe`: a protocol, which holds for any run that was trained."""

    verb: Literal["probe"] = Field("probe", description="`toto probe RUN --recipe` takes it")
    name: str = Field(description="of the protocol; the file's name unless it is given")
    title: str = Field("", description="one line for `toto list recipes`")
    imports: tuple[str, ...] = Field((), description="modules or .py files that register plug-ins")
    data: DataConfig | None = Field(None, description="labelled; none: the run's own")
    probes: ProbeSettings = Field(
        ProbeSettings(), description="which probes there are, and how they are trained"
    )


SCHEMAS: dict[str, type[Recipe]] = {"train": TrainRecipe, "tokenizer": TokenizerRecipe}
