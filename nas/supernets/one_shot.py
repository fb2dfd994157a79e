"""One-shot search: all candidates are judged with the weights of one network that holds the space.

Candidates are timed as themselves. Those that are kept inherit their weights and are trained
further by themselves. All else is as in a search that trains each candidate.
"""

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class OneShot:
    """How the supernet of a search is trained, and how candidates are judged in it.

    epochs: of its training; None: as many as make 6,000 steps. examples: of the validation part,
    that a candidate is judged on; None: at most 5,000.

    >>> OneShot(examples=0)
    Traceback (most recent call last):
    ValueError: --evaluator supernet: examples=0; expected a whole number >= 1
    """

    epochs: int | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"--evaluator supernet: {field.name}={value!r}; expected a whole number >= 1"
                )


class NotReady(Exception):
    """A supernet that there is too little time for; what it would need, in words."""


def aside(folder: pathlib.Path) -> pathlib.Path:
    """The file that says, in the folder of a study, why its networks are trained after all."""
    return folder / "supernet.aside"


def stepped_aside(folder: pathlib.Path) -> bool:
    """Whether the networks of the study in this folder are trained, for lack of time."""
    return aside(folder).exists()
