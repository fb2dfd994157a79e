"""What a search proposes: a network, and the compression methods that it is made smaller with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.method import Method

NONE = "none"  # the alternative that leaves the network as it is
# For each compression choice: name -> method, None for `NONE`.
Alternatives = Sequence[Mapping[str, "Method | None"]]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network of a family, of a table or of a scaled base, to be profiled and trained.

    config: the Config of the form that is trained. methods: names of compression methods, keys of
    the evaluator's mapping from names to methods, in order; () where nothing is compressed.

    >>> Candidate("a network", ("ptq:8",)).methods
    ('ptq:8',)
    """

    config: Any
    methods: tuple[str, ...] = ()
