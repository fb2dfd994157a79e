"""A model card: what a network takes and gives, its classes, and where it is from, as JSON.

It goes into the files that are handed over (`nas.files.hand_over.attach`) and into results.
Mitchell et al., "Model Cards for Model Reporting", arXiv 1810.03993.
"""

import dataclasses
import importlib.metadata
import pathlib
import re
import shlex
import sys
from typing import Any

from nas.files.hand_over.attach import card_in
from nas.tasks.inputs.preprocessing import Preprocessing, of_inputs
from nas.tasks.scoring.classes import is_classification
from nas.tasks.scoring.judgement import PROBABLE, activation
from nas.tasks.task import Task

SCORES, SIGMOID, SIGMOID_LOGITS, NUMBERS = "scores", "sigmoid", "sigmoid logits", "numbers"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is known of a network beside itself.

    name: what it is called. source: where it is from, in words. labels: names of classes, or of
    tokens. preprocessing: of its examples. outputs_are: "classes", "sigmoid" or None: unknown.
    command: that made it; None: this process's.
    """

    name: str
    source: str
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing = Preprocessing()
    outputs_are: str | None = None
    command: str | None = None

    @classmethod
    def of(
        cls,
        name: str,
        source: str,
        task: Task | None,
        read_from: pathlib.Path | None = None,
        command: str | None = None,
    ) -> "Origin":
        """That of a network and its task; what that leaves open is as the card in its file says."""
        found = cls(name, source, command=command)
        if read_from is not None and read_from.suffix in (".keras", ".tflite"):
            found = found._of_file(read_from)
        if task is None:
            return found
        outputs_are = getattr(task.loss, "outputs_are", None)
        if is_classification(task.loss):
            outputs_are = "classes"
        return cls(
            name,
            source,
            task.labels or found.labels,
            task.preprocessing or of_inputs(task.train[0]),
            outputs_are,
            command,
        )

    def _of_file(self, file: pathlib.Path) -> "Origin":
        if (card := card_in(file)) is None:
            return self
        known = {field.name for field in dataclasses.fields(Preprocessing)}
        named = next((one for one in card["inputs"] if one["kind"] != "array"), card["inputs"][0])
        fields = {name: value for name, value in named.items() if name in known}
        fields |= {name: tuple(fields[name]) for name in ("mean", "std") if name in fields}
        labels = card.get("labels") or card.get("vocabulary") or ()
        are = {SCORES: "classes", SIGMOID: "sigmoid", SIGMOID_LOGITS: "sigmoid"}
        outputs_are = are.get(card["outputs"][0]["gives"])
        seen = Preprocessing(**fields) if named["kind"] not in ("state", "position") else None
        return dataclasses.replace(
            self, labels=tuple(labels), preprocessing=seen or Preprocessing(),
            outputs_are=outputs_are,
        )  # fmt: skip

    def card(self, model: Any) -> dict[str, Any]:
        """The model card of a `keras.Model` that is written to a file.

        >>> import keras
        >>> row = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="row")
        >>> card = Origin("row", "mine", ("ham", "spam")).card(row)
        >>> card["outputs"][0]["shape"], card["labels"]
        ([2], ['ham', 'spam'])
        """
        from latency.networks.functional import functional
        from latency.tflite.signature import names

        model = functional(model)
        inputs, outputs = names(model)
        shapes = [
            {name: (_shape(tensor), str(tensor.dtype)) for name, tensor in zip(*side, strict=True)}
            for side in ((inputs, model.inputs), (outputs, model.outputs))
        ]
        takes = [self._input(name, *kind, shapes) for name, kind in shapes[0].items()]
        gives = [
            self._output(name, kind, tensor, shapes)
            for (name, kind), tensor in zip(shapes[1].items(), model.outputs, strict=True)
        ]
        found: dict[str, Any] = {"name": self.name, "inputs": takes, "outputs": gives}
        for names_of in ("labels", "vocabulary"):
            if any(one.get("classes") == names_of for one in gives):
                found[names_of] = list(self.labels)
        if self.preprocessing.tokenizer:
            found["tokenizer"] = self.preprocessing.tokenizer
        made = {"by": "nas", "version": importlib.metadata.version("nas"), "of": self.source}
        if command := _command() if self.command is None else self.command:
            made["command"] = command
        return found | {"made": made}

    def _input(
        self, name: str, shape: list[int | None], dtype: str, shapes: list[dict[str, Any]]
    ) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": name, "shape": shape, "dtype": dtype}
        if shapes[1].get(name) == (shape, dtype):
            return entry | {"kind": "state"}
        if name == "position" and "int" in dtype:
            return entry | {"kind": "position"}
        others = [one for one in shapes[0] if shapes[1].get(one) != shapes[0][one]]
        only = [one for one in others if one != "position"] == [name]
        seen = self.preprocessing if only else Preprocessing()
        fits = {
            "image": len(shape) == 3 and shape[-1] in (1, 3),
            "audio": len(shape) == 1 or (len(shape) == 2 and shape[-1] == 1),
            "text": "int" in dtype,
        }
        if not fits.get(seen.kind, True):
            seen = Preprocessing()
        unused = {"image": (), "audio": ("aspect", "background")}.get(
            seen.kind, ("aspect", "background", "sample_rate")
        )
        kept = {key: value for key, value in seen.to_json().items() if value is not None}
        return entry | {key: value for key, value in kept.items() if key not in unused}

    def _output(
        self,
        name: str,
        kind: tuple[list[int | None], str],
        tensor: Any,
        shapes: list[dict[str, Any]],
    ) -> dict[str, Any]:
        shape, dtype = kind
        entry: dict[str, Any] = {"name": name, "shape": shape, "dtype": dtype, "gives": NUMBERS}
        if shapes[0].get(name) == kind:
            return entry | {"gives": "state"}
        ending, width = activation(tensor), shape[-1] if shape else 1
        if self.outputs_are == "sigmoid" and ending not in PROBABLE:
            entry["gives"] = SIGMOID_LOGITS
        elif ending in ("sigmoid", "hard_sigmoid"):
            entry["gives"] = SIGMOID
        elif ending == "softmax" or self.outputs_are == "classes" or name == "logits":
            entry["gives"] = SCORES
        binary = width == 1 and len(self.labels) == 2
        if self.labels and (width == len(self.labels) or binary) and "float" in dtype:
            text = self.preprocessing.kind == "text"
            entry["classes"] = "vocabulary" if text else "labels"
        elif self.labels and name == "classes":  # of the objects that a detector finds
            entry["classes"] = "labels"
        return entry


def _shape(tensor: Any) -> list[int | None]:
    return list(tensor.shape[1:])


def _command() -> str:
    """The command of this process, without the folders of its files; empty in a notebook."""
    program = pathlib.Path(sys.argv[0]).name if sys.argv and sys.argv[0] else ""
    if program in ("", "-c", "ipykernel_launcher.py", "colab_kernel_launcher.py"):
        return ""
    program = "nas" if program == "__main__.py" else program
    return shlex.join([program, *map(without_folders, sys.argv[1:])])


def without_folders(text: str) -> str:
    """A word of a command with names of files only: what is shipped tells nothing of a machine.

    >>> without_folders("npz:/home/me/data.npz,scale=1")
    'npz:data.npz,scale=1'
    """
    return re.sub(r"(?:~|/|[A-Za-z]:\\)[^\s,:=]*[/\\]", "", text)
