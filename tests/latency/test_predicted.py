"""Predictors: works of networks, sums, forests, what is kept, ranges, transfer; real files."""

import dataclasses
import time

import numpy as np
import pytest
from scipy import stats

from latency import predicted
from latency.predicted import Predicted
from latency.prediction import forest, operation_features, predictor, probe_networks
from latency.target import Kind, TargetUnavailable
from nas.testing import check_target

# A device that is made up: milliseconds for a mega-MAC, a mega-element and a call, by kind.
DEVICE = {"CONV_2D": (0.02, 0.5, 0.01), "DEPTHWISE_CONV_2D": (0.3, 0.4, 0.01)}
OTHER = {"CONV_2D": (0.1, 0.2, 0.002), "DEPTHWISE_CONV_2D": (0.1, 0.9, 0.001)}


def work_ms(work, device=None, beyond=0.4) -> float:
    coefficients = (device or DEVICE).get(work.kind.split()[0], (0, 0.3, 0.005))
    ms = np.dot(coefficients, (work.macs / 1e6, work.elements / 1e6, 1))
    # What no roofline knows: narrow layers are slow.
    return float(ms * (1 + beyond * np.exp(-work.features[3] / 3)))


def total_ms(works, device=None, overhead=0.1) -> float:
    return overhead + sum(work_ms(work, device) for work in works)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder, read = tmp_path_factory.mktemp("probes"), []
    for seed in range(40):
        path = folder / f"{seed}.tflite"
        path.write_bytes(probe_networks.network(seed))
        read.append(operation_features.read(path)[0])
    return read


@pytest.fixture(scope="module")
def fitted(networks):
    ms = [total_ms(works) for works in networks[:24]]
    about = {"device": "made up", "runtime": "none", "spec": "cpu:threads=1", "kind": "measured"}
    about |= {"probes": 24, "date": "2026-11-23T00:00:00+00:00"}
    return predictor.fit(networks[:24], ms, about=about)


def test_works_of_a_known_network():
    import keras

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    outputs = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    works = operation_features.of_model(keras.Model(inputs, outputs))
    assert [w.kind for w in works] == ["CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert [round(w.macs) for w in works] == [4 * 4 * 4 * 27, 4 * 4 * 4 * 9, 0, 20]
    # Read, written, weights (no biases).
    assert round(works[0].elements) == 8 * 8 * 3 + 4 * 4 * 4 + 4 * 27
    fused = operation_features.FEATURES.index("fused")
    assert works[0].features[fused] > 0 == works[1].features[fused]


def test_times_are_matched_by_name_and_told_when_they_cannot_be():
    called = [("CONV_2D", "a"), ("ADD", "b"), ("MEAN", "c")]
    rows = [
        {"name": "[a]:0", "type": "CONV_2D", "ms": 2.0},
        {"name": "b", "type": "ADD", "ms": 1.0, "within": "delegate"},
        {"name": "c;d", "type": "MEAN", "ms": 1.0},
    ]
    assert operation_features.times(called, rows).tolist() == pytest.approx(
        [2.0, np.nan, 1.0], nan_ok=True
    )
    assert operation_features.times(called, [{"name": "kernel", "type": "X", "ms": 1.0}]) is None
    nameless = [{"name": "?", "type": type_, "ms": 1.0} for type_, _ in called]
    assert operation_features.times(called, nameless).tolist() == [1.0, 1.0, 1.0]
    assert operation_features.times(called, None) is None


def test_whole_networks_alone_tell_of_others(networks, fitted):
    rest = networks[24:]
    truth = np.array([total_ms(works) for works in rest])
    ms, _ = fitted.many(rest)
    assert fitted.profiled is None
    # Counting multiply-adds and elements alone is off by a third here, and ranks by 0.9.
    assert np.median(np.abs(ms / truth - 1)) < 0.2
    assert stats.spearmanr(ms, truth)[0] > 0.95


def test_times_of_operations_are_preferred_where_they_tell_more(networks):
    some = networks[:12]
    ms = [total_ms(works) for works in some]
    per_op = [np.array([work_ms(work) for work in works]) for works in some]
    per_op[0][3] = np.nan
    learned = predictor.fit(some, ms, per_op)
    truth = np.array([total_ms(works) for works in networks[24:]])
    assert learned.profiled is not None
    assert np.median(np.abs(learned.many(networks[24:])[0] / truth - 1)) < 0.06
    assert learned.works(some[1]).sum() == pytest.approx(ms[1], rel=0.05)
    senseless = [np.random.default_rng(i).random(len(w)) for i, w in enumerate(some)]
    assert predictor.fit(some, ms, senseless).profiled is None


def test_a_known_device_helps_a_new_one(networks):
    """The new one is the known one, three times slower, with as little of its own."""
    known = predictor.fit(networks[:30], [total_ms(w, OTHER) for w in networks[:30]])
    ms = [3 * total_ms(works, OTHER) for works in networks[30:35]]
    truth = np.array([3 * total_ms(works, OTHER) for works in networks[35:]])

    def error(**options):
        found = predictor.fit(networks[30:35], ms, **options).many(networks[35:])[0]
        return np.abs(found / truth - 1).mean()

    assert error(known={"other": known}) < 0.9 * error()


@pytest.mark.parametrize("with_operations", [True, False])
def test_what_is_kept_is_what_was_fitted_and_holds_no_pickle(networks, tmp_path, with_operations):
    some = networks[:8]
    ms = [total_ms(works) for works in some]
    per_op = [np.array([work_ms(w) for w in works]) for works in some] if with_operations else None
    known = {} if with_operations else {"other": predictor.fit(some, [2 * t for t in ms])}
    learned = predictor.fit(some, ms, per_op, known, {"device": "made up"})
    learned.save(tmp_path)
    again = predictor.load(tmp_path)
    assert again.predict(networks[9]) == learned.predict(networks[9])
    assert again.about == {"device": "made up"} and again.held_out == learned.held_out
    with np.load(tmp_path / predictor.ARCHIVE, allow_pickle=False) as archive:
        assert all(archive[name].dtype.kind in "fiuU" for name in archive.files)
    digest = predictor.digest(tmp_path)
    predictor.fit(some, ms, per_op, known, {"device": "made up"}).save(tmp_path)
    assert predictor.digest(tmp_path) == digest
    (tmp_path / predictor.ARCHIVE).write_bytes(learned.bytes()[:1000])
    with pytest.raises(ValueError, match="not a predictor"):
        predictor.load(tmp_path)


def test_outside_of_the_probes(networks, fitted):
    assert fitted.predict(networks[30]).reason is None
    strange = dataclasses.replace(networks[0][0], kind="CONV_3D")
    with pytest.raises(ValueError, match="CONV_3D was in no probe"):
        fitted.predict((*networks[0], strange))

    def wider(factor):
        first = max(networks[0], key=lambda work: work.macs)
        high = fitted.high[first.kind]
        size = operation_features.FEATURES.index("macs")
        features = list(first.features)
        features[size] = high[size] + np.log(factor)
        return (*networks[0], dataclasses.replace(first, features=tuple(features)))

    assert "factor of 3.0 beyond the probes in macs" in fitted.predict(wider(3)).reason
    with pytest.raises(ValueError, match="macs: nothing can be predicted"):
        fitted.predict(wider(20))


def test_bad_samples_are_refused(networks):
    for count, ms in ((3, [1.0] * 3), (5, [1.0] * 4), (5, [1, 1, 1, 1, -1.0]), (4, [np.nan] * 4)):
        with pytest.raises(ValueError, match="expected at least 4"):
            predictor.fit(networks[:count], ms)


def test_the_forest_says_what_scikit_learn_says():
    from sklearn.ensemble import ExtraTreesRegressor

    random = np.random.default_rng(0)
    features, weights = random.normal(size=(200, 5)), random.random(200)
    values = np.sin(features[:, 0]) + features[:, 1]
    ours = forest.grow(features, values, weights).predict(features[:50])
    theirs = ExtraTreesRegressor(forest.TREES, bootstrap=True, random_state=0)
    theirs.fit(features, values, weights)
    assert ours.shape == (50, forest.TREES)
    np.testing.assert_allclose(ours.mean(axis=1), theirs.predict(features[:50]), rtol=1e-9)


def test_the_target(fitted, tmp_path):
    with pytest.raises(TargetUnavailable, match="nas device add mine"):
        Predicted("mine").profile(_file(tmp_path, 30))
    assert Predicted.discover()[0].missing
    fitted.save(predicted.directory("mine"))
    target = Predicted("mine")
    assert [(one.spec, one.missing) for one in Predicted.discover()] == [("predicted:mine", None)]
    check_target(target)
    assert target.learned_from == "cpu:threads=1"
    latency = target.profile(_file(tmp_path, 30), details=True)
    assert latency.kind is Kind.PREDICTED and not latency.measured
    assert latency.op_min_ms is None
    assert sum(row["ms"] for row in latency.per_op) == pytest.approx(latency.median_ms)
    told = latency.conditions
    assert (told["device"], told["runtime"], told["probes"]) == ("made up", "none", 24)
    assert told["stable"] and 0 < told["error"] < 0.5 and told["probes_kind"] == "measured"
    before = target.identity()
    other = dataclasses.replace(fitted, about=fitted.about | {"probes": 25})
    time.sleep(0.01)
    other.save(predicted.directory("mine"))
    assert target.identity() != before
    assert target.profile(_file(tmp_path, 30)).conditions["probes"] == 25
    with pytest.raises(ValueError, match="learned at batch 1"):
        target.profile(_file(tmp_path, 30), batch_size=2)
    with pytest.raises(ValueError, match="device name"):
        Predicted("../mine")


def test_a_bad_file_is_one_clear_error(fitted, tmp_path):
    fitted.save(predicted.directory("mine"))
    whole = _file(tmp_path, 3).read_bytes()
    for content in (b"", b"x" * 100, whole[:200], whole[:8] + b"\xff" * 5000):
        path = tmp_path / "bad.tflite"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.tflite"):
            Predicted("mine").profile(path)


def test_quick_enough_for_a_search(networks, fitted):
    works = networks[30]
    fitted.predict(works)
    seconds = min(_seconds(lambda: fitted.predict(works)) for _ in range(20))
    assert seconds < 0.02


def _seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _file(folder, seed: int):
    path = folder / f"{seed}.tflite"
    path.write_bytes(probe_networks.network(seed))
    return path
