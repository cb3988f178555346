"""Jobs: one module a verb, from a recipe or request to files. The CLI calls nothing else."""
