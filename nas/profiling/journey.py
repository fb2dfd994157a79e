"""Networks timed on devices: compared, explained, or run without pause until the device is warm."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latency.target import Latency, Target, TargetUnavailable
from nas import interruption
from nas.events import Listener, Message, ignore
from nas.files.open_network import Network
from nas.profiling import history
from nas.profiling.results import Failure, Profile, Profiles

_EXPECTED = (ValueError, OSError, TargetUnavailable)


@interruption.interruptible()
def profile(
    models: Any,
    targets: Any,
    *,
    runs: int = 50,
    warmup: int = 10,
    batch_sizes: Sequence[int] = (1,),
    operations: bool = False,
    explain: bool = False,
    skip_failures: bool = False,
    on_event: Listener = ignore,
) -> Profiles:
    """The latency of each model on each target; every figure is kept in the history.

    Args:
        models: a `keras.Model`, the path of a `.tflite` or `.keras` file, or an opened `Network`;
            several of them, or a dict of them by name.
        targets: a `Target`, several of them, or a dict of them by name.
        runs: timed runs. warmup: runs before them that do not count.
        batch_sizes: examples a run, one after the other.
        operations: whether to ask for memory and the time of each operation, too; takes longer.
        explain: whether to find what bounds each operation, too.
        skip_failures: whether a network that cannot be timed, or explained, is noted in the
            result's `failures`. Otherwise the first error is raised, as by `Target.profile`.
        on_event: is called with a `nas.events.Message` before each measurement.

    >>> import tempfile
    >>> from latency.target import Kind, Timing
    >>> class Board(Target):
    ...     kinds, device = frozenset({Kind.PREDICTED}), "a board"
    ...     def identity(self):
    ...         return {}
    ...     def measure(self, model, batch_size, warmup, runs, details):
    ...         return Timing((2.0 * batch_size,), {}, Kind.PREDICTED)
    >>> with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
    ...     found = profile(file.name, {"board": Board()}, batch_sizes=(1, 8))
    >>> [(one.target, one.latency.median_ms) for one in found.profiles]
    [('board', 2.0), ('board', 16.0)]
    """
    named_models, by_name = named(models), targets_by_name(targets)
    profiles: list[Profile] = []
    failures: list[Failure] | None = [] if skip_failures else None
    for target_name, target in by_name.items():
        for batch_size in batch_sizes:
            names = ", ".join(named_models)
            on_event(Message(f"timing {names} on {target_name}, batch {batch_size}"))
            options = {
                "batch_size": batch_size,
                "warmup": warmup,
                "runs": runs,
                "details": operations or explain,
            }
            for name, latency in _timed(target, target_name, named_models, options, failures):
                profiles.append(Profile(name, target_name, latency))
    if explain:
        profiles = [_explained(one, by_name, named_models, failures, on_event) for one in profiles]
    return Profiles(profiles, failures or ())


def sustain(
    models: Any, targets: Any, *, seconds: float = 600.0, batch_sizes: Sequence[int] = (1,)
) -> Iterator[Profile]:
    """Runs each model on each target without pause: a latency about every second, cold to warm.

    Arguments as of `profile`; `seconds` is how long each runs. The condition "at_s" of a latency
    has the seconds since its run began.
    """
    for target_name, target in targets_by_name(targets).items():
        for name, model in named(models).items():
            network = history.digest(model)
            for batch_size in batch_sizes:
                for latency in target.sustain(model, batch_size, seconds):
                    interruption.check()
                    history.add(latency, name, network)
                    yield Profile(name, target_name, latency)


def named(things: Any) -> dict[str, Any]:
    """One thing or several as a dict by name: a path, a model's name, a target's repr.

    >>> named(["a.tflite", "a.tflite"])
    {'a.tflite': 'a.tflite', 'a.tflite (2)': 'a.tflite'}
    """
    if isinstance(things, Mapping):
        return dict(things)
    if isinstance(things, (str, Path)) or not isinstance(things, Sequence):
        things = [things]
    found: dict[str, Any] = {}
    for thing in things:
        if isinstance(thing, (str, Path)):
            name = str(thing)
        else:
            name = repr(thing) if isinstance(thing, Target) else thing.name
        count = 1 + sum(other == name or other.startswith(f"{name} (") for other in found)
        found[name if count == 1 else f"{name} ({count})"] = thing
    return found


def targets_by_name(targets: Any) -> dict[str, Target]:
    """`named`, of targets; `ValueError` for anything else, such as the name of one."""
    found = named(targets)
    for target in found.values():
        if not isinstance(target, Target):
            raise ValueError(
                f"target {target!r} is a {type(target).__name__}; expected an object such as"
                " latency.cpu.CPU(threads=1)"
            )
    return found


def _on(target: Target, model: Any) -> Any:
    """What the target times."""
    return model.for_target(target) if isinstance(model, Network) else model


def _timed(
    target: Target,
    target_name: str,
    models: dict[str, Any],
    options: dict[str, Any],
    failures: list[Failure] | None,
) -> Iterator[tuple[str, Latency]]:
    """Each network's latency; of several, those that can be timed stay where one cannot."""
    try:
        ready = {name: _on(target, model) for name, model in models.items()}
        yield from zip(models, history.profile(target, ready, **options), strict=True)
    except _EXPECTED as error:
        if failures is None:
            raise
        if len(models) == 1 or isinstance(error, TargetUnavailable):
            failures.append(Failure(tuple(models), target_name, error))
            return
        for name, model in models.items():  # in turns they fail together
            yield from _timed(target, target_name, {name: model}, options, failures)


def _explained(
    profile: Profile,
    targets: dict[str, Target],
    models: dict[str, Any],
    failures: list[Failure] | None,
    on_event: Listener,
) -> Profile:
    """The profile with its explanation, where there is one."""
    on_event(Message(f"explaining {profile.model} on {profile.target}"))
    try:
        target = targets[profile.target]
        found = target.explain(_on(target, models[profile.model]), profile.latency)
    except (ValueError, TargetUnavailable) as error:
        if failures is None:
            raise
        failures.append(Failure((profile.model,), profile.target, error))
        return profile
    return dataclasses.replace(profile, explanation=found)
