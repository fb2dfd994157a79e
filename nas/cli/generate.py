"""`nas generate`: from flags to `nas.text.generation.generate`; the text goes to stdout."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

from nas import backend, registry

if TYPE_CHECKING:
    from nas.text.generation import Generated
    from nas.text.language_models import Decoder, LanguageModel
    from nas.text.tokenizer import Tokenizer

EPILOG = """examples:
  nas generate stories260K.bin --prompt "Once upon a time"
  nas generate shakespeare.keras --prompt "ROMEO:" --tokens 500 --temperature 0.8 --seed 1
  nas generate stories260K.bin --export step.tflite && nas generate step.tflite --prompt Lily
The text goes to stdout, tokens a second to stderr."""
FILES = (".keras", ".bin", ".safetensors", ".json", ".tflite")


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """The parser of `nas generate`."""
    parser = commands.add_parser(
        "generate",
        parents=[common],
        help="let a language model continue a text, and show it as it comes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument(
        "model",
        help=".keras, .bin (llama2.c), .safetensors (or its folder), .tflite, or decoder:NAME",
    )
    parser.add_argument("--prompt", help="the text to continue; '' begins one")
    parser.add_argument("--tokens", type=int, default=256, help="at most (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0: always the likeliest (%(default)s)"
    )
    parser.add_argument("--top-k", type=int, default=0, help="draw from so many (0: all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    parser.add_argument("--tokenizer", help="its file (the one beside the model)")
    parser.add_argument(
        "--context", type=int, help="tokens that are remembered (what is needed, up to its length)"
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="read the whole text again for every token"
    )
    parser.add_argument("--export", metavar="FILE", help="write the step of one token as .tflite")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Continue a prompt, or write the step that a device runs, or both; 130 if interrupted."""
    _check(arguments)
    from nas.text.generation import generate, prompt_ids
    from nas.text.language_models import Decoder

    started = time.perf_counter()
    source = _opened(arguments.model)
    tokenizer = _tokenizer(arguments, source.vocabulary)
    if arguments.export and isinstance(source, Decoder):
        _export(arguments, source, tokenizer)
        if arguments.prompt is None:
            return 0
    room = len(prompt_ids(tokenizer, arguments.prompt)) + arguments.tokens
    network = _network(arguments, source, room)
    opened_s = time.perf_counter() - started
    result = generate(
        network,
        tokenizer,
        arguments.prompt,
        tokens=arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
        on_text=(lambda text: None) if arguments.json else _print,
    )
    result.ready_s += opened_s
    if arguments.json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        print(flush=True)
        print(_speed(result), file=sys.stderr)
    return 130 if result.ended == "interrupted" else 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.tokens < 1 or arguments.top_k < 0 or not 0 <= arguments.temperature < float("inf"):
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


def _opened(model: str) -> "LanguageModel | Decoder":
    """A step in a .tflite file, or a decoder with its Config."""
    from nas.text.language_models import Decoder, LiteRT

    path = pathlib.Path(model).expanduser()
    if path.suffix == ".tflite":
        return LiteRT(path)
    backend.load()
    if path.is_dir() or path.suffix in FILES:
        return Decoder.read(path)
    named = registry.parse(model)
    options = dict(named.options)
    if named.name != "decoder" or options.keys() - {"weights"}:
        raise ValueError(
            f"{model!r}; expected a file ({', '.join(FILES)}) or decoder:VARIANT[,weights=FILE]"
        )
    _, config = registry.network(str(dataclasses.replace(named, options=())))
    return Decoder.of_config(config, options.get("weights"), name=model)


def _tokenizer(arguments: argparse.Namespace, vocabulary: int) -> "Tokenizer":
    from nas.text import tokenizer_files

    if arguments.tokenizer:
        found = tokenizer_files.read(arguments.tokenizer)
        if found.vocabulary > vocabulary:
            raise ValueError(
                f"{arguments.tokenizer} has {found.vocabulary} pieces, {arguments.model} knows "
                f"{vocabulary}"
            )
        return found
    path = pathlib.Path(arguments.model).expanduser()
    return tokenizer_files.beside(path / "model" if path.is_dir() else path, vocabulary)


def _network(
    arguments: argparse.Namespace, source: "LanguageModel | Decoder", room: int
) -> "LanguageModel":
    from nas.text.language_models import Decoder

    if not isinstance(source, Decoder):
        return source
    return source.language_model(room=room, context=arguments.context, cache=not arguments.no_cache)


def _export(arguments: argparse.Namespace, source: "Decoder", tokenizer: "Tokenizer") -> None:
    from nas.text.language_models import write_step

    path = pathlib.Path(arguments.export)
    context = arguments.context or source.longest
    size = write_step(path, source.model, source.config, context, tokenizer)
    beside = path.with_suffix(tokenizer.suffix)
    beside.write_bytes(tokenizer.to_bytes())
    print(
        f"{path}: one token a call, a cache of {context} tokens, {size / 2**20:.2f} MB; {beside}",
        file=sys.stderr,
    )


def _print(text: str) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        print(text, end="", flush=True)


def _speed(result: "Generated") -> str:
    parts = [f"prompt: {result.prompt_tokens} tokens", f"said: {result.tokens} tokens"]
    rates = (result.prefill_tokens_per_s, result.decode_tokens_per_s)
    for place, rate in enumerate(rates):
        parts[place] += f", {rate:.0f} a second" if rate else ""
    return "; ".join(parts) + f"; ready after {result.ready_s:.1f} s"
