"""Clips with torchcodec where it is installed (`data.decoder: torchcodec`): the frames of PyAV.

Both call FFmpeg; colours may differ by a rounding where the two bring another build of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from toto.data.video import Frames, MemoryFile, Payload, UndecodableError, decode_clip
from toto.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["decode_clip_by_torchcodec", "require_torchcodec"]


def require_torchcodec() -> Callable[..., Any]:
    """Its VideoDecoder.

    Raises:
        UserError: torchcodec is not installed, or does not find the libraries that it needs.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    # Its libraries are loaded at the import, and what is missing raises one of these.
    except (ImportError, OSError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"data.decoder is torchcodec, which cannot be imported ({reason}). Install it (pip "
            "install torchcodec; beside a torch for CPUs: torchcodec==0.11.1) and FFmpeg's shared "
            "libraries, or set data.decoder to pyav"
        ) from error
    decoder: Callable[..., Any] = VideoDecoder
    return decoder


def decode_clip_by_torchcodec(payload: Payload, start: int, count: int, stride: int) -> Frames:
    """Frames start, start+stride, … of a video, as `decode_clip` returns them.

    Raises:
        UndecodableError: the video is broken or has no such frames.
        UserError: torchcodec cannot be imported.
    """
    video_decoder = require_torchcodec()
    try:
        video = video_decoder(
            MemoryFile(payload), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
        )
        # torchcodec turns such frames upright, and frames are taken as they are stored.
        if getattr(video.metadata, "rotation", None):
            return decode_clip(payload, start, count, stride)
        numbers = list(range(start, start + (count - 1) * stride + 1, stride))
        return np.asarray(video.get_frames_at(numbers).data.numpy(), dtype=np.uint8)
    # What it raises over broken files and frames that are not there.
    except (RuntimeError, ValueError, IndexError) as error:
        raise UndecodableError(f"torchcodec: {str(error).strip().splitlines()[0]}") from error
