"""`python -m toto.cli`: the same as `toto`, and how torchrun and deepspeed start a rank."""

import os
import sys

# `python -m` puts the working directory first, where a file named like a library would be run in
# its place; the command `toto` does not look there. These two modules are loaded at Python's start.
if sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from toto.cli.main import main  # only now

main()
