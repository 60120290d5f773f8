"""Bounds: one bound, one file."""
