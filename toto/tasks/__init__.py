"""Tasks: modules whose `forward(batch)` gives a loss and metrics. `config` is torch-free."""
