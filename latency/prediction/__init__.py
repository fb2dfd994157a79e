"""Predictors of latency that are fitted to measurements."""
