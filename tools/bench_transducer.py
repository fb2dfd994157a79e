"""Time and memory of the transducer loss with its gradient, against the naive way.

python tools/bench_transducer.py --sizes 8,100,20,128 8,200,40,256

Naive: a log-softmax of all logits, then automatic differentiation through the same recursion over
anti-diagonals. Every figure is of a process of its own, ours and naive in turns; memory is what the
peak of the process grew by from the first call on, the logits (already there) not counted.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SIZES = ("32,25,8,32", "8,100,20,128", "8,200,40,256", "4,400,80,512")
KINDS = ("ours", "naive")


def main() -> None:
    """Print a line per size and kind, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", nargs="+", default=SIZES, help="batch,T,U,V (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=5, help="timed runs per process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one, arguments.sizes[0], arguments.runs)))
        return
    print(f"tensorflow, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for size in arguments.sizes:
        results = {kind: [] for kind in KINDS}
        for _ in range(arguments.repeats):
            for kind in KINDS:
                results[kind].append(measured_apart(kind, size, arguments.runs))
        report(size, results)


def report(size: str, results: dict) -> None:
    """One size: medians over the processes."""
    medians = {}
    for kind, found in results.items():
        medians[kind] = {name: statistics.median(one[name] for one in found) for name in found[0]}
        print(
            f"batch,T,U,V={size:14} {kind:6} {medians[kind]['ms']:8.1f} ms  "
            f"+{medians[kind]['peak_mb']:7.1f} MB (logits {medians[kind]['logits_mb']:.1f} MB)  "
            f"trace {medians[kind]['trace_s']:.2f} s"
        )
    ours, naive = medians["ours"], medians["naive"]
    print(
        f"{'':26} naive / ours: time {naive['ms'] / ours['ms']:.2f}, memory "
        f"{naive['peak_mb'] / ours['peak_mb']:.2f}; losses differ by "
        f"{abs(naive['loss'] - ours['loss']) / abs(ours['loss']):.1e}, gradients by "
        f"{abs(naive['gradient'] - ours['gradient']) / ours['gradient']:.1e} (relative)"
    )


def measured_apart(kind: str, size: str, runs: int) -> dict:
    """`measured` in a process of its own: peaks only grow."""
    command = [sys.executable, __file__, "--one", kind, "--sizes", size, "--runs", str(runs)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measured(kind: str, size: str, runs: int) -> dict:
    """Loss and gradient as one TensorFlow function on random logits."""
    import numpy as np
    import tensorflow as tf

    batch, frames, labels, vocabulary = map(int, size.split(","))
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((batch, frames, labels + 1, vocabulary), np.float32)
    targets = generator.integers(1, vocabulary, (batch, labels))
    lengths = np.full(batch, frames), np.full(batch, labels)
    function = {"ours": ours, "naive": naive}[kind]

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            losses = function(x, targets, *lengths)
        return losses, tape.gradient(losses, x)

    started = time.perf_counter()
    step = tf.function(run, autograph=False).get_concrete_function(tf.TensorSpec(logits.shape))
    trace_s = time.perf_counter() - started
    small = tf.constant(logits)
    before = peak_mb()
    losses, gradient = step(small)
    loss, norm = float(tf.reduce_mean(losses)), float(tf.norm(gradient))
    del losses, gradient
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        step(small)
        times.append(1000 * (time.perf_counter() - started))
    return {
        "ms": statistics.median(times),
        "peak_mb": peak_mb() - before,
        "logits_mb": logits.nbytes / 2**20,
        "trace_s": trace_s,
        "loss": loss,
        "gradient": norm,
    }


def peak_mb() -> float:
    """Of this process, so far (ru_maxrss counts KiB on Linux, bytes on macOS)."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def ours(logits, labels, frame_lengths, label_lengths):
    """The loss under test."""
    from families.objectives.transducer import transducer_loss

    return transducer_loss(logits, labels, frame_lengths, label_lengths)


def naive(logits, labels, frame_lengths, label_lengths):
    """Full lengths only; the recursion is differentiated."""
    import tensorflow as tf

    scores = tf.nn.log_softmax(logits)
    batch, frames, rows, _ = scores.shape
    places = tf.pad(tf.constant(labels), [[0, 0], [0, 1]])
    label = tf.gather(
        scores, tf.broadcast_to(places[:, None, :], (batch, frames, rows)), axis=-1, batch_dims=3
    )
    never = -1e30
    row = tf.range(rows)[None, None]

    def diagonals(lattice):
        padded = tf.pad(
            tf.transpose(lattice, (0, 2, 1)), [[0, 0], [0, 0], [0, rows]], constant_values=never
        )
        padded = tf.reshape(padded, (batch, -1))[:, :-rows]
        return tf.transpose(tf.reshape(padded, (batch, rows, frames + rows - 1)), (2, 0, 1))

    blank = diagonals(scores[..., 0])
    label = diagonals(tf.where(row < rows - 1, label, never))
    start = tf.tile(tf.where(row[0] == 0, 0.0, never), (batch, 1))

    def step(alpha, arcs):
        stay, go = alpha + arcs[0], alpha + arcs[1]
        go = tf.concat([tf.fill((batch, 1), never), go[:, :-1]], axis=1)
        top = tf.stop_gradient(tf.maximum(stay, go))
        return top + tf.math.log(tf.exp(stay - top) + tf.exp(go - top))

    alphas = tf.scan(step, (blank, label), initializer=start)
    return -alphas[-1, :, -1]


if __name__ == "__main__":
    main()
