"""What was applied to examples before a network saw them, so that its user does the same."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """A network sees (example / scale - mean) / std, for images of each channel.

    kind: what an example is: "image" (pixels 0 to 255), "audio" (samples -1 to 1), "text" (tokens)
    or "array" (as in the data). aspect, background: of images that are resized, as
    `nas.files.hand_over.use.picture` takes them. sample_rate: of audio, in Hz. tokenizer: of text,
    "characters" or another's name.

    >>> Preprocessing("image", scale=127.5, mean=(1.0,)).to_json()["scale"]
    127.5
    """

    kind: str = "array"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    aspect: str = "stretch"
    background: str = "white"
    sample_rate: int | None = None
    tokenizer: str | None = None

    def __call__(self, examples: np.ndarray) -> np.ndarray:
        """Examples (count, ...) as a network sees them, float32."""
        values = examples.astype(np.float32) / np.float32(self.scale)
        return (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    def __str__(self) -> str:
        mean = "/".join(f"{number:g}" for number in self.mean)
        std = "/".join(f"{number:g}" for number in self.std)
        text = f"{self.kind}, x / {self.scale:g}"
        text += f", minus {mean}" if any(self.mean) else ""
        text += f", over {std}" if set(self.std) != {1.0} else ""
        return text + (f", {self.sample_rate} Hz" if self.sample_rate else "")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def of_inputs(inputs: Any) -> Preprocessing:
    """What the types and shapes of a task's inputs say: bytes are pixels, seen as x / 255.

    >>> of_inputs(np.zeros((1, 8, 8, 3), np.uint8)).kind
    'image'
    """
    dtype = getattr(inputs, "dtype", None)
    shape: tuple[int, ...] = getattr(inputs, "shape", ())
    if dtype != np.uint8:
        return Preprocessing()
    image = len(shape) == 4 and shape[-1] in (1, 3)
    return Preprocessing("image" if image else "array", scale=255.0)


def of_sound(seen: Preprocessing, sample_rate: Any, dtype: Any) -> Preprocessing:
    """The same of samples -1 to 1, where the data hold integers of `dtype`; rate in Hz.

    >>> of_sound(Preprocessing(), 16000, np.dtype("int16")).scale == 2**-15
    True
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, int) or sample_rate < 1:
        raise ValueError(f"sample_rate={sample_rate!r}; expected a whole number of Hz")
    full = float(np.iinfo(dtype).max) + 1 if dtype.kind in "i" else 1.0
    changes = {"kind": "audio", "scale": seen.scale / full, "sample_rate": sample_rate}
    return Preprocessing(**(vars(seen) | changes))


def per_channel(name: str, value: Any, default: float, channels: int) -> tuple[float, ...]:
    """A number, or text of one a channel as 0.485/0.456/0.406; `ValueError` of anything else.

    >>> per_channel("mean", "0.5/1", 0.0, 2), per_channel("std", None, 1.0, 2)
    ((0.5, 1.0), (1.0,))
    """
    try:
        found = tuple(float(one) for one in str(default if value is None else value).split("/"))
    except ValueError as error:
        raise ValueError(f"{name}={value!r}; expected numbers as 0.485/0.456") from error
    if len(found) not in (1, channels) or (name == "std" and not all(found)):
        raise ValueError(f"{name}={value!r}; expected one number, not 0, or {channels} of them")
    return found
