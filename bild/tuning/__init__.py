"""Choosing thresholds and small models."""
