"""Generation: sampling tokens, continuing videos, and the pictures that show them."""
