"""Pooling heads: features of a sequence to one vector per sample. `config` is torch-free."""
