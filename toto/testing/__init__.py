"""The contracts, as checks that every component must pass: toto's own and yours.

`toto check tokenizer NAME` runs them from the shell. Each check raises ContractError with the fault
that it found and the values that show it.
"""

from __future__ import annotations

from toto.testing.backbones import check_backbone, missing_options
from toto.testing.contract import ContractError
from toto.testing.heads import check_head
from toto.testing.tokenizers import TEST_RESOLUTION, check_tokenizer

__all__ = [
    "TEST_RESOLUTION",
    "ContractError",
    "check_backbone",
    "check_head",
    "check_tokenizer",
    "missing_options",
]
