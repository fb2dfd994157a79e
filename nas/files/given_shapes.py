"""Shapes that a user gives for inputs of a network: by name, or one for the only input."""

from collections.abc import Mapping, Sequence

Shapes = Mapping[str, Sequence[int]] | Sequence[int]  # () and {}: none


def by_input(names: Sequence[str], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes by the name of their input; `ValueError` where there is no such input.

    names: of the inputs of a network.

    >>> by_input(["image"], (1, 32, 32, 3))
    {'image': (1, 32, 32, 3)}
    """
    if not isinstance(shapes, Mapping):
        if shapes and len(names) != 1:
            raise ValueError(
                f"one shape {tuple(shapes)} for the inputs {', '.join(names)}; give it by name, as"
                f" --shape {names[0]}=... on the command line, shapes={{{names[0]!r}: ...}} in"
                " Python"
            )
        shapes = {names[0]: shapes} if shapes else {}
    for name, shape in shapes.items():
        if name not in names:
            raise ValueError(f"no input {name!r}; the network takes {', '.join(names)}")
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"input {name!r}: {tuple(shape)}; expected whole numbers from 1")
    return {name: tuple(shape) for name, shape in shapes.items()}
