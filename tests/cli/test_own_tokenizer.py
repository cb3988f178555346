"""A tokenizer outside the repository: the package of examples/, and what newcomers get wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, toto, toto_process, write_recipe
from tiny_runs import tiny_recipe

PACKAGE = Path(__file__).parents[2] / "examples/own_tokenizer"
SOURCE = (PACKAGE / "mosaic_tokenizer.py").read_text()
PROPERTY = "    @property\n    def codebook_size(self):\n        return self.levels**3\n"
ENCODED = "TokenGrid((red * self.config.levels + green) * self.config.levels + blue)"
CLASS = "class MosaicTokenizer(Tokenizer):\n"


def constructor(line: str) -> str:
    head = "    def __init__(self, config):\n        super().__init__(config)\n"
    return f"{CLASS}{head}        {line}\n"


MISTAKES = {
    "the decorator is forgotten": (
        '@register_tokenizer("mosaic")\n', "",
        "unknown tokenizer 'mosaic'. There are dvae, patch, vqgan. If it is yours, decorate its",
    ),
    "the tokenizer is decorated instead of its config": (
        SOURCE[SOURCE.index("@register") :], SOURCE[SOURCE.index("@register") :].replace(
            "class MosaicConfig(TokenizerConfig)", "class MosaicConfig"
        ),
        "tokenizer 'mosaic': MosaicConfig is not the Config of a tokenizer",
    ),
    "methods are missing": (
        SOURCE[SOURCE.index("    def grid") :], "",
        "tokenizer 'mosaic': MosaicConfig lacks build, grid",
    ),
    "the name is taken": ('("mosaic")', '("dvae")', "tokenizer 'dvae' is already registered by"),
    "codebook_size is a method": (
        PROPERTY, PROPERTY.replace("@property", ""), "codebook_size is a method instead of an int",
    ),
    "codebook_size is no int": (
        "self.levels**3", "self.levels**3.0", "codebook_size is a float instead of an int",
    ),
    "the grid is no pair": (
        "square_grid(resolution, self.block)", "8",
        "grid(64) returned 8 instead of two ints (H, W)",
    ),
    "the grid is another one": (
        "square_grid(resolution, self.block)", "(4, 4)",
        "tokens of shape [4, 8, 8], and grid(64) makes it [4, 4, 4]",
    ),
    "build gives nothing": (
        "return MosaicTokenizer(self)", "MosaicTokenizer(self)",
        "build() returned None instead of a Tokenizer",
    ),
    "codes are bare": (
        ENCODED, ENCODED.removeprefix("TokenGrid"),
        "encode returned a Tensor instead of a TokenGrid",
    ),
    "codes are no int64": (".long()", ".int()", "codes are torch.int32 instead of torch.int64"),
    "codes are out of range": (
        "top = self.config.levels - 1", "top = self.config.levels",
        "codes are 0..584, and codebook_size allows 0..511",
    ),
    "codes depend on the batch": (
        "colours_BCHW = avg", "colours_BCHW = 1 / len(pixels_BCHW) * avg",
        "of an image's tokens differ when its batch is another",
    ),
    "nothing is decoded": (
        "return interpolate", "interpolate", "decode returned None instead of a Tensor",
    ),
    "pixels are bytes": (
        "/ (levels - 1),", "* 255 / (levels - 1),",
        "decoded pixels are 0 to 255, and [0, 1] is allowed",
    ),
    "pixels are float64": (
        "torch.stack(colours, 1)", "torch.stack(colours, 1).double()",
        "decoded pixels are torch.float64 instead of torch.float32",
    ),
    "a tensor is a plain attribute": (
        CLASS, constructor("self.table = torch.zeros(3)"),
        "neither parameter nor buffer, so that .to(device) and fingerprint() do not see it: table. "
        "Use register_buffer",
    ),
    "weights are random": (
        CLASS, constructor("self.register_buffer('table', torch.rand(3))"),
        "the config was built twice, with the fingerprints",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES.values(), ids=MISTAKES)
def test_check_names_the_mistake(tmp_path, right, wrong, message):
    assert right in SOURCE
    (tmp_path / "mine.py").write_text(SOURCE.replace(right, wrong))
    done = toto("check", "tokenizer", "mosaic", "--import", "mine.py", cwd=tmp_path, code=2)
    assert message in " ".join(done.stderr.split())


def test_an_import_that_is_forgotten_is_named(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets) | {"tokenizer": "mosaic"})
    done = toto("show", recipe, cwd=tmp_path, code=2)
    assert "`imports: [mine.py]` in a recipe" in done.stderr
    done = toto("check", "tokenizer", "mosaic", cwd=tmp_path, code=2)
    assert "--import mine.py on the command line" in done.stderr


def test_the_resolution_of_the_check_can_be_chosen(tmp_path):
    check = ("check", "tokenizer", "{name: mosaic, block: 5}", "--import")
    mine = shutil.copy(PACKAGE / "mosaic_tokenizer.py", tmp_path)
    done = toto(*check, mine, cwd=tmp_path, code=2)
    assert "grid(64): 64 px is no multiple of 5 px per token; 65 is" in done.stderr
    assert "`toto check tokenizer NAME --resolution N`" in done.stderr
    done = toto(*check, mine, "--resolution", "65", cwd=tmp_path)
    assert "codes [B, 13, 13] at 65 px" in done.stdout
    done = toto("check", "head", "average", "--resolution", "65", cwd=tmp_path, code=2)
    assert "--resolution: a head sees no images" in done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The example, installed by pip into a folder of its own, from files at hand alone."""
    folder = tmp_path_factory.mktemp("installed")
    # pip builds in the source folder, and the repository stays as it is.
    source = shutil.copytree(PACKAGE, folder / "source")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", folder / "site", source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_the_package_of_the_example_is_found_by_its_entry_point(tmp_path, tiny_datasets, installed):
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    environment = ENVIRONMENT | {"PYTHONPATH": path}
    checked = toto_process("check", "tokenizer", "mosaic", cwd=tmp_path, env=environment)
    assert "codes [B, 8, 8] at 64 px" in checked.stdout
    recipe = PACKAGE / "mosaic.yaml"
    command = ("tokenize", tiny_datasets / "pictures", "tokens", "--recipe", recipe)
    made = toto_process(*command, cwd=tmp_path, env=environment)
    assert "tokenizer mosaic" in made.stdout
    missing = toto("show", recipe, cwd=tmp_path, code=2)
    assert "unknown tokenizer 'mosaic'" in missing.stderr
