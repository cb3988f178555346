"""Data: pictures and videos to shards, and shards to batches in a pure order."""
