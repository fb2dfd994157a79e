"""Is EfficientNet-X faster than EfficientNet, and why: `python -m tools.bench_why`.

On TPU v3 and v5e (compiled by libtpu, no TPU is needed; bfloat16) and on A100, H100 and V100 (the
roofline of the layers with default efficiencies; bfloat16, float16 on V100). "by estimate": the
ratio by the compiler's own estimate of cycles, in place of its schedule's. A row compares one
pair: time, FLOPs, bytes, intensity; then stages and classes. Expected, if EfficientNet-X holds
what its paper says (arXiv 2102.05610): "faster" is yes though FLOPs are 2.4 times as many.

Rows are kept in tools/results/why.json as they come, and not done again: a compilation takes
minutes on a busy machine. `--pairs b1 b2 --batches 128 --targets tpu:v3` adds more.
"""

import argparse
import dataclasses
import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
RESULT = Path(__file__).parent / "results" / "why.json"
TARGETS = (
    *("tpu:v3", "tpu:v5e", "gpu:a100,dtype=bfloat16,how=layers"),
    *("gpu:h100,dtype=bfloat16,how=layers", "gpu:v100,dtype=float16,how=layers"),
)


def explained(name: str, spec: str, batch: int):
    """The latency of a catalog network, its explanation, and a second opinion in milliseconds.

    Of a TPU that is by the compiler's own estimate of cycles, not by its schedule; else None.
    """
    from latency.tpu import TPU
    from nas import registry as specs

    family, config = specs.network(name)
    model = family.build(config)
    target = specs.target(spec)
    latency = target.profile(model, batch_size=batch, details=True)
    rough = None
    if isinstance(target, TPU):
        rough = dataclasses.replace(target, schedule=False).profile(model, batch).median_ms
    return latency, target.explain(model, latency), rough


def row(pair: str, spec: str, batch: int) -> dict[str, Any]:
    """One pair on one target: what was found of each, and the ratios."""
    from nas.report.tables import explanation

    names = [f"efficientnet:{pair}", f"efficientnet_x:{pair}"]
    found, record = {}, {"pair": pair, "target": spec, "batch": batch}
    rough = []
    for name in names:
        latency, why, other_ms = explained(name, spec, batch)
        found[name] = why
        rough.append(other_ms)
        told = why.to_json()
        del told["operations"]
        kept = ("runtime", "estimate", "dtype", "calibration", "date")
        conditions = {key: latency.conditions[key] for key in kept if latency.conditions.get(key)}
        record[name.partition(":")[0]] = told | {"conditions": conditions, "device": latency.device}
    one, other = found.values()
    record |= {
        "time_ratio_by_estimated_cycles": rough[1] / rough[0] if all(rough) else None,
        "time_ratio": other.latency_ms / one.latency_ms,
        "flops_ratio": other.total.flops / one.total.flops,
        "faster": other.latency_ms < one.latency_ms,
        "verdict": explanation.verdict(names[0], one, names[1], other),
    }
    print("\n".join(explanation.side_by_side(spec, batch, found)), flush=True)
    return record


def table(rows: list[dict[str, Any]]) -> str:
    """A line a row."""
    from nas.report.format import figure, share
    from nas.report.tables.columns import columns

    head = [
        "pair",
        "target",
        "batch",
        "figure",
        "B ms",
        "X ms",
        "time X/B",
        "by estimate",
        "FLOPs X/B",
        "faster",
    ]
    head += ["GFLOP/s B", "GFLOP/s X", "FLOPs/B B", "FLOPs/B X", "depthwise of time B", "X"]
    cells = [head]
    for one in rows:
        b, x = one["efficientnet"], one["efficientnet_x"]
        shares = []  # of the time, in operations with a depthwise convolution in them
        for side in (b, x):
            depthwise = [part["ms"] for part in side["classes"] if "depthwise" in part["name"]]
            shares.append(sum(depthwise) / side["total"]["ms"])
        cells.append(
            [
                one["pair"],
                one["target"].partition(",how")[0],
                str(one["batch"]),
                b["latency_kind"].upper(),
                f"{b['latency_ms']:.4g}",
                f"{x['latency_ms']:.4g}",
                f"x{one['time_ratio']:.3f}",
                f"x{rough:.3f}" if (rough := one["time_ratio_by_estimated_cycles"]) else "",
                f"x{one['flops_ratio']:.2f}",
                "yes" if one["faster"] else "no",
                *(figure(side["total"]["tflops"] * 1e3, zeros=False) for side in (b, x)),
                *(figure(side["total"]["intensity"], zeros=False) for side in (b, x)),
                *(share(part) for part in shares),
            ]
        )
    return "\n".join(columns(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", nargs="+", default=["b0"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 128])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    kept = json.loads(arguments.out.read_text())["rows"] if arguments.out.is_file() else []
    for pair in arguments.pairs:
        for batch in arguments.batches:
            for spec in arguments.targets:
                if any((r["pair"], r["target"], r["batch"]) == (pair, spec, batch) for r in kept):
                    continue
                started = time.monotonic()
                print(f"{pair} on {spec}, batch {batch}", flush=True)
                kept.append(row(pair, spec, batch))
                print(f"took {time.monotonic() - started:.0f} s", flush=True)
                versions = {name: metadata.version(name) for name in ("jax", "libtpu", "keras")}
                content = {"command": "python -m tools.bench_why", "versions": versions}
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(content | {"rows": kept}, indent=1) + "\n")
    print(table(kept))


if __name__ == "__main__":
    main()
