"""The log-mel front end: equal to a Fourier transform in NumPy, on real speech, and exported."""

import keras
import numpy as np
import pytest

from families.layers import LogMel
from latency.networks.count import count
from latency.tflite import convert


@pytest.fixture(scope="module")
def audio(shared_data):
    """Half a second of each of four spoken digits, 8 kHz."""
    speech = np.load(shared_data / "speech" / "fsdd.npz")
    starts = np.r_[0, speech["end"]][[0, 700, 1500, 2600]]
    return np.stack([speech["audio"][start : start + 4000] for start in starts]) / 32768


def reference(audio: np.ndarray, rate: int, mels: int) -> np.ndarray:
    """Log-mel energies with numpy.fft, filters drawn point by point."""
    window, hop = rate // 40, rate // 100
    length = 1 << int(np.ceil(np.log2(window)))
    frames = np.stack(
        [audio[:, i : i + window] for i in range(0, audio.shape[1] - window + 1, hop)], 1
    )
    power = np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1], length)) ** 2
    edges = np.linspace(*(1127 * np.log(1 + hz / 700) for hz in (20, rate / 2)), mels + 2)
    place = 1127 * np.log(1 + np.fft.rfftfreq(length, 1 / rate) / 700)
    filters = [np.interp(place, edges[i : i + 3], [0, 1, 0]) for i in range(mels)]
    return np.log(np.maximum(power @ np.array(filters).T, 1e-6))


@pytest.mark.parametrize(("rate", "mels"), [(8000, 40), (16000, 80)])
def test_equals_a_fourier_transform(audio, rate, mels):
    found = np.asarray(LogMel(rate, mels)(audio.astype("float32")))
    expected = reference(audio, rate, mels)
    assert found.shape == expected.shape and expected.std() > 1
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_no_filter_is_empty(audio):
    features = np.asarray(LogMel(8000, 40)(audio.astype("float32")))
    assert features.reshape(-1, 40).std(0).min() > 0.1


def test_a_tone_is_found_where_it_is():
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(1000) / 8000)[None].astype("float32")
    edges = np.linspace(*(1127 * np.log(1 + hz / 700) for hz in (20, 4000)), 42)
    nearest = np.argmin(np.abs(edges[1:-1] - 1127 * np.log(1 + 1000 / 700)))
    assert (np.asarray(LogMel(8000, 40)(tone)).argmax(-1) == nearest).all()


def test_is_normalized_as_told(audio):
    plain = np.asarray(LogMel(8000, 40)(audio.astype("float32")))
    scaled = np.asarray(LogMel(8000, 40, mean=-5.0, deviation=2.0)(audio.astype("float32")))
    np.testing.assert_allclose(scaled, (plain + 5) / 2, atol=1e-5)


def test_export_equals_keras(audio, tmp_path):
    inputs = keras.Input((4000,), name="audio")
    model = keras.Model(inputs, LogMel(8000, 40, mean=-5.0, name="mels")(inputs))
    cost = count(model)
    assert not cost.uncounted and cost.macs == 48 * 129 * (2 * 200 + 40)
    expected = np.asarray(model(audio.astype("float32")))
    found = convert.run(convert.convert(model), audio.astype("float32"))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    model.save(tmp_path / "mels.keras")
    again = keras.models.load_model(tmp_path / "mels.keras", compile=False)
    np.testing.assert_array_equal(again(audio.astype("float32")), expected)
