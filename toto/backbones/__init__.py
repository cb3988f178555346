"""Backbones: causal sequence models over embedded tokens. `config` is torch-free."""
