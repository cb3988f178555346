"""The weights that toto ships: NAME.safetensors, its recipe NAME.yaml, its record NAME.md."""
