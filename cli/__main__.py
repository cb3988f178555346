"""`python -m toto.cli`: the same as `toto`, and how torchrun and deepspeed start a rank."""

import os
import sys

# `python -m` puts the working directory first, where a file named like a library would be run in
# its place; the command `toto` does not look there. These two modules are loaded at Python's start.
if sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from toto.cli.main import main  # only now

try:
    main()
except SystemExit as ended:
    if ended.code and "RANK" in os.environ:
        # The others learn that this rank has failed when its connections close. All is written and
        # closed; tearing down torch would keep them waiting for seconds.
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    raise
