"""Parts that networks share: norm, rotary positions, attention, MLP, loss."""
