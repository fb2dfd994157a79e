"""Search spaces: one file each, `sample(trial, base) -> Config` and `baseline(base) -> Config`."""
