"""Where a result is saved: a .keras file and others beside it, or a folder for `nas.open`."""

import pathlib


def keras_file(path: str | pathlib.Path) -> pathlib.Path:
    """The .keras file of a result that is saved to `path`; its folder is made if need be.

    path: a name that ends in .keras, or a folder, in which the file is called best.keras, as in
        the folder of a search. `ValueError` for another suffix.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     keras_file(f"{folder}/mine").name, keras_file(f"{folder}/a.keras").name
    ('best.keras', 'a.keras')
    """
    out = pathlib.Path(path).expanduser()
    if out.suffix != ".keras":
        if out.suffix and not out.is_dir():
            raise ValueError(f"{path}: expected a folder, or a name that ends in .keras")
        out = out / "best.keras"
    out.parent.mkdir(parents=True, exist_ok=True)
    return out
