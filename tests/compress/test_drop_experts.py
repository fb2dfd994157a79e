"""Experts that are dropped: which, when, and that what is left answers as it should."""

import dataclasses

import keras
import numpy as np
import pytest

from compress.drop_experts import DropExperts
from compress.examples.data import Data
from compress.experts.criteria import CRITERIA
from compress.experts.masked import MaskedExperts
from compress.experts.statistics import gather, mixtures
from compress.method import Method, NotApplicable, compress
from compress.prune_channels import PruneChannels
from compress.rewriting.parametrized import Parametrization, parametrize
from compress.rewriting.record import Record, Weight
from compress.share_kv import ShareKV
from families import decoder, mobile_vmoe
from families.layers import Experts
from nas.tasks.task import Task, classification
from nas.tasks.text import next_token
from nas.training.loop import fit

TEXT = decoder.Config(
    vocabulary=30,
    length=12,
    dim=16,
    layers=2,
    heads=2,
    key_value_heads=1,
    hidden=12,
    experts=6,
    top_k=2,
)
IMAGES = mobile_vmoe.Config(
    (8, 8, 1),
    4,
    patch=4,
    layers=2,
    dim=8,
    heads=2,
    hidden=12,
    moe_blocks=(1, 2),
    experts=6,
    top_k=2,
    routing="image",
)


def texts(count=70):
    """A network and random texts in which some tokens are rare."""
    keras.utils.set_random_seed(1)
    drawn = np.minimum(np.random.default_rng(0).geometric(0.1, (count, 13)) - 1, 29).astype("int32")
    return decoder.build(TEXT), Data(drawn[:, :-1], drawn[:, 1:], next_token)


def images(count=70, **fields):
    keras.utils.set_random_seed(1)
    generator = np.random.default_rng(0)
    model = mobile_vmoe.build(dataclasses.replace(IMAGES, **fields))
    model.get_layer("router").bias.assign(generator.normal(size=6))
    pixels = generator.random((count, 8, 8, 1)).astype("float32")
    labels = generator.integers(0, 4, count).astype("int32")
    return model, Data(pixels, labels, classification)


def numbers(outputs):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)


def told(done) -> dict:
    (one,) = done.record.details.values()
    return one["layers"]


def mixture(renormalize: bool):
    """A layer whose last expert of four always has the least logit, so nobody chooses it."""
    inputs = keras.Input((5, 6))
    layer = Experts(4, 7, 2, renormalize=renormalize, name="experts")
    model = keras.Model(inputs, layer(inputs))
    generator = np.random.default_rng(0)
    for weight in layer.weights:
        weight.assign(generator.normal(size=weight.shape))
    router = 0.4 * generator.normal(size=(6, 4))
    router[:, 3] = router[:, :3].min(1) - 0.05  # inputs are positive
    layer.router.assign(router)
    data = Data(generator.random((70, 5, 6)).astype("float32"))
    return model, data, router


@pytest.mark.parametrize("renormalize, criterion", [(True, "EAN"), (False, "EUF")])
def test_an_expert_that_nobody_chooses_goes_first_and_is_not_missed(renormalize, criterion):
    model, data, router = mixture(renormalize)
    done = compress(model, [DropExperts(0.25, criterion)], data=data)
    assert told(done)["experts"]["kept"] == [0, 1, 2]
    before, after = numbers(model(data.inputs)), numbers(done.model(data.inputs))
    if not renormalize:  # the softmax is of three logits now: what the fourth had is given back
        gates = np.exp(data.inputs @ router)
        share = gates[..., 3] / gates.sum(-1)
        assert share.mean() > 0.01
        before = before / (1 - share)[..., None]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [texts, images])
def test_the_finished_network_is_the_masked_one(kind):
    model, data = kind()
    weights = model.get_weights()
    method, record = DropExperts(0.5, "EAN"), Record()
    prepared = method.prepare(model, data, record)
    expected = numbers(model(data.inputs))
    np.testing.assert_allclose(numbers(prepared(data.inputs)), expected, atol=1e-6)
    assert method.state(prepared) == {"experts": 12}
    assert method.update(prepared, data, 1, 1) and not method.update(prepared, data, 1, 1)
    assert method.state(prepared) == {"experts": 6}
    finished = method.finalize(prepared, data, record)
    outputs = numbers(finished(data.inputs))
    np.testing.assert_allclose(outputs, numbers(prepared(data.inputs)), atol=1e-6)
    assert np.abs(outputs - expected).max() > 1e-4
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)  # the model given is as it was
    kinds = {type(one.layer) for one in mixtures(finished)}
    assert kinds == {Experts} and all(one.layer.count == 3 for one in mixtures(finished))
    paths = {weight.path for weight in model.weights}
    assert {weight.path for weight in finished.weights} == paths


def test_one_router_of_all_layers_loses_its_outputs():
    model, data = images()
    done = compress(model, [DropExperts(0.5, "EUF")], data=data)
    first, second = told(done).values()
    assert first == second and len(first["kept"]) == 3
    router = done.model.get_layer("router")
    assert router.units == 3
    for now, before in zip(
        router.get_weights(), model.get_layer("router").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(now, before[..., first["kept"]])
    for name in ("block1_experts", "block2_experts"):
        kept = model.get_layer(name).keep_experts(first["kept"])
        for now, before in zip(done.model.get_layer(name).weights, kept.weights, strict=True):
            np.testing.assert_array_equal(numbers(now), numbers(before))
    used = gather(model, "routes", data)["block1_experts"].used
    assert {e["expert"] for e in first["dropped"]} == set(np.argsort(used, kind="stable")[:3])


def test_logits_that_are_an_output_stay_whole():
    """The router's logits are trained with super-classes: those who want them get all of them."""
    model, data = images(router_outputs=True)
    method = DropExperts(0.5, "RWN")
    done = compress(model, [method])
    kept = told(done)["block1_experts"]["kept"]
    outputs, before = numbers(done.model(data.inputs)), numbers(model(data.inputs))
    np.testing.assert_allclose(outputs["router"], before["router"], atol=1e-6)
    plain = mobile_vmoe.build(IMAGES)
    for weight, source in zip(plain.weights, model.weights, strict=True):
        weight.assign(source)
    small = compress(plain, [method]).model
    np.testing.assert_allclose(outputs["logits"], numbers(small(data.inputs)), atol=1e-6)
    assert done.model.get_layer("block2_experts").count == len(kept) == 3


def test_saved_and_loaded(tmp_path):
    for model, data in (texts(), images(router_outputs=True)):
        finished = compress(model, [DropExperts(0.5, "EWN")]).model
        finished.save(tmp_path / "small.keras")
        loaded = keras.saving.load_model(tmp_path / "small.keras")
        outputs = (keras.tree.flatten(numbers(one(data.inputs))) for one in (loaded, finished))
        for one, other in zip(*outputs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("criterion", ["ECC", "EGE"])
def test_rounds_take_scores_of_what_is_left(criterion):
    model, data = texts()
    done = compress(model, [DropExperts(0.5, criterion, rounds=3)], data=data)
    for name, layer in told(done).items():
        assert [one["round"] for one in layer["dropped"]] == [1, 2, 3]
        assert len(layer["kept"]) == 3, name
    # The same by hand: one expert an application, physically gone before the next.
    small, share = model, {6: 1 / 6, 5: 1 / 5, 4: 1 / 4}
    scores = {name: [] for name in told(done)}
    for count in (6, 5, 4):
        once = compress(small, [DropExperts(share[count], criterion)], data=data)
        for name, layer in told(once).items():
            scores[name].append(layer["dropped"][0]["score"])
        small = once.model
    for name, layer in told(done).items():
        # Float32 noise in the gradients of experts that hardly differ is all that may differ.
        found = [one["score"] for one in layer["dropped"]]
        np.testing.assert_allclose(found, scores[name], rtol=1e-3)
    np.testing.assert_allclose(
        numbers(done.model(data.inputs)), numbers(small(data.inputs)), atol=1e-5
    )


def test_one_round_is_one_shot():
    """All scores are of the whole network."""
    model, data = texts()
    done = compress(model, [DropExperts(0.5, "EAN", rounds=1)], data=data)
    found = gather(model, "outputs", data)
    for name, layer in told(done).items():
        scores = CRITERIA["EAN"].score(found[name])
        order = np.argsort(scores)[:3]
        assert {one["expert"] for one in layer["dropped"]} == set(order.tolist())
        for one in layer["dropped"]:
            assert one["score"] == pytest.approx(scores[one["expert"]])
            assert one["round"] == 1


def test_with_training_the_rounds_are_spread_and_a_tail_is_left():
    model, data = texts()
    method, left = DropExperts(0.5, "EUF", rounds=3), []
    prepared = method.prepare(model, data, Record())
    for step in range(60):
        changed = method.update(prepared, data, step, 60)
        left.append(method.state(prepared)["experts"])
        assert changed == (step in (0, 10, 20)), step
    assert left == [10] * 10 + [8] * 10 + [6] * 40
    assert not method.update(prepared, data, 60, 60)


def test_where_a_training_was_cut_short_the_rest_goes_at_its_end():
    model, data = texts()
    method = DropExperts(0.5, "EUF", rounds=3)
    prepared = method.prepare(model, data, Record())
    method.update(prepared, data, 0, 60)
    assert method.state(prepared) == {"experts": 10}
    assert method.update(prepared, data, 1, 1)
    assert method.state(prepared) == {"experts": 6}


def task_of(data: Data, name="text") -> Task:
    return Task(
        name=name,
        train=(data.inputs, data.targets),
        valid=(data.inputs[:16], data.targets[:16]),
        fields={},
        recipe="",
        loss=data.loss,
        scorer=lambda model, predict: lambda inputs, targets: np.zeros(len(targets)),
    )


def test_trained_on_with_averages_of_weights_and_finished():
    """Fates are no floats: `ema` leaves them alone. What is trained in is what is left."""
    model, data = texts()
    seen = {}

    def train(prepared, update):
        def watched(step, steps):
            changed = update(step, steps)
            seen[step] = changed
            return changed

        fit(prepared, task_of(data), 2, 0, update=watched, ema=0.9, batch_size=16)
        seen["outputs"] = numbers(prepared(data.inputs))

    done = compress(model, [DropExperts(0.5, "EAN", rounds=2)], fit=train, data=data)
    assert [step for step, changed in seen.items() if changed is True] == [0, 2]
    np.testing.assert_allclose(numbers(done.model(data.inputs)), seen["outputs"], atol=1e-5)
    embed = [numbers(m.get_layer("embed").embeddings) for m in (model, done.model)]
    assert np.abs(embed[0] - embed[1]).max() > 1e-3
    for layer in told(done).values():
        assert [one["round"] for one in layer["dropped"]] == [1, 2, 2]


def test_all_state_is_in_variables():
    """A training that was killed goes on with the weights of a model prepared anew."""
    model, data = texts()
    method = DropExperts(0.5, "EAN", rounds=3)
    record = Record()
    one, other = (method.prepare(model, data, record) for _ in range(2))
    method.update(one, data, 0, 60)
    method.update(one, data, 15, 60)
    other.set_weights(one.get_weights())
    for prepared in (one, other):
        method.update(prepared, data, 25, 60)
    records = []
    for prepared in (one, other):
        method.finalize(prepared, data, record)
        records.append(record.details[repr(method)])
    assert records[0] == records[1]
    rounds = [e["round"] for e in records[1]["layers"]["block1_feed_experts"]["dropped"]]
    assert rounds == [1, 2, 3]


class Rounded(Parametrization):
    """To 3 bits, every expert with a scale of its own."""

    def call(self, weight):
        scale = self._scale(weight)
        return keras.ops.clip(keras.ops.round(weight / scale), -4, 3) * scale

    def _scale(self, weight):
        return keras.ops.max(keras.ops.abs(weight), axis=(1, 2), keepdims=True) / 4

    def describe(self, value, before):
        scale = np.abs(value).max(axis=(1, 2), keepdims=True) / 4
        return Weight(
            bits=3,
            codes=(np.round(value / scale) + 4).astype(np.uint8),
            levels=np.arange(-4, 4, dtype=np.float32)[None],
            scale=scale,
        )


class Tabled(Rounded):
    """The same, each expert with a table of levels."""

    def describe(self, value, before):
        one = super().describe(value, before)
        levels = one.levels * one.scale[:, 0]
        return Weight(3, one.codes, levels, np.ones((1, 1, 1), np.float32), axis=0)


class Rounding(Method):
    """A method of weights beside."""

    def __init__(self, kind):
        self.kind = kind

    def prepare(self, model, data, record):
        paths = [f"{one.name}/{n}" for one in mixtures(model) for n in ("expand", "project")]
        return parametrize(model, {path: self.kind(name=path[:6]) for path in paths})


@pytest.mark.parametrize("kind", [Rounded, Tabled])
def test_what_is_known_of_weights_is_cut_with_them(kind):
    model, data = texts()
    # `compress` raises if the codes are not those of the weights of the finished model.
    done = compress(model, [Rounding(kind), DropExperts(0.5, "EAN")], data=data)
    weight = done.record.weights["block2_feed_experts/expand"]
    assert weight.codes.shape == (3, 16, 12) and len(weight.levels) == (3 if kind is Tabled else 1)
    kept = told(done)["block2_feed_experts"]["kept"]
    whole = compress(model, [Rounding(kind)]).record.weights["block2_feed_experts/expand"]
    np.testing.assert_array_equal(weight.codes, whole.codes[kept])


def test_scores_are_of_the_weights_as_they_are_read():
    """Experts that a parametrization makes equal are found equal."""
    model, _ = texts()

    class Equal(Parametrization):
        def call(self, weight):
            return weight * 0 + weight[:1]

    name = "block1_feed_experts"
    paths = [f"{name}/{kernel}" for kernel in ("gate", "expand", "project")]
    parametrized = parametrize(model, {path: Equal() for path in paths})
    scores = CRITERIA["EWS"].score(gather(parametrized, "weights")[name])
    np.testing.assert_allclose(scores, 5, rtol=1e-5)  # cosine 1 with each of the five others
    prepared = DropExperts(0.5, "EWS").prepare(parametrized, None, None)
    holder = prepared.get_layer(name)
    assert isinstance(holder.layer, MaskedExperts) and set(holder.parametrizations) == set(paths)


def test_in_any_order_with_other_changes_of_the_structure():
    model, data = texts()
    drop = DropExperts(0.5, "EWN")
    smaller = compress(model, [drop]).model.count_params()
    for other in (ShareKV(0.5), PruneChannels(0.5)):
        one, two = (compress(model, order).model for order in ([drop, other], [other, drop]))
        np.testing.assert_array_equal(numbers(one(data.inputs)), numbers(two(data.inputs)))
        assert one.count_params() == two.count_params() < smaller
        assert {mixture.layer.count for mixture in mixtures(one)} == {3}


def test_a_table_of_what_was_left_alone():
    model, data = texts()
    record = compress(model, [DropExperts()], data=data).record
    assert record.untouched["block1_attention_query"] == "no mixture of experts"
    assert "block1_feed_experts" not in record.untouched


def test_random_depends_on_the_seed_alone():
    model, _ = texts()
    kept = [told(compress(model, [DropExperts(0.5, "random", seed=s)])) for s in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]


def test_what_cannot_be_is_said():
    model, data = texts()
    with pytest.raises(ValueError, match="leaves 1 of the 6 experts of block1.*top_k=2"):
        compress(model, [DropExperts(0.8)], data=data)
    with pytest.raises(ValueError, match="is none; expected at least 0.16"):
        compress(model, [DropExperts(0.05)], data=data)
    with pytest.raises(NotApplicable, match="no examples|there are none"):
        compress(model, [DropExperts()])
    with pytest.raises(NotApplicable, match="targets and a loss"):
        compress(model, [DropExperts(criterion="EGN")], data=Data(data.inputs))
    dense = mobile_vmoe.build(mobile_vmoe.dense_twin(IMAGES))
    with pytest.raises(NotApplicable, match="no mixture of experts"):
        compress(dense, [DropExperts(criterion="EWN")])
    for options, name in (
        ({"fraction": 1.0}, "fraction"),
        ({"criterion": "EAM"}, "EWS, RWN"),
        ({"extreme": "most"}, "min, max"),
        ({"rounds": 0}, "rounds"),
    ):
        with pytest.raises(ValueError, match=name):
            DropExperts(**options)


def test_logits_of_no_dense_layer_are_refused():
    inputs = keras.Input((4, 6))
    logits = keras.layers.Dense(5, activation="softmax", name="soft")(inputs)
    model = keras.Model(inputs, Experts(5, 3, 2, name="experts")(inputs, logits))
    with pytest.raises(NotApplicable, match="logits of experts come from no linear Dense"):
        compress(model, [DropExperts(criterion="EWN")])


def trains_and_drops():
    assert keras.config.backend() == "jax"
    model, data = texts()
    seen = {}

    def train(prepared, update):
        fit(prepared, task_of(data), 2, 0, update=update, batch_size=16)
        seen["outputs"] = numbers(prepared(data.inputs))

    done = compress(model, [DropExperts(0.5, "EGN", rounds=3)], fit=train, data=data)
    np.testing.assert_allclose(numbers(done.model(data.inputs)), seen["outputs"], atol=1e-5)
    for layer in told(done).values():
        assert [one["round"] for one in layer["dropped"]] == [1, 2, 3], layer
    model, data = images()
    done = compress(model, [DropExperts(0.5, "EAN")], data=data)
    assert done.model.get_layer("router").units == 3


@pytest.mark.slow
def test_jax_trains_and_drops(on_jax):
    on_jax(trains_and_drops)
