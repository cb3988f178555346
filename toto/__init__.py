"""toto: autoregressive pre-training on images and video, by next-token prediction."""

__version__ = "0.1.0.dev0"
