"""Training: one loop, an engine behind a small protocol, checkpoints that describe themselves."""
