"""Tokens a second of a language model in five forms, and whether each says the known story.

    python tools/bench_generate.py [--runs 3] [MODEL [PROMPT]]

The forms: TensorFlow and JAX, each with a cache of keys and values and reading everything again,
and the exported .tflite step. Every run is a `nas generate` of its own; the fastest counts. Without
a MODEL: stories260K.bin of the data folder (NAS_DATA), against what llama2.c says of it.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
DATA = pathlib.Path(os.environ.get("NAS_DATA", ROOT.parent / "shared" / "data"))
# llama2.c, doc/stories260K.md: run stories260K.bin -z tok512.bin -t 0.0
KNOWN = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. "
    "She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she said, \"I'm sorry, mom. I didn't know what to do.\" "
    "Her mom said, \"Don't worry, Lily. We can help you."
)


def said(model: str, prompt: str, tokens: int, backend: str, *options: str) -> dict:
    """The record of one `nas generate`."""
    command = [sys.executable, "-m", "nas", "generate", model, "--prompt", prompt, "--json"]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(
        [*command, "--tokens", str(tokens), *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    top.add_argument("model", nargs="?", default=str(DATA / "checkpoints" / "stories260K.bin"))
    top.add_argument("prompt", nargs="?", default="Once upon a time")
    top.add_argument("--runs", type=int, default=3)
    top.add_argument("--tokens", type=int, default=256)
    arguments = top.parse_args()
    known = KNOWN if pathlib.Path(arguments.model).name == "stories260K.bin" else None
    with tempfile.TemporaryDirectory() as folder:
        step = str(pathlib.Path(folder, "step.tflite"))
        subprocess.run(
            [sys.executable, "-m", "nas", "generate", arguments.model, "--export", step]
            + ["--context", str(-(-(arguments.tokens + 16) // 64) * 64)],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        ways = {
            "TensorFlow, cache": (arguments.model, "tensorflow"),
            "TensorFlow, no cache": (arguments.model, "tensorflow", "--no-cache"),
            "JAX, cache": (arguments.model, "jax"),
            "JAX, no cache": (arguments.model, "jax", "--no-cache"),
            ".tflite step, cache": (step, "tensorflow"),
        }
        print(f"{arguments.model}, {arguments.tokens} tokens after {arguments.prompt!r}:")
        print(f"{'':22}{'prompt tok/s':>13}{'said tok/s':>12}{'ready s':>9}  text")
        texts = set()
        for name, (model, *how) in ways.items():
            runs = [
                said(model, arguments.prompt, arguments.tokens, *how) for _ in range(arguments.runs)
            ]
            texts |= {run["text"] for run in runs}
            best = max(runs, key=lambda run: run["decode_tokens_per_s"])
            prefill = max(run["prefill_tokens_per_s"] for run in runs)
            verdict = "-"
            if known is not None:
                same = all(_same(run["text"], known) for run in runs)
                verdict = "the known story" if same else "DIFFERS from the known story"
            print(
                f"{name:22}{prefill:13.0f}{best['decode_tokens_per_s']:12.0f}"
                f"{min(run['ready_s'] for run in runs):9.1f}  {verdict}",
                flush=True,
            )
        print("all texts are equal" if len(texts) == 1 else f"{len(texts)} DIFFERENT texts")


def _same(text: str, known: str) -> bool:
    return text.startswith(known) or (len(text) > 20 and known.startswith(text))


if __name__ == "__main__":
    main()
