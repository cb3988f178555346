"""Files of `torch.save`, read without running anything that they name.

torch's own restricted unpickler makes tensors and plain containers. The few other classes of the
published files are given to it as inert stand-ins; a file that names anything else is refused, and
the names are said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from toto.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Inert", "read_pickled"]

# What the published files name beside tensors: the dVAE's are whole modules of the package dall_e;
# VQGAN's are checkpoints of Lightning 1.0, which hold the state of callbacks by their class.
INERT = (
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
ZIP_HEAD = b"PK\x03\x04"


class Inert:
    """Stands in for an object of a named class: keeps its pickled state and can do nothing.

    Attributes:
        stands_for: the class's full name.
        state: what the pickle gives the object, or None.
    """

    stands_for: ClassVar[str] = ""
    state: Any = None

    def __init__(self, *arguments: object) -> None:
        """Whatever the pickle calls the class with is dropped."""

    def __setstate__(self, state: object) -> None:
        self.state = state


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (type(name, (Inert,), {"stands_for": name}), name) for name in INERT
]


def read_pickled(path: Path) -> object:
    """What `torch.save` wrote, with `Inert` objects for those of the classes in INERT.

    Tensors are on the CPU and mapped to the file, which must stay while they are used.

    Raises:
        CheckpointError: no file, another format, damaged, or it names something that is not known
            to be harmless. Nothing of it was run.
    """
    _check_format(path)
    with safe_globals(_STAND_INS):
        try:
            unknown = sorted(get_unsafe_globals_in_checkpoint(path))
            if not unknown:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        # Damage shows in many ways: no directory of the zip, an end too early, a key without value.
        except Exception as error:
            raise CheckpointError(
                f"{path} is damaged, or not as torch.save writes it ({_reason(error)}). Nothing of "
                "it was run. Fetch it again"
            ) from error
    raise CheckpointError(
        f"{path} names what toto does not know to be harmless: {', '.join(unknown)}. Nothing of it "
        "was run. Fetch the published file; of a checkpoint of your own save the tensors alone: "
        'torch.save({"state_dict": model.state_dict()}, "weights.ckpt")'
    )


def _check_format(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(len(ZIP_HEAD))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}. Correct the path") from error
    if head == ZIP_HEAD:
        return
    if head[:1] == b"\x80":
        raise CheckpointError(
            f"{path} is a bare pickle, as torch saved before 1.6, and toto reads the later format. "
            "Nothing of it was run. If you trust it, load and save it with a later torch"
        )
    raise CheckpointError(f"{path} is no file of torch.save. Look at what it is, or fetch it again")


def _reason(error: Exception) -> str:
    """What torch's reader found, without the advice that it gives."""
    said = str(error)
    found = said.rpartition("WeightsUnpickler error:")[2].strip()
    return found.splitlines()[0].split(". ")[0] if found else type(error).__name__
