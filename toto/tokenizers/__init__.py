"""Tokenizers: pictures to token grids and back. `config` is torch-free; the rest is torch."""
