"""Posteriors, priors and predictions: ArviZ groups, replicates, calibration, aggregates."""
