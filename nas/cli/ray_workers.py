"""The flags of `nas search` that place its workers in a Ray cluster, and what they mean."""

import argparse
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.searching.parts import Parts


def add(group: Any) -> None:
    """The flags."""
    group.add_argument(
        "--ray", metavar="HOST:PORT", help="place the workers on the nodes of this Ray cluster"
    )
    group.add_argument(
        "--worker-resources",
        action="append",
        metavar="cpu=4,gpu=1",
        help="what each worker takes of a node of it; repeat for a gang, all or none (cpu=1)",
    )


def check(arguments: argparse.Namespace) -> None:
    """`ValueError` where the flags lack another; from here on --ray is the cluster of targets."""
    if arguments.worker_resources and not arguments.ray:
        raise ValueError("--worker-resources are those of a Ray cluster: name it, --ray HOST:PORT")
    if not arguments.ray:
        return
    if arguments.storage is None or not arguments.storage.startswith("postgresql"):
        raise ValueError(
            "--ray: its workers may be on several machines; expected"
            " --storage postgresql://USER@HOST/DATABASE, where all of them find the study"
        )
    if arguments.child is None:  # a worker has it from the node that it is on
        os.environ["RAY_ADDRESS"] = arguments.ray


def threads(arguments: argparse.Namespace) -> int:
    """The cores that one worker trains on."""
    from nas.ray_cluster.workers import bundle

    (first, *_) = arguments.worker_resources or ["cpu=1"]
    return max(1, int(bundle(first).get("CPU", 1)))


def starter(
    arguments: argparse.Namespace, folder: pathlib.Path, parts: "Parts", on_event: Any
) -> Callable[[], tuple[()]]:
    """What places all workers and waits for them: none is left to be waited for."""
    from nas.ray_cluster import workers

    bundles = [workers.bundle(text) for text in arguments.worker_resources or ["cpu=1"]]

    def start() -> tuple[()]:
        from optuna.exceptions import StorageInternalError

        from nas.searching import study as studies
        from nas.searching.loop import trained

        _, study = studies.load(folder, arguments.storage)

        def words() -> str:
            try:
                return f"{len(trained(study))} networks trained"
            except StorageInternalError:  # the workers wait for it, too
                return "the storage does not answer"

        workers.run(
            arguments.argv,
            address=arguments.ray,
            count=arguments.workers,
            bundles=bundles,
            targets=parts.targets,
            progress=words,
            on_event=on_event,
        )
        return ()

    return start
