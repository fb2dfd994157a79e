"""Compression towards a goal: the plan is found, then carried out as any other compression."""

import pathlib
from collections.abc import Sequence
from typing import Any

import compress.method as core
from compress.method import Method
from latency.target import Target
from nas import backend, interruption
from nas.compression import journey
from nas.compression.examples import EXAMPLES
from nas.compression.goals.goal import Goal
from nas.compression.goals.judged import judged, with_more_to_judge
from nas.compression.goals.plan import Plan, proven, summary
from nas.compression.journey import Compressed, fine_tuning, training
from nas.compression.opened import opened
from nas.events import Listener, Message, ignore
from nas.files.given_shapes import Shapes
from nas.files.open_network import Network
from nas.networks.build import digest_of
from nas.tasks.task import Task
from nas.training.recipe import Recipe

EPOCHS = 5  # of a network that is trained already, where neither caller nor task says how many


@interruption.interruptible()
def towards(
    network: Any,
    goal: Goal,
    task: Task | None,
    *,
    out: Sequence[str | pathlib.Path] = (),
    front: str | pathlib.Path | None = None,
    epochs: int | None = None,
    recipe: Recipe | None = None,
    targets: Sequence[tuple[str, Target]] = (),
    examples_count: int = EXAMPLES,
    seed: int = 0,
    name: str | None = None,
    loss: Any = None,
    metric: Any = None,
    target_is_input: bool = False,
    shapes: Shapes = (),
    on_event: Listener = ignore,
    **options: Any,
) -> Compressed:
    """The compression of a network that meets a goal best, with how it was found in its record.

    front: a folder for the files of which no other is better in all that counts. Beside the first
    of `out` a .goal.json keeps what was measured: the same call goes on with it. The others are
    those of `nas.compression.journey.compress`; latency is that of the first target.

    Raises `NotApplicable`, a `ValueError`, where nothing that was tried meets the goal.
    """
    keras = backend.load()
    if task is None:
        raise ValueError("a goal needs examples to judge by: give --data or --task (data=)")
    if goal.timed and not targets:
        raise ValueError(f"{goal}: on what? give --target (targets=)")
    network, judge, judged_by = opened(
        network,
        [],
        task,
        out=out,
        loss=loss,
        metric=metric,
        target_is_input=target_is_input,
        shapes=shapes,
    )
    for note in judged_by:
        on_event(Message(note))
    assert judge is not None  # there is a task
    if judge.labelled:
        judge = with_more_to_judge(judge, seed)
    recipe = recipe or fine_tuning(judge)
    if epochs is None:
        epochs = min(EPOCHS, judge.training.get("epochs", EPOCHS))
    examples = judged(network.model, judge, examples_count, seed)
    kept = None
    if out:
        first = pathlib.Path(out[0])
        kept = first.with_name(f"{first.stem}.goal.json")

    def train(network: Network, methods: Sequence[Method]) -> core.Compressed:
        fitted = training(judge, methods, recipe, epochs, seed, None, on_event)
        keras.utils.set_random_seed(seed)
        return core.compress(network.model, methods, fitted, examples.rounding)

    plan = Plan(
        network,
        goal,
        examples,
        name=name or network.model.name,
        target=targets[0][1] if targets else None,
        train=train if judge.labelled and epochs else None,
        kept=kept,
        front=None if front is None else pathlib.Path(front),
        identity={
            "model": digest_of(network.model),
            "task": judge.recipe,
            "metric": judge.metric,
            "epochs": epochs,
            "seed": seed,
            "examples": examples_count,
            "name": name,
            "target": targets[0][0] if targets else None,
        },
        on_event=on_event,
    )
    chosen = plan.run()
    on_event(Message(f"chosen: {chosen.words}"))
    done = journey.compress(
        network,
        chosen.methods,
        examples.task,
        out=out,
        epochs=epochs if chosen.trained else (0 if judge.labelled else None),
        recipe=recipe,
        targets=targets,
        examples_count=examples_count,
        seed=seed,
        name=name,
        on_event=on_event,
        **options,
    )
    file = next((path for path in map(pathlib.Path, out) if path.suffix == ".tflite"), None)
    if file is not None:
        proof = proven(plan, file, done.model)
        done.record["goal"] = summary(plan, chosen, proof)
        if goal.max_drop is not None and proof.points > goal.max_drop + 1e-9:
            done.record["warnings"].append(
                f"loses {proof.points:.2f} points of {examples.metric} on the examples that"
                f" nothing was chosen by, over the {goal.max_drop:g} that were asked for: give more"
                " examples to choose by, or a smaller --max-drop"
            )
        done.save_record(out[0])
    return done
