"""One input of a network, and what is said where it leaves sizes open that decide its cost."""

import dataclasses

_EXAMPLE = 224  # a size that most who read the message know


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a network: the size of an open dimension is None.

    >>> Input("image", (None, None, None, 3), "float32").question()[:65]
    "input 'image' is of the open shape (?, ?, ?, 3); give its sizes: "
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def question(self) -> str:
        """What is to be given, and how, in a line for the user."""
        shown = ", ".join("?" if size is None else str(size) for size in self.shape)
        sizes = [1 if n == 0 and len(self.shape) > 1 else _EXAMPLE for n in range(len(self.shape))]
        given = [str(size or example) for size, example in zip(self.shape, sizes, strict=True)]
        return (
            f"input {self.name!r} is of the open shape ({shown}); give its sizes:"
            f" --shape {self.name}={','.join(given)} on the command line,"
            f" shapes={{{self.name!r}: ({', '.join(given)})}} in Python"
        )
