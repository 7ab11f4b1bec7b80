"""Engines side by side."""
