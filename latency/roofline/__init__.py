"""The least time that compute, bandwidth and launches allow."""
