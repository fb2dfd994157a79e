"""Text from a language model, token by token."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nas import interruption
from nas.text.language_models import LanguageModel
from nas.text.tokenizer import Tokenizer


@dataclasses.dataclass
class Generated:
    """A text and how fast it came.

    text: the prompt and what follows it. ended: "stop" (the network ended its text), "tokens" (as
    many as asked for) or "interrupted". ready_s: until everything was compiled. prefill_s,
    decode_s: reading the prompt, and making the tokens after the first.
    """

    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    ended: str = "tokens"
    ready_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """How fast the prompt was read."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """How fast tokens were made, after the first."""
        steps = max(0, self.tokens - (self.ended != "stop"))  # the last token is not read
        return steps / self.decode_s if steps and self.decode_s else None

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return dataclasses.asdict(self) | {
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
        }


def generate(
    network: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    on_text: Callable[[str], None] = lambda text: None,
) -> Generated:
    """Let a language model continue a text; Ctrl-C ends the text, not the program.

    Args:
        network: What reads tokens (nas/text/language_models.py); it begins anew.
        tokenizer: That of the text the network was trained on.
        prompt: The text to continue.
        tokens: Most tokens to add.
        temperature: 0 takes the likeliest token; else logits are divided by it and one is drawn.
        top_k: Draw from that many of the likeliest, 0 from all.
        seed: Of what is drawn.
        on_text: Called with each piece of text as it comes, the prompt's pieces first.

    Raises:
        ValueError: A figure out of range, or an empty prompt where no token starts a text.

    >>> class Alternating:  # says "b" after "a" and "a" after "b"
    ...     vocabulary = 2
    ...     def reset(self): pass
    ...     def read(self, tokens): return np.eye(2)[1 - tokens[-1]]
    >>> from nas.text.tokenizer import Characters
    >>> generate(Alternating(), Characters("ab"), "a", tokens=4).text
    'ababa'
    """
    if tokens < 1 or top_k < 0 or not 0 <= temperature < np.inf:
        raise ValueError(
            f"tokens {tokens}, top_k {top_k}, temperature {temperature}; expected tokens of at "
            "least 1, top_k and temperature of at least 0"
        )
    ids = prompt_ids(tokenizer, prompt)
    choose = sampler(temperature, top_k, seed)
    started = time.perf_counter()
    network.reset()
    network.read(ids)  # compiles what reads the prompt, and what reads one token
    network.read(ids[:1])
    network.reset()
    result = Generated(prompt_tokens=len(ids), ready_s=time.perf_counter() - started)

    def following() -> Iterator[int]:
        since = time.perf_counter()
        logits = network.read(ids)
        result.prefill_s = time.perf_counter() - since
        while result.tokens < tokens:
            token = choose(logits[: tokenizer.vocabulary])
            if token in tokenizer.stops:
                result.ended = "stop"
                return
            result.tokens += 1
            yield token
            if result.tokens < tokens:
                since = time.perf_counter()
                logits = network.read([token])
                result.decode_s += time.perf_counter() - since

    try:
        for text in tokenizer.stream(itertools.chain(ids, following())):
            result.text += text
            on_text(text)
    except KeyboardInterrupt:
        interruption.hand_over()
        result.ended = "interrupted"
    return result


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt, with the one that starts a text; `ValueError` where there is none."""
    ids = [] if tokenizer.start is None else [tokenizer.start]
    ids += tokenizer.encode(prompt)
    if not ids:
        raise ValueError("the prompt is empty, and this tokenizer has no token that starts a text")
    return ids


def sampler(temperature: float = 0.0, top_k: int = 0, seed: int = 0) -> Callable[[np.ndarray], int]:
    """A function logits (vocabulary,) -> token: the likeliest at temperature 0, else one drawn.

    `top_k` draws from that many of the likeliest, 0 from all.

    >>> sampler()(np.array([0.1, 2.0, 0.3]))
    1
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
