"""Networks: one file per family, with `Config`, `VARIANTS` and `build(config) -> keras.Model`."""
