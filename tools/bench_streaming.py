"""How much faster than speech a streaming Conformer runs here, and that streaming changes nothing.

python tools/bench_streaming.py conformer:tiny --model digits.keras

The three parts of a transducer (or the one of CTC) run as .tflite files on one thread, fed raw
audio of the spoken digits' takes 0-4 chunk by chunk. Printed: time per chunk and its share of the
audio's length (real-time factor), for the encoder alone and with greedy search; the difference of
what is encoded to the network for whole utterances in Keras; whether both give the same text.
Without --model the weights are random: the times hold, the text says nothing. A network that looks
ahead is timed as if it were causal, with 64 encoded frames of context.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from families import conformer  # noqa: E402
from families.layers import copy_weights  # noqa: E402
from families.objectives import decoding  # noqa: E402
from latency.tflite import convert  # noqa: E402
from nas.tasks import fsdd  # noqa: E402


def main() -> None:
    """Print one line per part and one per comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", help="conformer:VARIANT")
    parser.add_argument("--model", help="trained on task fsdd: .keras of the whole network")
    parser.add_argument("--objective", default="transducer", choices=fsdd.OBJECTIVES)
    parser.add_argument("--units", default="digits", choices=fsdd.UNITS)
    parser.add_argument("--chunk", type=int, default=4, help="encoded frames (default: 4, 160 ms)")
    parser.add_argument("--clips", type=int, default=60, help="of 300 in the test split")
    arguments = parser.parse_args()
    task = fsdd.load(objective=arguments.objective, units=arguments.units, augmented=False)
    config = streamable(conformer.VARIANTS[arguments.network.partition(":")[2]], task)
    whole = conformer.build(config)
    if arguments.model:
        import keras

        copy_weights(keras.models.load_model(arguments.model, compile=False), whole)
    stream = Streaming(whole, config, arguments.chunk)
    audio, frames, said = clips(config, task, arguments)
    print(
        f"{arguments.network} on {os.uname().machine}, 1 thread, load {os.getloadavg()[0]:.1f}; "
        f"{len(said)} clips, chunks of {stream.chunk_ms} ms"
    )
    heard = [stream.text(*clip) for clip in zip(audio, frames, strict=True)]
    texts, encoded = [text for text, _ in heard], [frames for _, frames in heard]
    report(stream, frames.sum() * fsdd.HOP_MS)
    expected_texts, expected = offline(whole, config, audio, frames)
    pairs = zip(encoded, expected, strict=True)
    difference = max(np.abs(found - whole[: len(found)]).max() for found, whole in pairs)
    print(f"streamed .tflite against Keras on whole clips: max difference {difference:.1e}")
    same = sum(a == b for a, b in zip(texts, expected_texts, strict=True))
    print(f"same text for {same} of {len(said)} clips")
    if arguments.model:
        names = [fsdd.text(text, arguments.units) for text in texts]
        right = sum(a == b for a, b in zip(names, said, strict=True))
        print(f"right as a whole, streamed: {right} of {len(said)}")


def streamable(config: conformer.Config, task) -> conformer.Config:
    """The variant for the task, from raw audio, causal."""
    fields = task.fields | {"audio_rate": fsdd.RATE}
    if not config.causal:
        fields |= {"causal": True, "left_context": 64}
    return dataclasses.replace(config, **fields)


def clips(config, task, arguments) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Audio (count, samples) of the test split spread evenly, real frames, what is said."""
    with np.load(pathlib.Path(os.environ["NAS_DATA"]) / "speech" / "fsdd.npz") as data:
        parts = np.split(data["audio"], data["end"][:-1])
        parts = [part for part, take in zip(parts, data["take"], strict=True) if take < 5]
    hop = fsdd.HOP_MS * config.audio_rate // 1000
    chosen = np.linspace(0, len(parts) - 1, min(arguments.clips, len(parts))).astype(int)
    audio = np.zeros((len(chosen), config.frames * hop), np.float32)
    for row, clip in zip(audio, chosen, strict=True):
        sound = parts[clip][: (config.frames - fsdd.SILENT) * hop]
        row[: len(sound)] = sound / np.float32(32768)
    _, targets = task.valid
    said = [fsdd.text(targets["labels"][clip], arguments.units) for clip in chosen]
    # Whole encoded frames: after its end a stream hears silence, where an utterance has padding.
    frames = -(-targets["frames"][chosen] // config.ratio) * config.ratio
    return audio, np.minimum(frames, config.frames), said


class Streaming:
    """The parts of a recognizer as LiteRT sessions, and how long each call took."""

    def __init__(self, whole, config: conformer.Config, chunk: int):
        self.config = dataclasses.replace(conformer.deploy(config), chunk=chunk)
        self.chunk_ms = chunk * config.ratio * fsdd.HOP_MS
        self.seconds: dict[str, list[float]] = {}
        forms = {"encoder": self.config}
        if config.objective == "transducer":
            forms |= {p: dataclasses.replace(config, part=p) for p in ("prediction", "joint")}
        self.sessions = {}
        for name, form in forms.items():
            model = conformer.build(form)
            copy_weights(whole, model)
            content = convert.convert(model)
            self.sessions[name] = convert.Session(content)
            print(f"{name}: {model.count_params():,} parameters, .tflite {len(content):,} bytes")

    def text(self, audio: np.ndarray, frames: int) -> tuple[list[int], np.ndarray]:
        """Labels of one clip, decoded while it is heard, and its encoded frames."""
        self.sessions["encoder"].reset()
        samples = self.sessions["encoder"].inputs["audio"][0][1]
        left, memory, pieces, last, labels = -(-frames // self.config.ratio), None, [], 0, []
        for start in range(0, len(audio), samples):
            if left <= 0:
                break
            piece = np.zeros((1, samples), np.float32)
            piece[0, : len(audio) - start] = audio[start : start + samples]
            (out,) = self._timed(
                "encoder", self.sessions["encoder"].step, {"audio": piece}
            ).values()
            out = out[:, :left]
            left -= out.shape[1]
            pieces.append(out[0])
            if self.config.objective == "ctc":
                for best in out[0].argmax(-1):
                    labels += [int(best)] if best not in (0, last) else []
                    last = best
            else:
                memory = decoding.greedy(out, [out.shape[1]], self.parts(), memory=memory)
                labels = memory.labels[0]
        return labels, np.concatenate(pieces)

    def parts(self) -> decoding.Parts:
        prediction, joint = self.sessions["prediction"], self.sessions["joint"]

        def predict(labels, state):
            outputs = self._timed("prediction", prediction, state | {"label": labels[:, None]})
            return outputs.pop("predicted"), outputs

        def join(encoded, predicted):
            return self._timed("joint", joint, {"encoded": encoded, "predicted": predicted})[
                "logits"
            ]

        def start(batch):
            shapes = {name: prediction.inputs[name] for name in prediction.state}
            return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}

        return decoding.Parts(predict, join, start)

    def _timed(self, name: str, function, inputs):
        started = time.perf_counter()
        outputs = function(inputs)
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)
        return outputs


def report(stream: Streaming, audio_ms: int) -> None:
    """Times of the parts, and the real-time factors."""
    total = {name: sum(seconds) * 1000 for name, seconds in stream.seconds.items()}
    for name, seconds in stream.seconds.items():
        print(
            f"{name}: {len(seconds)} calls, median {statistics.median(seconds) * 1000:.3f} ms, "
            f"slowest {max(seconds) * 1000:.3f} ms"
        )
    median = statistics.median(stream.seconds["encoder"]) * 1000
    print(f"real-time factor of the encoder: {median / stream.chunk_ms:.4f} (median chunk)")
    print(f"real-time factor of all parts: {sum(total.values()) / audio_ms:.4f} (all calls)")


def offline(whole, config, audio, frames) -> tuple[list[list[int]], np.ndarray]:
    """The same from whole clips in Keras."""
    form = dataclasses.replace(config, part=conformer.deploy(config).part)
    model = conformer.build(form)
    copy_weights(whole, model)
    inputs = {"audio": audio, "frames": frames.astype(np.int32)}
    lengths = -(-frames // config.ratio)
    encoded = model.predict(inputs, verbose=0, batch_size=32)
    if config.objective == "ctc":
        return decoding.ctc_greedy(encoded, lengths), encoded
    models = {}
    for part in ("prediction", "joint"):
        models[part] = conformer.build(dataclasses.replace(config, part=part))
        copy_weights(whole, models[part])

    def predict(labels, state):
        outputs = models["prediction"](state | {"label": labels[:, None]}, training=False)
        outputs = {name: np.asarray(value) for name, value in outputs.items()}
        return outputs.pop("predicted"), outputs

    def join(encoded, predicted):
        inputs = {"encoded": encoded, "predicted": predicted}
        return np.asarray(models["joint"](inputs, training=False)["logits"])

    def start(batch):
        inputs = {k: v for k, v in models["prediction"].input.items() if k != "label"}
        return {name: np.zeros((batch, *v.shape[1:]), v.dtype) for name, v in inputs.items()}

    found = decoding.greedy(encoded["encoded"], lengths, decoding.Parts(predict, join, start))
    return found.labels, encoded["encoded"]


if __name__ == "__main__":
    main()
