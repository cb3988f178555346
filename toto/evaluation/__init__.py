"""What a trained model knows: features per layer, and probes on them."""
