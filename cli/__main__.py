"""`python -m toto.cli`: the same as `toto`."""

from toto.cli.main import main

main()
