"""Analysis: what a run wrote, its figures, and the report that shows them."""
