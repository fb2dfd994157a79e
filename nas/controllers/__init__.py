"""Search controllers: one Optuna sampler per file, each a pure function of the trials."""
