"""Log-mel features as a leaf that exports anywhere: the Fourier transform is a convolution.

Mel scale and triangles as in HTK (Young et al., The HTK Book, section 5.4).
"""

from typing import Any

import keras
import numpy as np
from keras import ops

# Of the energies, before the logarithm. The rounding of 16-bit samples gives about 2e-8: digital
# silence and a quiet room shall look alike.
FLOOR = 1e-6


@keras.saving.register_keras_serializable("nas")
class LogMel(keras.layers.Layer):
    """Audio in -1..1 (batch, samples) -> (log energies - mean) / deviation (batch, frames, mels).

    Frame i covers the samples [i * hop, i * hop + window), Hann-weighted; there is no padding, so
    frames = 1 + (samples - window) // hop.

    >>> LogMel(sample_rate=8000, mels=20)(keras.Input((8000,))).shape
    (None, 98, 20)
    """

    def __init__(
        self,
        sample_rate: int,
        mels: int,
        *,
        window_ms: int = 25,
        hop_ms: int = 10,
        mean: float = 0.0,
        deviation: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.sample_rate = sample_rate
        self.mels = mels
        self.window_ms = window_ms
        self.hop_ms = hop_ms
        self.mean = mean
        self.deviation = deviation
        self.window = samples_of(window_ms, sample_rate)
        self.hop = samples_of(hop_ms, sample_rate)
        self.bins = fourier_length(self.window) // 2 + 1

    def call(self, audio: Any) -> Any:
        samples = audio.shape[1]
        cosine, sine = fourier_kernels(self.window)
        kernel = np.concatenate([cosine, sine], 1)[:, None].astype(np.float32)
        spectrum = ops.conv(
            ops.reshape(audio, (-1, samples, 1)),
            ops.convert_to_tensor(kernel, audio.dtype),
            strides=self.hop,
            padding="valid",
            data_format="channels_last",
        )
        real, imaginary = spectrum[..., : self.bins], spectrum[..., self.bins :]
        power = real * real + imaginary * imaginary
        energies = ops.matmul(
            power, ops.convert_to_tensor(triangles(self.sample_rate, self.mels, self.bins))
        )
        return (ops.log(ops.maximum(energies, FLOOR)) - self.mean) / self.deviation

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        frames = 1 + (input_shape[1] - self.window) // self.hop
        return (input_shape[0], frames, self.mels)

    def macs(self, input_shape: tuple[int, ...]) -> int:
        frames = self.compute_output_shape(input_shape)[1]
        return input_shape[0] * frames * self.bins * (2 * self.window + self.mels)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "sample_rate": self.sample_rate,
            "mels": self.mels,
            "window_ms": self.window_ms,
            "hop_ms": self.hop_ms,
            "mean": self.mean,
            "deviation": self.deviation,
        }


def samples_of(ms: float, sample_rate: int) -> int:
    """Samples in `ms` milliseconds, at least 1.

    >>> samples_of(25, 8000)
    200
    """
    return max(1, round(ms * sample_rate / 1000))


def fourier_length(window: int) -> int:
    """The power of two that holds a window.

    >>> fourier_length(200)
    256
    """
    return 1 << (window - 1).bit_length()


def fourier_kernels(window: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (window, bins) of the real transform of a Hann-weighted window."""
    length = fourier_length(window)
    sample = np.arange(window)[:, None]
    angles = 2 * np.pi * sample * np.arange(length // 2 + 1) / length
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * sample / window)
    return hann * np.cos(angles), -hann * np.sin(angles)


def triangles(sample_rate: int, mels: int, bins: int) -> np.ndarray:
    """(bins, mels): triangles from 20 Hz to half the sample rate, equally wide in mels."""

    def mel(hertz):
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(mel(20), mel(sample_rate / 2), mels + 2)
    at = mel(np.linspace(0, sample_rate / 2, bins))[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
