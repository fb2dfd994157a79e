"""Language models that predict the next token: with a cache, without, from a .tflite file."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from latency.system.atomic_write import atomic_write
from latency.system.silent_stderr import silent_stderr
from latency.tflite import convert
from nas.files.hand_over.attach import write_script
from nas.files.hand_over.model_card import Origin, without_folders
from nas.files.writers.tflite.metadata import with_metadata
from nas.files.writers.written_file import REPORT, CannotWrite
from nas.tasks.text import characters_of, preprocessing_of

PARITY = 1e-4  # the exported file must give the network's own outputs
SHORT = 8  # so few tokens are read one by one: a form of their own takes seconds to compile
LONGEST_READ = 128  # tokens that a network with a cache reads in one call
STEP = 64  # contexts are multiples of it: prompts of like length are compiled alike


class LanguageModel(Protocol):
    """What reads tokens one after the other and predicts the next."""

    vocabulary: int

    def reset(self) -> None:
        """Forget what was read."""

    def read(self, tokens: list[int]) -> np.ndarray:
        """Logits (vocabulary,) of the token after all that was read since `reset`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """A network of families/decoder.py and its Config."""

    model: Any
    config: Any

    @classmethod
    def read(cls, path: str | pathlib.Path) -> "Decoder":
        """The decoder in a .keras file, .bin of llama2.c, .safetensors, or folder of them.

        Raises `ValueError` where the file holds another network.
        """
        path = pathlib.Path(path)
        if path.suffix == ".keras":
            from nas.files.readers import decoder_config

            found = decoder_config.read(path)
        else:
            from nas.files.readers import any_checkpoint

            found = any_checkpoint.read(path)
        return cls._of(found.network(), found.config, str(path))

    @classmethod
    def of_config(cls, config: Any, weights: str | None = None, name: str = "it") -> "Decoder":
        """The network of a Config, its weights from a file, or random; `name` is for errors."""
        import keras

        from families import decoder
        from nas.files.readers import any_checkpoint
        from nas.files.readers.checkpoint import Checkpoint

        if weights is not None:
            return cls._of(any_checkpoint.read(weights, config).network(), config, name)
        Checkpoint(config, {}, name).refuse_too_large()
        keras.utils.set_random_seed(0)
        return cls(decoder.build(config), config)

    @classmethod
    def _of(cls, model: Any, config: Any, name: str) -> "Decoder":
        if not type(config).__module__.endswith("decoder"):
            raise ValueError(f"{name} holds {type(config).__module__}, not a language model")
        return cls(model, config)

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""
        return self.config.vocabulary

    @property
    def longest(self) -> int:
        """Tokens of the longest text it is made for."""
        return max(self.config.length, self.config.cache)

    def language_model(
        self, *, room: int, context: int | None = None, cache: bool = True
    ) -> LanguageModel:
        """The network as what reads tokens.

        room: tokens of the prompt and of what is to follow. context: tokens that are remembered;
        None: `room`, at most `longest`. cache: keep keys and values, else read all again.
        """
        needed = -(-room // STEP) * STEP
        kind = Cached if cache else Uncached
        return kind(self.model, self.config, context or min(needed, self.longest))


class Cached:
    """A decoder that remembers `context` tokens: long inputs are read many tokens at a time.

    What is older falls out of the cache: text may be longer than `context`. `model` is the network
    in any form; its weights are used where they are.
    """

    def __init__(self, model: Any, config: Any, context: int) -> None:
        self._model, self._context = model, context
        self._config = dataclasses.replace(
            config, length=1, cache=context, last_only=True, dropout=0.0
        )
        self._forms: dict[int, tuple[Callable, Callable]] = {}
        self.vocabulary = config.vocabulary
        self.reset()

    def reset(self) -> None:
        """Forget what was read."""
        self._caches: dict[str, Any] | None = None
        self._position = 0

    def read(self, tokens: list[int]) -> np.ndarray:
        """Logits of the token after these."""
        length = 1
        if len(tokens) > SHORT:
            length = min(self._context, LONGEST_READ, 1 << (len(tokens) - 1).bit_length())
        padding = -len(tokens) % length
        padded = np.array([0] * padding + list(tokens), np.int32).reshape(-1, 1, length)
        step, caches = self._form(length)
        if self._caches is None:
            self._caches = caches()
        elif padding:  # it would stand between what was read before and now
            for token in tokens:
                logits = self.read([token])
            return logits
        position = self._position - padding
        for part in padded:
            logits, self._caches = step(part, np.array([[position]], np.int32), self._caches)
            position += length
        self._position += len(tokens)
        return np.asarray(logits)[0, -1]

    def _form(self, length: int) -> tuple[Callable, Callable]:
        """The network that reads `length` tokens, compiled, and its empty caches."""
        if length not in self._forms:
            config = dataclasses.replace(self._config, length=length, last_only=length > 1)
            self._forms[length] = _compiled(config, self._model)
        return self._forms[length]


class Uncached:
    """A decoder that reads everything again for every token, the last `context` at most."""

    def __init__(self, model: Any, config: Any, context: int) -> None:
        form = dataclasses.replace(config, length=context, cache=0, last_only=False, dropout=0.0)
        self._run, _ = _compiled(form, model)
        self._context = context
        self.vocabulary = config.vocabulary
        self.reset()

    def reset(self) -> None:
        """Forget what was read."""
        self._tokens: list[int] = []

    def read(self, tokens: list[int]) -> np.ndarray:
        """Logits of the token after these."""
        self._tokens = (self._tokens + list(tokens))[-self._context :]
        padding = [0] * (self._context - len(self._tokens))  # behind: no token sees it
        logits = self._run(np.array([self._tokens + padding], np.int32))
        return np.asarray(logits[0, len(self._tokens) - 1])


class LiteRT:
    """The step of a decoder in a .tflite file, which `write_step` writes."""

    def __init__(self, path: str | pathlib.Path, threads: int = 1) -> None:
        self._session = convert.Session(path, threads)
        known = self._session.inputs
        if not {"tokens", "position"} <= known.keys() or "logits" not in self._session.outputs:
            raise ValueError(f"{path}: no step of a decoder: its inputs are {sorted(known)}")
        self._length = known["tokens"][0][1]
        self.vocabulary = self._session.outputs["logits"][0][-1]
        self.reset()

    def reset(self) -> None:
        """Forget what was read."""
        self._session.reset()
        self._position = 0

    def read(self, tokens: list[int]) -> np.ndarray:
        """Logits of the token after these."""
        padding = -len(tokens) % self._length
        if padding and self._position:
            raise ValueError(f"a step of {self._length} tokens cannot read {len(tokens)} more")
        position = self._position - padding
        padded = np.array([0] * padding + list(tokens), np.int32).reshape(-1, 1, self._length)
        for part in padded:
            inputs = {"tokens": part, "position": np.array([[position]], np.int32)}
            logits = self._session.step(inputs)["logits"]
            position += self._length
        self._position += len(tokens)
        return np.array(logits[0, -1])


def write_step(
    path: str | pathlib.Path, model: Any, config: Any, context: int, tokenizer: Any = None
) -> int:
    """Write the step of one token with a cache of `context` as .tflite; returns its bytes.

    The file is run, and must give the network's own logits within 1e-4, else `CannotWrite`. It
    holds a model card, with the vocabulary where `tokenizer` is one of characters; use.py beside it
    runs it on a text.
    """
    from families import decoder
    from families.layers import copy_weights

    form = dataclasses.replace(decoder.deploy(config), cache=context, dropout=0.0)
    step = decoder.build(form)
    copy_weights(model, step)
    with silent_stderr():  # under JAX this imports TensorFlow, which greets
        content = convert.bytes_of(step)
    path = pathlib.Path(path)
    origin = Origin(path.stem, without_folders(model.name))
    if tokenizer is not None:
        labels, seen = characters_of(tokenizer), preprocessing_of(tokenizer)
        origin = dataclasses.replace(origin, labels=labels, preprocessing=seen)
    content = with_metadata(content, origin.card(step))
    write_script(path.parent)
    with atomic_write(path) as partial:
        partial.write_bytes(content)
        mine, theirs = LiteRT(partial), Cached(model, config, context)
        for token in (0, config.vocabulary - 1, 1):
            expected = theirs.read([token])
            difference = float(np.abs(mine.read([token]) - expected).max())
            if not difference <= PARITY * max(1.0, float(np.abs(expected).max())):
                raise CannotWrite(
                    f"{path.name} of {form!r} differs from the network by {difference:.1e}; "
                    f"expected at most {PARITY}{REPORT}"
                )
    return len(content)


def _compiled(form: Any, model: Any) -> tuple[Callable, Callable]:
    """Another form of a network, compiled for the backend, with the weights of `model`.

    Without a cache: tokens -> logits. With one: (tokens, position, caches) -> (logits, caches).
    And what makes empty caches.
    """
    import keras

    from families import decoder
    from families.layers.shapes import shapes_only

    with shapes_only():
        shaped = decoder.build(form)
    held = {weight.path: weight.value for weight in model.variables}
    weights = [
        [held[weight.path] for weight in some]
        for some in (shaped.trainable_variables, shaped.non_trainable_variables)
    ]

    def call(weights, inputs):
        return shaped.stateless_call(*weights, inputs, training=False)[0]

    def step(weights, tokens, position, caches):
        outputs = dict(call(weights, {"tokens": tokens, "position": position} | caches))
        return outputs.pop("logits"), outputs

    def empty():
        inputs = {name: tensor for name, tensor in shaped.input.items() if "_cache_" in name}
        return {n: keras.ops.zeros((1, *t.shape[1:]), t.dtype) for n, t in inputs.items()}

    function = step if form.cache else call
    if keras.backend.backend() == "jax":
        import jax

        # The caches of before are written over where the backend can.
        compiled = jax.jit(function, donate_argnums=(3,) if form.cache else ())
        return (lambda *inputs: compiled(weights, *inputs)), empty
    if keras.backend.backend() != "tensorflow":
        return (lambda *inputs: function(weights, *inputs)), empty
    import tensorflow as tf

    compiled = tf.function(
        lambda *inputs: function(weights, *inputs), autograph=False, jit_compile=True
    )
    return (lambda *inputs: compiled(*_constants(inputs))), empty


def _constants(inputs: tuple) -> list:
    import tensorflow as tf

    return [tf.constant(one) if isinstance(one, np.ndarray) else one for one in inputs]
