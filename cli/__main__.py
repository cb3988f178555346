"""`python -m toto.cli`: the same as `toto`. The ranks of `--gpus` and torchrun are started so."""

import os

from toto.cli.main import main

try:
    main()
except SystemExit as ended:
    if ended.code and "RANK" in os.environ:
        # The others learn that this rank has failed when its connections close. All is written and
        # closed; tearing down torch would keep them waiting for seconds.
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    raise
