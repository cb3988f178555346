"""`toto show --describe`."""

from __future__ import annotations

from command_line import toto

from toto.heads.config import HEADS


def test_a_plug_in_is_described_once_it_is_imported(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pydantic import Field\n"
        "from toto.api import HeadConfig, register_head\n\n\n"
        "@register_head('described_here')\n"
        "class MineConfig(HeadConfig):\n"
        "    '''Pool by a rule of mine.'''\n\n"
        "    power: float = Field(2.0, description='of the mean')\n"
        "    bare: int = 3\n\n"
        "    def num_params(self, width):\n        return 0\n\n"
        "    def build(self, width):\n        raise NotImplementedError\n"
    )
    try:
        told = toto(
            "show", "--describe", "task.head", "--import", "mine.py", cwd=tmp_path
        ).stdout.splitlines()
    finally:
        HEADS._classes.pop("described_here", None)
    at = told.index("task.head, name: described_here: Pool by a rule of mine.")
    assert [line.split() for line in told[at + 1 : at + 3]] == [
        ["power", "number", "default:", "2"],
        ["of", "the", "mean"],
    ]
    assert "no description" in told[at + 4]


def test_all_or_one_setting_is_printed(tmp_path):
    everything = toto("show", "--describe", cwd=tmp_path).stdout
    assert "training.deepspeed: How DeepSpeed" in everything
    one = toto("show", "--describe", "training.keep", cwd=tmp_path).stdout
    assert one.splitlines() == [
        "training",
        "  keep  integer > 0  default: 2",
        "        checkpoints kept, the newest",
    ]
    refused = toto("show", "--describe", "training.kep", cwd=tmp_path, code=2)
    assert "Did you mean training.keep?" in refused.stderr
    assert "name a recipe, or give --describe" in toto("show", cwd=tmp_path, code=2).stderr
