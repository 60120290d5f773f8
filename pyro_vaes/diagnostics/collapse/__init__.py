"""Posterior collapse: measured, and forecast."""
