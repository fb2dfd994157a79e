"""`nas search`: the loop over a study, its evaluators, finalists and storage."""
