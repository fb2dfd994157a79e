"""`nas generate`: text from a language model, as it is said."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nas import backend, registry
from nas.text import tokenizer_files as tokenizers
from nas.text.tokenizer import Tokenizer

FILES = (".keras", ".bin", ".safetensors", ".json", ".tflite")
STEP = 64  # contexts are multiples of it: prompts of like length are compiled alike


@dataclasses.dataclass
class Said:
    """What a run said and how fast; `ended`: stop (the network's own), tokens, interrupted."""

    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    ended: str = "tokens"
    ready_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    def to_json(self) -> dict:
        steps = max(0, self.tokens - (self.ended != "stop"))  # the last token is not read
        return dataclasses.asdict(self) | {
            "prefill_tokens_per_s": self.prompt_tokens / self.prefill_s if self.prefill_s else None,
            "decode_tokens_per_s": steps / self.decode_s if steps and self.decode_s else None,
        }


def generate(arguments: argparse.Namespace) -> int:
    """`nas generate`: continue a prompt, or write the step that a device runs, or both."""
    _check(arguments)
    started = time.perf_counter()
    source, vocabulary = _opened(arguments.model)
    tokenizer = _tokenizer(arguments, vocabulary)
    if arguments.export:
        _export(arguments, source, tokenizer)
        if arguments.prompt is None:
            return 0
    ids = [] if tokenizer.start is None else [tokenizer.start]
    ids += tokenizer.encode(arguments.prompt or "")
    if not ids:
        raise ValueError("--prompt is empty, and this tokenizer has no token that starts a text")
    network = _network(arguments, source, len(ids))
    network.read(ids)  # compiles
    network.read(ids[:1])
    network.reset()
    said = Said(ready_s=time.perf_counter() - started)
    choose = sampler(arguments.temperature, arguments.top_k, arguments.seed)
    say = _stream if not arguments.json else lambda text: None
    run(network, tokenizer, ids, arguments.tokens, choose, said, say)
    if arguments.json:
        print(json.dumps(said.to_json(), indent=1))
    else:
        print(flush=True)
        print(_told(said), file=sys.stderr)
    return 130 if said.ended == "interrupted" else 0


def run(
    network: Any,
    tokenizer: Tokenizer,
    ids: list[int],
    count: int,
    choose: Callable[[np.ndarray], int],
    said: Said,
    say: Callable[[str], None],
) -> None:
    """Read `ids`, then say up to `count` tokens: text goes to `say` as it comes, and into `said`.

    Ctrl-C ends the text.
    """
    said.prompt_tokens = len(ids)

    def tokens() -> Iterator[int]:
        since = time.perf_counter()
        logits = network.read(ids)
        said.prefill_s = time.perf_counter() - since
        while said.tokens < count:
            token = choose(logits[: tokenizer.vocabulary])
            if token in tokenizer.stops:
                said.ended = "stop"
                return
            said.tokens += 1
            yield token
            if said.tokens < count:
                since = time.perf_counter()
                logits = network.read([token])
                said.decode_s += time.perf_counter() - since

    try:
        for text in tokenizer.stream(itertools.chain(ids, tokens())):
            said.text += text
            say(text)
    except KeyboardInterrupt:
        said.ended = "interrupted"


def sampler(temperature: float = 0.0, top_k: int = 0, seed: int = 0) -> Callable[[np.ndarray], int]:
    """A function logits (vocabulary,) -> token: the likeliest at temperature 0, else one drawn.

    `top_k` draws from that many of the likeliest, 0 from all.
    """
    generator = np.random.default_rng(seed)

    def choose(logits: np.ndarray) -> int:
        if not temperature:
            return int(np.argmax(logits))
        scaled = np.asarray(logits, np.float64) / temperature
        if 0 < top_k < len(scaled):
            least = np.partition(scaled, -top_k)[-top_k]
            scaled[scaled < least] = -np.inf
        shares = np.exp(scaled - scaled.max())
        return int(generator.choice(len(shares), p=shares / shares.sum()))

    return choose


def _check(arguments: argparse.Namespace) -> None:
    if arguments.tokens < 1 or arguments.top_k < 0 or not 0 <= arguments.temperature < np.inf:
        raise ValueError("--tokens must be at least 1, --top-k and --temperature at least 0")
    if arguments.context is not None and arguments.context < 1:
        raise ValueError(f"--context {arguments.context}; expected at least 1")
    if arguments.prompt is None and not arguments.export:
        raise ValueError("name a --prompt, or a file to --export the step to")
    if arguments.export and pathlib.Path(arguments.export).suffix != ".tflite":
        raise ValueError(f"--export {arguments.export}: expected a name that ends in .tflite")
    if pathlib.Path(arguments.model).suffix == ".tflite" and (
        arguments.no_cache or arguments.export or arguments.context
    ):
        raise ValueError(
            "a .tflite file is a step already: without --no-cache, --context, --export"
        )


def _opened(model: str) -> tuple[Any, int]:
    """A `language.LiteRT`, or a Keras network with its Config; and its vocabulary."""
    path = pathlib.Path(model).expanduser()
    if path.suffix == ".tflite":
        from nas.text.language_models import LiteRT

        network = LiteRT(path)
        return network, network.vocabulary
    backend.load()
    if not path.is_dir() and path.suffix not in FILES:
        network, config = _catalog(model)
    elif path.suffix == ".keras":
        from nas.files.readers import decoder_config

        found = decoder_config.read(path)
        network, config = found.network(), found.config
    else:
        from nas.files.readers import any_checkpoint

        found = any_checkpoint.read(path)
        network, config = found.network(), found.config
    if not hasattr(config, "vocabulary") or not hasattr(config, "cache"):
        raise ValueError(f"{model} holds {type(config).__module__}, not a language model")
    return (network, config), config.vocabulary


def _catalog(text: str) -> tuple[Any, Any]:
    """A variant of the decoder family, `decoder:NAME[,weights=FILE]`; without weights, random."""
    named = registry.parse(text)
    options = dict(named.options)
    if named.name != "decoder" or options.keys() - {"weights"}:
        raise ValueError(
            f"{text!r}; expected a file ({', '.join(FILES)}) or decoder:VARIANT[,weights=FILE]"
        )
    import keras

    from nas.files.readers import any_checkpoint
    from nas.files.readers.checkpoint import Checkpoint

    family, config = registry.network(str(dataclasses.replace(named, options=())))
    if "weights" in options:
        return any_checkpoint.read(options["weights"], config).network(), config
    Checkpoint(config, {}, text).refuse_too_large()
    keras.utils.set_random_seed(0)
    return family.build(config), config


def _tokenizer(arguments: argparse.Namespace, vocabulary: int) -> Tokenizer:
    if arguments.tokenizer:
        found = tokenizers.read(arguments.tokenizer)
        if found.vocabulary > vocabulary:
            raise ValueError(
                f"{arguments.tokenizer} has {found.vocabulary} pieces, {arguments.model} knows "
                f"{vocabulary}"
            )
        return found
    path = pathlib.Path(arguments.model).expanduser()
    return tokenizers.beside(path / "model" if path.is_dir() else path, vocabulary)


def _network(arguments: argparse.Namespace, source: Any, prompt: int) -> Any:
    """What reads tokens, with room for the prompt and what is to be said, up to its length."""
    if not isinstance(source, tuple):
        return source
    from nas.text import language_models

    model, config = source
    needed = -(-(prompt + arguments.tokens) // STEP) * STEP
    context = arguments.context or min(needed, max(config.length, config.cache))
    kind = language_models.Uncached if arguments.no_cache else language_models.Cached
    return kind(model, config, context)


def _export(arguments: argparse.Namespace, source: Any, tokenizer: Tokenizer) -> None:
    from nas.text import language_models

    model, config = source
    path = pathlib.Path(arguments.export)
    context = arguments.context or max(config.length, config.cache)
    size = language_models.write_step(path, model, config, context)
    beside = path.with_suffix(tokenizer.suffix)
    beside.write_bytes(tokenizer.to_bytes())
    print(
        f"{path}: one token a call, a cache of {context} tokens, {size / 2**20:.2f} MB; {beside}",
        file=sys.stderr,
    )


def _stream(text: str) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        print(text, end="", flush=True)


def _told(said: Said) -> str:
    told = said.to_json()
    parts = [f"prompt: {said.prompt_tokens} tokens"]
    if told["prefill_tokens_per_s"]:
        parts[0] += f", {told['prefill_tokens_per_s']:.0f} a second"
    parts.append(f"said: {said.tokens} tokens")
    if told["decode_tokens_per_s"]:
        parts[1] += f", {told['decode_tokens_per_s']:.0f} a second"
    return "; ".join(parts) + f"; ready after {said.ready_s:.1f} s"
