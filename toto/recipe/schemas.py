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

    verb: str
    name: str = Field(description="of the run; the file's name unless it is given")
    title: str = Field("", description="one line for `toto list recipes`")
    output: str = Field(description="the run directory; runs/NAME unless it is given")
    imports: tuple[str, ...] = Field((), description="modules or .py files that register plug-ins")
    seed: NonNegativeInt = Field(0, lt=2**63)
    tokenizer: Annotated[TokenizerConfig, TOKENIZERS]
    task: Annotated[TaskConfig, TASKS]
    clip: ClipConfig = ClipConfig()
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig

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

    verb: Literal["train"] = "train"
    backbone: Annotated[BackboneConfig, BACKBONES]
    target_tokenizer: Annotated[TokenizerConfig | None, TOKENIZERS] = Field(
        None, description="whose codes patch inputs predict; none: the next token of `tokenizer`"
    )
    mask: MaskConfig = Field(MaskConfig(), description="who reads whom in a sequence")
    task: Annotated[TaskConfig, TASKS] = NextTokenConfig()
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

    verb: Literal["tokenizer"] = "tokenizer"
    task: Annotated[TaskConfig, TASKS] = DvaeTaskConfig()


class ProbeRecipe(Config):
    """`toto probe RUN --recipe`: a protocol, which holds for any run that was trained."""

    verb: Literal["probe"] = "probe"
    name: str = Field(description="of the protocol; the file's name unless it is given")
    title: str = Field("", description="one line for `toto list recipes`")
    imports: tuple[str, ...] = Field((), description="modules or .py files that register plug-ins")
    data: DataConfig | None = Field(None, description="labelled; none: the run's own")
    probes: ProbeSettings = ProbeSettings()


SCHEMAS: dict[str, type[Recipe]] = {"train": TrainRecipe, "tokenizer": TokenizerRecipe}
