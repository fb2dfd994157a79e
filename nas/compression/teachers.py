"""Teachers of methods, in memory or in a file, opened as any other network is."""

import dataclasses

from compress.method import Method
from nas.files.open_network import open_network
from nas.networks.build import digest_of


def opened(method: Method) -> Method:
    """A method with its teacher as a flat `keras.Model`, known in its repr by its weights.

    A method has a teacher where its fields are `teacher` and `named`, as those of
    `compress.distill.Distill`.
    """
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    if fields.get("teacher") is None or fields.get("named") != "":
        return method
    teacher = open_network(fields["teacher"])
    source = fields["teacher"] if isinstance(fields["teacher"], str) else teacher.source
    named = f"{source} {digest_of(teacher.model)}"
    return dataclasses.replace(method, teacher=teacher.model, named=named)
