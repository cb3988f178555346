"""Self-contained HTML pages: styles inline, pictures as data URIs, nothing asked for outside."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from toto.errors import DataError
from toto.files import disk_errors, write_atomic
from toto.terminal import plain

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["data_uri", "embedded", "png_uri", "write_page"]

KINDS = {".gif": "image/gif", ".png": "image/png"}


def write_page(out: Path, template: str, values: dict[str, Any]) -> None:
    """Render a template of this folder to `out`; an older page is replaced by a complete one.

    Args:
        out: the .html file.
        template: name of the file; text in it is escaped, filter `svg` takes a figure as it is.
        values: what the template names.

    Raises:
        RunError: the disk is full or refuses.
    """
    environment = Environment(
        loader=PackageLoader("toto", "analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["svg"] = lambda panel: Markup(plain(panel.svg))  # escaped by matplotlib
    with disk_errors(out):
        write_atomic(out, environment.get_template(template).render(values))


def _shown(value: object) -> object:
    """Return a value of the page with control characters as escapes; finished markup stays."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def png_uri(image_HWC: NDArray[np.uint8]) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, format="PNG", optimize=True)
    return data_uri(file.getvalue(), ".png")


def embedded(path: Path, folder: Path) -> str:
    """Return an image file of `folder` as a data URI.

    A record can name any path, and a link can lead anywhere: a page that is shared must not carry
    a file that is not of the run.

    Raises:
        DataError: the file is outside the folder, or is no image of a known kind.
    """
    if not path.resolve().is_relative_to(folder.resolve()) or path.suffix not in KINDS:
        raise DataError(
            f"{path} is no {' or '.join(KINDS)} file of {folder}, and is not put into the page. "
            "Remove it, or the record that names it"
        )
    return data_uri(path.read_bytes(), path.suffix)


def data_uri(data: bytes, suffix: str) -> str:
    """The content of a file as a data URI.

    Args:
        data: encoded.
        suffix: .gif or .png.
    """
    return f"data:{KINDS[suffix]};base64,{base64.b64encode(data).decode('ascii')}"
