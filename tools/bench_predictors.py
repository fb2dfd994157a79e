"""How well devices are learned, on tables of real devices and on this CPU.

    python tools/bench_predictors.py tables [--seeds 10] [--only a100 ...]
    python tools/bench_predictors.py transfer [--seeds 10]
    NAS_CACHE=/tmp/new python tools/bench_predictors.py learn [--counts 10 40] [--networks 100]

`tables` fits whole-network times of random samples of the tables in NAS_DATA (or ../shared/data)
and predicts the rest; one method, nothing tuned to a table. `transfer` fits a new device from 10
samples that are chosen by being least sure of them, with and without a known device. The networks
are rebuilt as operations from what is published of each space. `learn` runs `nas device add` on
a real device, and then times networks that it has not seen, of MnasNet's space and of two others.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from latency.prediction import predictor, probe_networks  # noqa: E402
from latency.prediction.operation_features import Work, of_operations  # noqa: E402
from latency.tflite.graph import Operation  # noqa: E402

DATA = Path(os.environ.get("NAS_DATA", ROOT.parent / "shared" / "data")) / "nas"
HELD_OUT = 500  # networks at most that are predicted
FILTERS = (16, 24, 40, 80, 112, 192, 320)  # Accel-NASBench: MnasNet's stages in B0's widths
STRIDES = (1, 2, 2, 2, 1, 2, 1)
FBNET = ((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))
EFFICIENTNET = (
    (16, 1, 1),
    (24, 2, 2),
    (40, 2, 2),
    (80, 3, 2),
    (112, 3, 1),
    (192, 4, 2),
    (320, 1, 1),
)
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # NAS-Bench-201's cell


class Net:
    """A network as operations."""

    def __init__(self, resolution: int):
        self.operations: list[Operation] = []
        self.x = (1, resolution, resolution, 3)

    def add(self, name, others, result, **options):
        self.operations.append(Operation(name, (self.x, *others), (result,), options))
        self.x = result

    def conv(self, filters, kernel, stride=1, groups=1, fused=1):
        weights = (filters, kernel, kernel, self.x[-1] // groups)
        options = {"strideH": stride, "strideW": stride, "fusedActivationFunction": fused}
        self.add("CONV_2D", (weights, (filters,)), self.strided(stride, filters), **options)

    def depthwise(self, kernel, stride=1):
        channels = self.x[-1]
        options = {"strideH": stride, "strideW": stride, "fusedActivationFunction": 1}
        weights = (1, kernel, kernel, channels)
        shape = self.strided(stride, channels)
        self.add("DEPTHWISE_CONV_2D", (weights, (channels,)), shape, **options)

    def pool(self, size, stride=1):
        options = {"strideH": stride, "filterHeight": size, "filterWidth": size}
        self.add("AVERAGE_POOL_2D", (), self.strided(stride, self.x[-1]), **options)

    def squeeze_excite(self, units):
        whole = self.x
        self.add("MEAN", ((2,),), (1, 1, 1, whole[-1]))
        self.conv(units, 1)
        self.conv(whole[-1], 1)
        self.add("LOGISTIC", (), self.x)
        gate, self.x = self.x, whole
        self.add("MUL", (gate,), whole)

    def head(self, filters, classes):
        if filters:
            self.conv(filters, 1)
        channels = self.x[-1]
        self.add("MEAN", ((2,),), (1, channels))
        self.add("FULLY_CONNECTED", ((classes, channels),), (1, classes))

    def strided(self, stride, channels):
        return (1, -(-self.x[1] // stride), -(-self.x[2] // stride), channels)


def accel(code: np.ndarray) -> tuple[Work, ...]:
    """Accel-NASBench: expansion, kernel, layers and squeeze-and-excitation of seven blocks."""
    net = Net(224)
    net.conv(32, 3, 2)
    for (expand, kernel, layers, excite), filters, stride in zip(
        code.reshape(7, 4).tolist(), FILTERS, STRIDES, strict=True
    ):
        for layer in range(layers):
            before, channels = net.x, net.x[-1]
            if expand > 1:
                net.conv(channels * expand, 1)
            net.depthwise(kernel, stride if layer == 0 else 1)
            if excite:
                net.squeeze_excite(max(1, channels // 4))
            net.conv(filters, 1, fused=0)
            if net.x == before:
                net.add("ADD", (before,), net.x)
    net.head(1280, 1000)
    return of_operations(net.operations)


def fbnet(code: np.ndarray, names: list[str]) -> tuple[Work, ...]:
    """FBNet: one of nine operations in each of 22 layers."""
    net, choices = Net(224), iter(code)
    net.conv(16, 3, 2)
    for filters, layers, stride in FBNET:
        for layer in range(layers):
            step, name = stride if layer == 0 else 1, names[next(choices)]
            before, channels = net.x, net.x[-1]
            if name == "skip":
                if step != 1 or channels != filters:
                    net.conv(filters, 1, step)
                continue
            kernel, expand, *grouped = name.split("_")
            groups = 2 if grouped else 1
            net.conv(channels * int(expand[1]), 1, groups=groups)
            net.depthwise(int(kernel[1]), step)
            net.conv(filters, 1, groups=groups, fused=0)
            if net.x == before:
                net.add("ADD", (before,), net.x)
    net.head(1504, 1000)
    return of_operations(net.operations)


def nasbench201(code: np.ndarray, names: list[str]) -> tuple[Work, ...]:
    """NAS-Bench-201: what no result hangs on is of a kind of its own; some runtimes drop it."""
    chosen = [names[c] for c in code]
    live = [name != "none" for name in chosen]
    reached, used = {0}, {3}
    for node in (1, 2, 3):
        if any(on and e[1] == node and e[0] in reached for on, e in zip(live, EDGES, strict=True)):
            reached.add(node)
    for node in (2, 1, 0):
        if any(on and e[0] == node and e[1] in used for on, e in zip(live, EDGES, strict=True)):
            used.add(node)
    net, unread = Net(32), set()
    net.conv(16, 3)
    for stage, filters in enumerate((16, 32, 64)):
        if stage:
            before = net.x
            net.conv(filters, 3, 2)
            net.conv(filters, 3)
            net.x = before
            net.pool(2, 2)
            net.conv(filters, 1)
            net.add("ADD", (net.x,), net.x)
        for _ in range(5):
            x, inputs = net.x, [0, 0, 0, 0]
            for name, edge in zip(chosen, EDGES, strict=True):
                if name == "none":
                    continue
                inputs[edge[1]] += 1
                first, net.x = len(net.operations), x
                if name.startswith("nor_conv"):
                    net.conv(filters, int(name[-1]))
                elif name == "avg_pool_3x3":
                    net.pool(3)
                if edge[0] not in reached or edge[1] not in used:
                    unread.update(range(first, len(net.operations)))
            net.x = x
            for _ in range(sum(max(count - 1, 0) for count in inputs)):
                net.add("ADD", (x,), x)
    net.head(0, 100)
    return tuple(
        dataclasses.replace(work, kind=f"unread {work.kind}") if number in unread else work
        for number, work in enumerate(of_operations(net.operations))
    )


def tables(only: list[str] | None) -> dict[str, tuple[list, np.ndarray]]:
    """Networks and milliseconds (of any constant) of every device, by "space device"."""
    found = {}
    for file, space in (
        ("accel_nasbench_dev.npz", "accel"),
        ("fbnet_latency_dev.npz", "fbnet"),
        ("nasbench201_cifar100.npz", "nasbench201"),
    ):
        data = np.load(DATA / file, allow_pickle=False)
        devices = {
            name.partition("_")[2]: 1e5 / data[name] if space == "accel" else data[name]
            for name in data.files
            if name.startswith(("throughput_", "lat_"))
        }
        devices = {k: np.asarray(v, float) for k, v in devices.items() if not only or k in only}
        if not devices:
            continue
        codes = data["ops" if space == "nasbench201" else "arch"].astype(int)
        chosen = np.random.default_rng(0).permutation(len(codes))[:1500]
        names = data["op_names"].tolist() if "op_names" in data.files else []
        rebuild = {"accel": accel, "fbnet": fbnet, "nasbench201": nasbench201}[space]
        networks = [rebuild(codes[i], names) if names else rebuild(codes[i]) for i in chosen]
        for device, ms in devices.items():
            ms = ms[chosen]
            good = np.isfinite(ms) & (ms > 0.5)  # 201: a cell without a path takes nothing
            found[f"{space} {device}"] = (
                [n for n, g in zip(networks, good, strict=True) if g],
                ms[good],
            )
    return found


def score(predicted: np.ndarray, ms: np.ndarray) -> tuple[float, float]:
    """The share within 10 %, and Spearman's rank correlation."""
    return (np.abs(predicted / ms - 1) < 0.1).mean(), stats.spearmanr(predicted, ms)[0]


def told(scores: list[tuple[float, float]]) -> str:
    within, rank = np.array(scores).T
    return (
        f"within 10 % {within.mean():6.1%} ({within.min():6.1%} to {within.max():6.1%})   "
        f"Spearman {rank.mean():.3f} ({rank.min():.3f} to {rank.max():.3f})"
    )


def samples(arguments) -> None:
    print(f"mean (least to most) of {arguments.seeds} random samples; the rest is predicted")
    for name, (networks, ms) in tables(arguments.only).items():
        for count in arguments.counts:
            scores = []
            for seed in range(arguments.seeds):
                order = np.random.default_rng(seed).permutation(len(ms))
                used, rest = order[:count], order[count : count + HELD_OUT]
                fitted = predictor.fit([networks[i] for i in used], ms[used])
                scores.append(score(fitted.many([networks[i] for i in rest])[0], ms[rest]))
            print(f"{name:26} {count:4} samples  {told(scores)}", flush=True)


def transfer(arguments) -> None:
    """A new device from 10 samples; the known one from 300 others."""
    pairs = (
        ("accel", "tpuv3", "a100"),
        ("accel", "a100", "tpuv3"),
        ("nasbench201", "1080ti_1", "2080ti_32"),
        ("nasbench201", "2080ti_32", "1080ti_1"),
        ("fbnet", "pixel3", "2080ti_32"),
    )
    found = tables([device for _, *devices in pairs for device in devices])
    for space, old, new in pairs:
        results: dict[str, list] = {"known": [], "alone": []}
        networks, ms = found[f"{space} {new}"]
        for seed in range(arguments.seeds):
            order = np.random.default_rng(seed).permutation(len(ms))
            pool, rest = order[:200], order[200 : 200 + HELD_OUT]
            theirs, times = found[f"{space} {old}"]
            some = np.random.default_rng(seed + 100).permutation(len(times))[:300]
            known = {old: predictor.fit([theirs[i] for i in some], times[some])}
            for how, options in (("known", {"known": known}), ("alone", {})):
                used = list(pool[:6])
                while len(used) < 10:
                    fitted = predictor.fit([networks[i] for i in used], ms[used], **options)
                    left = [i for i in pool if i not in used]
                    used.append(left[int(np.argmax(fitted.many([networks[i] for i in left])[1]))])
                fitted = predictor.fit([networks[i] for i in used], ms[used], **options)
                results[how].append(score(fitted.many([networks[i] for i in rest])[0], ms[rest]))
        for how, scores in results.items():
            print(f"{space} {old} -> {new}, 10 samples, {how}: {told(scores)}", flush=True)


def learn(arguments) -> None:
    """`nas device add` on a real target, judged on networks that it has not seen."""
    import functools

    from latency.predicted import Predicted
    from nas import backend, registry
    from nas.profiling import learn_device
    from search_spaces import mnasnet

    backend.load()
    say = functools.partial(print, file=sys.stderr, flush=True)
    target = registry.target(arguments.target)
    truth: dict[str, list[tuple[bytes, float]]] = {}
    for count in arguments.counts:
        report = learn_device.learn(
            "bench",
            target,
            spec=arguments.target,
            probes=count,
            spaces={"mnasnet": mnasnet},
            on_event=lambda event: say(event.text),
        )
        print(f"{count} probes\n{report}", flush=True)
        truth = truth or held_out(target, arguments.networks, say)
        learned = Predicted("bench")
        for space, networks in truth.items():
            found, refused = [], 0
            for path, ms in networks:
                try:
                    found.append((learned.profile(path).median_ms, ms))
                except ValueError:  # an operation that was in no probe
                    refused += 1
            scores = [score(*np.array(found).T)] if found else [(0.0, 0.0)]
            print(f"{count:3} probes, {len(networks)} of {space}, {refused} refused: "
                  f"{told(scores)}", flush=True)  # fmt: skip


def held_out(target, count: int, say) -> dict[str, list[tuple[Path, float]]]:
    """Networks of three spaces as files, with their measured milliseconds; kept in the cache."""
    from latency.target import cache_directory
    from latency.tflite import convert
    from nas.profiling.learn_device import sampled
    from search_spaces import mnasnet as mnasnet_space

    def mnasnet(number: int) -> bytes:
        return convert.assemble(sampled(mnasnet_space, 100_000 + number))

    spaces = {"mnasnet": (mnasnet, count), "fbnet_style": (fbnet_style, count // 3)}
    spaces["efficientnet_style"] = (efficientnet_style, count // 3)
    folder = cache_directory() / "bench_predictors"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[tuple[Path, float]]] = {}
    for space, (make, wanted) in spaces.items():
        for number in range(wanted):
            path = folder / f"{space}{number}.tflite"
            known = path.with_suffix(".json")
            if not known.exists():
                path.write_bytes(make(number))
                latency = target.profile(path)
                if not latency.conditions["stable"]:
                    latency = target.profile(path, runs=200)
                known.write_text(json.dumps(latency.to_json()))
            found.setdefault(space, []).append((path, json.loads(known.read_text())["median_ms"]))
        say(f"{wanted} networks of {space} are timed")
    return found


def fbnet_style(seed: int) -> bytes:
    """FBNet's macro-architecture (arXiv 1812.03443, table 1) with random blocks, sizes, sigmas."""
    random = np.random.default_rng([7, seed])
    activation = str(random.choice(["relu", "hard_swish"]))
    writer = probe_networks.Writer(int(random.choice([128, 160, 192, 224])))
    x = writer.conv(writer.image, 16, 3, 2, activation)
    for filters, repeats, stride in FBNET:
        for repeat in range(repeats):
            kernel, expand = int(random.choice([3, 5])), int(random.choice([0, 1, 3, 6]))
            step = 1 if repeat else stride
            if expand == 0 and step == 1 and writer.shape(x)[-1] == filters:
                continue
            x = _inverted(writer, x, filters, kernel, step, max(expand, 1), activation, False)
    x = writer.conv(x, int(random.choice([1504, 1984])), 1, 1, activation)
    return writer.finish(writer.dense(writer.mean(x), 1000))


def efficientnet_style(seed: int) -> bytes:
    """EfficientNet (arXiv 1905.11946, table 1) at random kernels, expansions and scales."""
    random = np.random.default_rng([8, seed])
    width, depth = float(random.choice([0.5, 0.75, 1.0, 1.1])), float(random.choice([0.7, 1, 1.2]))
    writer = probe_networks.Writer(int(random.choice([128, 160, 192, 224, 240])))
    x = writer.conv(writer.image, _scaled(32, width), 3, 2, "silu")
    for index, (filters, repeats, stride) in enumerate(EFFICIENTNET):
        kernel, expand = int(random.choice([3, 5])), int(random.choice([3, 4, 6])) if index else 1
        for repeat in range(max(1, round(repeats * depth))):
            step = 1 if repeat else stride
            x = _inverted(writer, x, _scaled(filters, width), kernel, step, expand, "silu", True)
    x = writer.conv(x, _scaled(1280, width), 1, 1, "silu")
    return writer.finish(writer.dense(writer.mean(x), 1000))


def _inverted(writer, x, filters, kernel, stride, expand, activation, squeeze) -> int:
    """An inverted residual block."""
    inputs, channels = x, writer.shape(x)[-1]
    if expand > 1:
        x = writer.conv(x, channels * expand, 1, 1, activation)
    x = writer.depthwise(x, kernel, stride, activation)
    if squeeze:
        x = writer.squeeze_excite(x, max(1, channels // 4))
    x = writer.conv(x, filters, 1, 1)
    return writer.add(x, inputs) if writer.shape(x) == writer.shape(inputs) else x


def _scaled(filters: int, width: float) -> int:
    return max(8, int(filters * width + 4) // 8 * 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for command, function in (("tables", samples), ("transfer", transfer)):
        entry = commands.add_parser(command)
        entry.add_argument("--seeds", type=int, default=10)
        entry.add_argument("--only", nargs="+", help="devices")
        entry.add_argument("--counts", type=int, nargs="+", default=[10, 30, 100, 300])
        entry.set_defaults(function=function)
    entry = commands.add_parser("learn")
    entry.add_argument("--target", default="cpu:threads=1")
    entry.add_argument("--counts", type=int, nargs="+", default=[10, 40])
    entry.add_argument("--networks", type=int, default=100, help="of MnasNet's space, held out")
    entry.set_defaults(function=learn)
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
