"""Teachers of methods, in memory or in a file, opened as any other network is."""

import dataclasses
from typing import Any

from compress.method import Method
from nas.files.open_network import open_network
from nas.networks.build import digest_of


def with_teacher(method: Method) -> Method:
    """A method with its teacher as a flat `keras.Model`, known in its repr by its weights.

    A method has a teacher where it has the fields `teacher` and `named`, as
    `compress.distill.Distill` does; another is returned as it is. Raises `ValueError` where the
    teacher cannot be opened.

    >>> from compress.prune import Prune
    >>> with_teacher(Prune(0.5)) == Prune(0.5)
    True
    """
    given: Any = method  # every method is a dataclass
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(given)}
    if fields.get("teacher") is None or fields.get("named") != "":
        return method
    teacher = open_network(fields["teacher"])
    source = fields["teacher"] if isinstance(fields["teacher"], str) else teacher.source
    named = f"{source} {digest_of(teacher.model)}"
    return dataclasses.replace(given, teacher=teacher.model, named=named)
