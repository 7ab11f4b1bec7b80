"""The method: what happens to tokens."""
