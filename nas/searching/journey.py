"""The journeys behind `nas search`, `nas show` and `nas export`."""

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import optuna

from nas import backend, cache, registry
from nas.files import network_files
from nas.searching import finalists, journal
from nas.searching import study as studies
from nas.searching.loop import Objective, explore, trained
from nas.searching.progress_line import Progress
from nas.searching.result_json import summarize
from nas.searching.start import (
    begin,
    controller_of,
    evaluator_of,
    filter_of,
    final_epochs_of,
    one_shot,
    profiles_of,
)
from nas.searching.study import Settings

# The time of a search without --trials: the first one ends within five minutes.
DEFAULT_MINUTES = 4.0
# The share of --minutes after which no further candidate is tried: the rest is the finalists'.
SEARCH_SHARE = 0.75
DEFAULT_TRIALS = 16
DEFAULT_ONE_SHOT_TRIALS = 400  # in a supernet a network is judged in less than a second


def search(arguments: argparse.Namespace) -> int:
    """`nas search`: begin or resume a study, hand over the best network."""
    settings = _settings(arguments)
    if arguments.trials is None and arguments.minutes is None:
        arguments.minutes = DEFAULT_MINUTES
    trials = arguments.trials
    if trials is None:
        trials = DEFAULT_ONE_SHOT_TRIALS if one_shot(settings) else DEFAULT_TRIALS
    if min(trials, arguments.workers) < 1 or arguments.finalists < 0:
        raise ValueError("--trials and --workers must be at least 1, --finalists at least 0")
    started = time.monotonic()
    minutes = arguments.minutes or math.inf
    end = started + 60 * minutes
    deadline = started + 60 * minutes * SEARCH_SHARE
    folder = pathlib.Path(arguments.out) / (arguments.study or settings.name())
    backend.threads(max(1, (os.cpu_count() or 1) // arguments.workers))
    study = studies.create(folder, settings, arguments.storage)
    worker = journal.Worker(folder)
    say = functools.partial(print, file=sys.stderr, flush=True)
    interrupted, children, summary = False, [], {}
    try:
        evaluator, baseline = evaluator_of(settings, folder)
        score = filter_of(settings, evaluator)
        if one_shot(settings):
            evaluator.prepare(minutes, say)
        objective = begin(study, settings, folder, evaluator, baseline, say)
        if not arguments.child:
            _announce(folder, study, settings, objective, say)
            children = _start_children(arguments)
        progress = Progress(objective, trials, deadline)
        for trial in trained(study):
            progress.seed(trial)
        study.sampler = controller_of(settings, settings.controller, objective, evaluator)
        search_for = functools.partial(
            explore,
            study,
            evaluator,
            objective,
            trials=trials,
            worker=worker,
            profiles=profiles_of(settings, study.sampler),
            score=score,
            deadline=deadline,
            on_event=progress,
            keep=finalists.BestSoFar(
                folder, objective, getattr(evaluator, "save", network_files.save_model)
            ),
        )
        why = search_for()
        if arguments.child:
            return 0
        for child in children:
            child.wait()
        if children:
            why = search_for()  # what a killed worker left undone
        if why == "deadline":
            say("time for the finalists; the same command goes on with the search")
        if why == "converged":
            _say_converged(study, objective, say)
        if arguments.prove:
            summary["prove"] = _prove(folder, study, settings, evaluator, objective, worker, say)
        if arguments.finalists:
            summary |= finalists.hand_over(
                folder,
                study,
                evaluator,
                objective,
                most=arguments.finalists,
                epochs=final_epochs_of(evaluator),
                end=end,
                say=say,
            )
            if baseline is not None and time.monotonic() < end:
                say("retraining the base network, for comparison")
                summary["baseline_quality"] = finalists.retrain_baseline(
                    folder, evaluator, baseline, final_epochs_of(evaluator)
                )
        else:
            summary |= finalists.hand_over_as_trained(folder, study, evaluator, objective)
    except KeyboardInterrupt:
        interrupted = True
        for child in children:
            child.wait()
        if arguments.child or "objective" not in study.user_attrs:
            return 130
        say("\ninterrupted: nothing finished is lost, the same command resumes")
        summary |= finalists.hand_over_as_trained(folder, study, evaluator, objective)
    finally:
        worker.leave()
    summary["seconds"] = time.monotonic() - started
    _print(folder, study, _finish(folder, study, settings, summary), arguments.json)
    return 130 if interrupted else 0


def _say_converged(study, objective: Objective, say) -> None:
    if trained(study):
        say("stopped: the last proposals were all known, or far over budget")
        return
    profiles = [t.user_attrs["profile"] for t in study.get_trials(deepcopy=False)]
    cheapest = min((p["costs"] for p in profiles if p["costs"]), default=None)
    if cheapest is None:
        raise ValueError(
            f"every network exceeds a limit, the last of them: {profiles[-1]['excess']}"
        )
    raise ValueError(
        f"every network is far over budget: the cheapest of {len(profiles)} takes {cheapest} ms of"
        f" {list(objective.budgets)}; raise --budget-ms"
    )


def _settings(arguments: argparse.Namespace) -> Settings:
    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(Settings)
        if hasattr(arguments, field.name)
    }
    given["targets"] = arguments.target or Settings.targets
    given["budgets_ms"] = arguments.budget_ms
    task = registry.parse(arguments.task)
    if task.name == "table":  # its own space and devices
        if arguments.target:
            raise ValueError("--task table has its own devices; name them: table:FILE,cost=A+B")
        given["space"] = "table"
        given["targets"] = str(dict(task.options).get("cost", "cost")).split("+")
    return Settings(**given)


def _announce(folder, study, settings, objective, say) -> None:
    kept = study.user_attrs["objective"]
    say(f"study {folder}: {settings.space} on {settings.task}, controller {settings.controller}")
    if (metric := study.user_attrs.get("metric")) is not None:
        say(f"quality is {metric}")
    baseline = kept["baseline"] or {}
    for index, target in enumerate(settings.targets):
        told = f"as fast as possible on {target}"
        if math.isfinite(objective.budgets[index]):
            told = f"budget {objective.budgets[index]:.3f} ms on {target}"
        if baseline.get("costs"):
            told += f" (the base network takes {baseline['costs'][index]:.3f} ms"
            told += f", {baseline['quality']:.1%})"
        say(told)
    if kept["beta"] is not None:
        say(f"beta {kept['beta']}")
    done = len(trained(study))
    if done:
        say(f"resuming: {done} networks are trained already")


def _start_children(arguments: argparse.Namespace) -> list[subprocess.Popen]:
    command = [sys.executable, "-m", "nas", *arguments.argv, "--child"]
    return [
        subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(arguments.workers - 1)
    ]


def _prove(folder, study, settings, evaluator, objective, worker, say) -> dict:
    """Spend as many trained networks on random search; both fronts and their hypervolume."""
    from nas import pareto

    name = f"{study.study_name}-random"
    rival = optuna.create_study(
        study_name=name,
        storage=study._storage,
        sampler=controller_of(settings, "random", objective, evaluator),
        directions=objective.directions,
        load_if_exists=True,
    )
    budget = len(trained(study))
    say(f"random search, for comparison: {budget} networks")
    explore(
        rival,
        evaluator,
        objective,
        trials=budget,
        worker=worker,
        on_event=Progress(objective, budget, prefix="random "),
    )
    points = {
        kind: [
            (trial.user_attrs["evaluation"]["quality"], *trial.user_attrs["profile"]["costs"])
            for trial in trained(one)
        ]
        for kind, one in (("controller", study), ("random", rival))
    }
    return {
        "random": [{"quality": q, "costs": list(costs)} for q, *costs in points["random"]],
        "hypervolume": pareto.hypervolumes(points),
    }


def _finish(folder, study, settings, summary) -> dict:
    """Write result.json, the plot and the report; return the result."""
    from nas.report.html import page
    from nas.report.plots import figure, pareto

    content = summarize(study, settings, summary)
    cache.write_json(folder / "result.json", content)
    if trained(study):
        figure.save(folder / "pareto.png", pareto.draw(study, content))
        page.write(folder / "report.html", study, content)
    return content


def show(arguments: argparse.Namespace) -> None:
    """`nas show`: the result of a study, finished or not."""
    folder = pathlib.Path(arguments.run)
    settings, study = studies.load(folder)
    path = folder / "result.json"
    content = json.loads(path.read_text()) if path.exists() else summarize(study, settings, {})
    _print(folder, study, content, arguments.json)


def _print(folder: pathlib.Path, study, content: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(content, indent=1))
        return
    from nas.report.tables import search

    print(search.table(study, content, folder=folder))


def export(arguments: argparse.Namespace) -> None:
    """`nas export`: rebuild the network of any trial, train it, write its files."""
    folder = pathlib.Path(arguments.run)
    settings, study = studies.load(folder)
    if settings.space.startswith("scaling:"):
        raise ValueError(f"{folder} is of nas scale, whose networks are all in {folder.parent}")
    number = arguments.trial
    if number is None:
        ranking = finalists.ranked(study, studies.objective(study, settings))
        if not ranking:
            raise ValueError(f"{folder} has no trained network yet; name a --trial")
        number = ranking[0].number
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False) if trial.params}
    if number not in trials:
        raise ValueError(f"{folder} has no trial {number}; it has {len(trials)}, from 0")
    evaluator, _ = evaluator_of(settings, folder)
    if not hasattr(evaluator, "targets"):
        raise ValueError(f"--task {settings.task} is a table: it has no networks to export")
    config = evaluator.config(trials[number])
    out = pathlib.Path(arguments.out or folder / f"trial_{number}")
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"trial_{number}"
    epochs = arguments.epochs
    if epochs is None:
        epochs = final_epochs_of(evaluator)
    if epochs == 0:
        evaluator.write(evaluator.untrained(config), config, stem)
        quality = None
    else:

        def keep(network, record):
            evaluator.write(network, config, stem)

        quality = evaluator.train(config, epochs=epochs, keep=keep, final=True)["quality"]
    files = [str(stem.with_suffix(suffix)) for suffix in (".keras", ".tflite", ".py")]
    name = f"{folder.name}:{number}"
    latency = evaluator.measure_again(stem.with_suffix(".tflite"), name)
    result = {
        "trial": number,
        "quality": quality,
        "costs": [one["median_ms"] for one in latency],
        "files": files,
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    told = "untrained" if quality is None else f"quality {quality:.2%}"
    costs = ", ".join(f"{cost:.3f} ms" for cost in result["costs"])
    print(f"trial {number}: {told}, {costs}")
    print("\n".join(files))
