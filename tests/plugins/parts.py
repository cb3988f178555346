"""A tokenizer, a backbone and a head as a user would write them, outside the package."""

import torch

from toto.api import (
    CAUSAL,
    Backbone,
    BackboneConfig,
    Head,
    HeadConfig,
    TokenGrid,
    Tokenizer,
    TokenizerConfig,
    register_backbone,
    register_head,
    register_tokenizer,
    resolve_layers,
)


class GreyTokenizer(Tokenizer):
    def encode(self, pixels_BCHW):
        grey_BHW = torch.nn.functional.avg_pool2d(pixels_BCHW.mean(1), self.config.patch)
        top = self.config.levels - 1
        return TokenGrid((grey_BHW * self.config.levels).long().clamp(0, top))

    def decode(self, grid):
        grey_BHW = (grid.codes_BHW + 0.5) / self.config.levels
        grey_BHW = grey_BHW.repeat_interleave(self.config.patch, 1)
        grey_BHW = grey_BHW.repeat_interleave(self.config.patch, 2)
        return grey_BHW[:, None].expand(-1, 3, -1, -1)


@register_tokenizer("grey")
class GreyConfig(TokenizerConfig):
    """Mean grey level of each patch."""

    levels: int = 16
    patch: int = 8

    @property
    def codebook_size(self):
        return self.levels

    def grid(self, resolution):
        if resolution % self.patch:
            raise ValueError(f"{resolution} px is no multiple of {self.patch}")
        return resolution // self.patch, resolution // self.patch

    def build(self):
        return GreyTokenizer(self)


class RunningMean(Backbone):
    def __init__(self, config):
        super().__init__(config)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Linear(config.width, config.width) for _ in range(config.num_layers)
        )

    def hidden(self, x_BLD, count):
        for block in self.blocks[:count]:
            steps_L1 = torch.arange(1, x_BLD.shape[1] + 1, device=x_BLD.device)[:, None]
            x_BLD = x_BLD + block(x_BLD.cumsum(1) / steps_L1)
        return x_BLD

    def forward(self, x_BLD, mask=CAUSAL):
        return self.hidden(x_BLD, len(self.blocks))

    def features(self, x_BLD, layers, mask=CAUSAL):
        resolved = resolve_layers(layers, len(self.blocks))
        return {layer: self.hidden(x_BLD, index) for layer, index in resolved.items()}

    def param_roles(self):
        return {
            name: "norm" if name.endswith("bias") else "hidden"
            for name, _ in self.named_parameters()
        }


@register_backbone("running_mean")
class RunningMeanConfig(BackboneConfig):
    """A linear map of the running mean."""

    def num_params(self):
        return self.num_layers * (self.width**2 + self.width)

    def forward_macs(self, length):
        return self.num_layers * length * self.width**2

    def build(self):
        return RunningMean(self)


class MaxPooling(Head):
    def forward(self, features_BLD, valid_BL=None):
        if valid_BL is not None:
            features_BLD = features_BLD.masked_fill(~valid_BL[:, :, None], float("-inf"))
        return features_BLD.amax(1)


@register_head("max")
class MaxConfig(HeadConfig):
    """The largest value of each channel."""

    def num_params(self, width):
        return 0

    def build(self, width):
        return MaxPooling()
