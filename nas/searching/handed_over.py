"""The files of a network that a search found, with their model card."""

import pathlib
import shlex
from collections.abc import Sequence

from nas.files import network_files
from nas.files.hand_over.attach import attach, write_script
from nas.files.hand_over.model_card import Origin, without_folders
from nas.networks import build
from nas.searching import compression
from nas.searching.candidate import Candidate
from nas.searching.compression import Product
from nas.searching.study import Settings
from nas.tasks.task import Task


def command_of(settings: Settings) -> str:
    """A search as the files of its networks name it, without the folders of this machine.

    >>> command_of(Settings(task="npz:/home/me/data.npz"))
    'nas search --space mnasnet --task npz:data.npz --target cpu:threads=1 --seed 0'
    """
    flags = [("space", settings.space), ("task", settings.task)]
    flags += [("target", one) for one in settings.targets]
    flags += [("method", one) for one in settings.methods] + [("seed", str(settings.seed))]
    words = [word for name, value in flags for word in (f"--{name}", without_folders(value))]
    return shlex.join(["nas", "search", *words])


def origin_of(candidate: Candidate, task: Task, command: str) -> Origin:
    """What a file says of a network; the same in every process, and so of the same size.

    command: of the study.
    """
    name = " ".join((build.name_of(candidate.config), *candidate.methods))
    return Origin.of(name, f"a search on {task.name}", task, command=command)


def write(
    network: Product,
    stem: pathlib.Path,
    files: dict[str, bytes],
    origin: Origin,
    command: Sequence[str] | None,
) -> int:
    """Write `<stem>.keras`, `<stem>.tflite`, `<stem>.py` and `files`; the bytes of the .tflite.

    command: that makes a compressed network again.
    """
    if network.compressed is None:
        config = network.candidate.config
        return network_files.write_network(network.model, config, stem, files, origin)
    network_files.save_model(network.model, stem, origin.card(network.model))
    tflite = stem.with_suffix(".tflite")
    attach(tflite, origin.card(compression.write_tflite(tflite, network)))
    write_script(tflite.parent)
    stem.with_suffix(".py").write_text(compression.as_python(network, command))
    network_files.write_files(files, stem)
    return tflite.stat().st_size
