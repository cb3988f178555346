import torch
from pydantic import Field
from torch.nn.functional import avg_pool2d, interpolate

from toto.api import TokenGrid, Tokenizer, TokenizerConfig, register_tokenizer, square_grid


class MosaicTokenizer(Tokenizer):
    def encode(self, pixels_BCHW):
        self.check_pixels(pixels_BCHW)
        colours_BCHW = avg_pool2d(pixels_BCHW, self.config.block)
        top = self.config.levels - 1
        red, green, blue = (colours_BCHW * top).round().long().unbind(1)
        return TokenGrid((red * self.config.levels + green) * self.config.levels + blue)

    def decode(self, grid):
        levels = self.config.levels
        colours = torch.unravel_index(grid.codes_BHW, (levels, levels, levels))
        return interpolate(torch.stack(colours, 1) / (levels - 1), scale_factor=self.config.block)


@register_tokenizer("mosaic")
class MosaicConfig(TokenizerConfig):
    """The mean colour of each block of pixels."""

    block: int = Field(8, ge=1, description="side in pixels")
    levels: int = Field(8, ge=2, description="of red, of green and of blue")

    @property
    def codebook_size(self):
        return self.levels**3

    def grid(self, resolution):
        return square_grid(resolution, self.block)

    def build(self):
        return MosaicTokenizer(self)
