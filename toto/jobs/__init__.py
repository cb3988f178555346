"""Jobs: one module a verb, from a recipe or request to files on disk. The CLI calls nothing else."""
