"""What is known of a study, as result.json holds it."""

import dataclasses
import importlib.metadata

import optuna

from nas.searching import leases
from nas.searching.study import Settings


def summarize(study: optuna.Study, settings: Settings, found: dict) -> dict:
    """The content of result.json: all that is known of a study; `found`: of its winner."""
    kept = study.user_attrs.get("objective", {})
    baseline = kept.get("baseline") or {}
    winner = found.get("winner") or {}
    timed = winner.get("latency") or baseline.get("latency") or [{}] * len(settings.targets)
    every = study.get_trials(deepcopy=False)
    records = [trial.user_attrs.get("profile", {}) for trial in every]
    new = [trial for trial in every if "duplicate_of" not in trial.user_attrs.get("profile", {})]
    profiles = [trial.user_attrs.get("profile", {}) for trial in new]
    trainings = [trial.user_attrs.get("evaluation", {}) for trial in new]
    spent = {
        "build": sum(profile.get("build_s", 0.0) for profile in profiles),
        "profile": sum(profile.get("profile_s", 0.0) for profile in profiles),
        "train": sum(one.get("train_s", 0.0) for one in trainings if not one.get("cached")),
    }
    states = [trial.state.name.lower() for trial in every]
    return {
        "study": study.study_name,
        **dataclasses.asdict(settings),
        "beta": kept.get("beta"),
        "metric": study.user_attrs.get("metric"),  # what the quality is
        "candidate_epochs": study.user_attrs.get("plan", {}).get("epochs"),
        "targets": [
            {"spec": text, "device": latency.get("device", ""), "budget_ms": budget, "unit": "ms"}
            for text, latency, budget in zip(
                settings.targets,
                timed,
                kept.get("budgets_ms") or [None] * len(settings.targets),
                strict=True,
            )
        ],
        "baseline": {k: baseline.get(k) for k in ("costs", "params", "macs", "config")}
        | {"proxy_quality": baseline.get("quality"), "quality": found.get("baseline_quality")},
        "winner": found.get("winner"),
        "finalists": found.get("finalists", []),
        "prove": found.get("prove"),
        "conditions": {
            text: latency.get("conditions", {})
            for text, latency in zip(settings.targets, timed, strict=True)
        },
        "time_s": {
            "base network": found.get("before_s"),
            **spent,
            "finalists": found.get("finalists_s"),
            "total": found.get("seconds"),
        },
        "counts": {state: states.count(state) for state in sorted(set(states))}
        | {"duplicates": sum("duplicate_of" in record for record in records)},
        "failures": leases.failed(every),
        "versions": _versions(),
        "command": f"nas search --study {study.study_name}",
    }


def _versions() -> dict[str, str]:
    names = ("nas", "tensorflow", "jax", "keras", "optuna", "ai-edge-litert", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
