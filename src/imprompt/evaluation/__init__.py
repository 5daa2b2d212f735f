"""Metrics with stated definitions, intervals that respect what was sampled, comparisons that say what is real."""
