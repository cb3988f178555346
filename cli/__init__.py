"""The command line: a thin command per verb over `toto.jobs`. Nothing here imports torch."""
