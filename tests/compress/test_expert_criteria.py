"""The criteria of experts against NumPy that takes them literally, and what must hold of them."""

import keras
import numpy as np
import pytest

from compress.examples.data import Data
from compress.experts.criteria import CRITERIA, weakest
from compress.experts.statistics import Statistics, gather
from compress.method import NotApplicable
from families.layers import Experts

EXAMPLES, TOKENS, DIM, HIDDEN, EXPERTS, IDS, CLASSES = 90, 3, 5, 6, 4, 40, 7  # 2 batches
KINDS = {
    "token": {},
    "mixtral": {"gated": True, "activation": "silu", "use_bias": False, "renormalize": True},
    "image": {"routing": "image"},
    "one": {"top_k": 1},
}


def crossed(outputs, targets):
    losses = keras.ops.sparse_categorical_crossentropy(targets, outputs, from_logits=True)
    return losses if len(losses.shape) == 1 else keras.ops.mean(losses, -1)


def network(kind: str):
    """A model with one mixture, and its examples; weights with heavy tails, so there are outliers.

    Tokens come as ids of an embedding; images as they are, with the router outside.
    """
    options = {"count": EXPERTS, "hidden": HIDDEN, "top_k": 2} | KINDS[kind]
    generator = np.random.default_rng(3)
    experts = Experts(**options, name="experts")
    if kind == "image":
        inputs = keras.Input((TOKENS, DIM))
        mean = keras.layers.GlobalAveragePooling1D(name="mean")(inputs)
        logits = keras.layers.Dense(EXPERTS, name="router")(mean)
        x = keras.layers.GlobalAveragePooling1D(name="pool")(experts(inputs, logits))
        examples = generator.normal(size=(EXAMPLES, TOKENS, DIM)).astype("float32")
        targets = generator.integers(0, CLASSES, EXAMPLES).astype("int32")
    else:
        inputs = keras.Input((TOKENS,), dtype="int32")
        x = experts(keras.layers.Embedding(IDS, DIM, name="embed")(inputs))
        examples = np.minimum(generator.geometric(0.08, (EXAMPLES, TOKENS)) - 1, IDS - 1)
        examples = examples.astype("int32")
        targets = generator.integers(0, CLASSES, (EXAMPLES, TOKENS)).astype("int32")
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))
    for weight in model.weights:
        values = generator.standard_t(2.5, size=weight.shape)
        weight.assign(values if "head" in weight.path else 0.7 * values)
    return model, Data(examples, targets, crossed)


class Literal:
    """The same network in float64, and every criterion as its definition reads."""

    def __init__(self, model, data: Data):
        layer = model.get_layer("experts")
        self.layer, self.data = layer, data
        self.w = {
            weight.path: keras.ops.convert_to_numpy(weight).astype(np.float64)
            for weight in model.weights
        }
        x = data.inputs
        if layer.routing != "image":
            x = self.w["embed/embeddings"][x]
        self.x = x.astype(np.float64)
        if layer.routing == "image":
            logits = self.x.mean(1) @ self.w["router/kernel"] + self.w["router/bias"]
            self.units, ids = self.x, [None] * len(x)
        else:
            self.units = self.x.reshape(-1, 1, DIM)
            logits = self.units[:, 0] @ self.w["experts/router"]
            ids = data.inputs.ravel()
        self.ids = ids
        gates = np.exp(logits)
        self.gates = gates / gates.sum(-1, keepdims=True)
        self.chosen = [sorted(np.argsort(-g, kind="stable")[: layer.top_k]) for g in self.gates]
        every = range(EXPERTS)
        self.is_chosen = np.array([[p in mine for p in every] for mine in self.chosen])
        self.outputs = {p: [] for p in range(EXPERTS)}  # lists of (output, weight)
        for unit, gate, chosen in zip(self.units, self.gates, self.chosen, strict=True):
            for p in chosen:
                weight = gate[p] / (sum(gate[c] for c in chosen) if layer.renormalize else 1)
                self.outputs[p] += [(row, weight) for row in self.expert(p, unit)]

    def expert(self, p, x):
        w = self.w
        inner = x @ w["experts/expand"][p]
        if self.layer.use_bias:
            inner = inner + w["experts/expand_bias"][p]
        if self.layer.gated:
            gate = x @ w["experts/gate"][p]
            inner = gate / (1 + np.exp(-gate)) * inner
        else:  # the tanh form of GELU
            cubic = np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)
            inner = 0.5 * inner * (1 + np.tanh(cubic))
        outputs = inner @ w["experts/project"][p]
        return outputs + w["experts/project_bias"][p] if self.layer.use_bias else outputs

    def loss(self):
        """Sum over the examples of their losses."""
        mixed = np.zeros_like(self.units)
        chosen = self.is_chosen
        gates = np.where(chosen, self.gates, 0)
        if self.layer.renormalize:
            gates = gates / gates.sum(-1, keepdims=True)
        for p in range(EXPERTS):
            mine = chosen[:, p]
            mixed[mine] += gates[mine, p][:, None, None] * self.expert(p, self.units[mine])
        mixed = mixed.reshape(self.x.shape)
        if self.layer.routing == "image":
            mixed = mixed.mean(1)
        logits = mixed @ self.w["head/kernel"] + self.w["head/bias"]
        logits = logits - logits.max(-1, keepdims=True)
        said = np.take_along_axis(logits, self.data.targets[..., None], -1)[..., 0]
        losses = np.log(np.exp(logits).sum(-1)) - said
        return (losses if losses.ndim == 1 else losses.mean(-1)).sum()

    def gradient(self, path, step=1e-5):
        """By differences, entry by entry."""
        value, result = self.w[path], np.zeros_like(self.w[path])
        for index in np.ndindex(value.shape):
            before = value[index]
            losses = []
            for shift in (step, -step):
                value[index] = before + shift
                losses.append(self.loss())
            value[index] = before
            result[index] = (losses[0] - losses[1]) / (2 * step)
        return result

    def matrices(self, values) -> list[np.ndarray]:
        """The kernels of each expert as rows of the network's width."""
        inwards = ["gate", "expand"] if self.layer.gated else ["expand"]
        return [
            np.vstack(
                [*(values[f"experts/{n}"][p].T for n in inwards), values["experts/project"][p]]
            )
            for p in range(EXPERTS)
        ]

    def scores(self) -> dict[str, np.ndarray]:
        names = ["experts/expand", "experts/project", *(["experts/gate"] * self.layer.gated)]
        gradients = self.matrices({name: self.gradient(name) for name in names})
        weights = self.matrices(self.w)
        image = self.layer.routing == "image"
        router = self.w["router/kernel" if image else "experts/router"]
        a = [np.array([row for row, _ in self.outputs[p]]) for p in range(EXPERTS)]
        every = range(EXPERTS)

        def cosine(u, v):
            return u.ravel() @ v.ravel() / np.linalg.norm(u) / np.linalg.norm(v)

        def others(similar):
            return [sum(similar(p, q) for q in every if q != p) for p in every]

        def outside(matrix):
            return int((np.abs(matrix - matrix.mean()) > 3 * matrix.std()).sum())

        def stable_rank(matrix):
            squares = np.linalg.svd(matrix, compute_uv=False) ** 2
            return squares.sum() / squares[0]

        def both(p, q):
            return sum(p in chosen and q in chosen for chosen in self.chosen)

        def mean_cosine(p, q):
            u, v = (matrix / np.linalg.norm(matrix, axis=1)[:, None] for matrix in (a[p], a[q]))
            return (u @ v.T).mean()  # all pairs

        found = {
            "EWS": others(lambda p, q: cosine(weights[p], weights[q])),
            "RWN": [np.sqrt((router[:, p] ** 2).sum()) for p in every],
            "WSR": [stable_rank(matrix) for matrix in weights],
            "EWN": [np.sqrt((matrix**2).sum()) for matrix in weights],
            "EUF": [sum(p in chosen for chosen in self.chosen) for p in every],
            "ECC": [[both(p, q) for q in every] for p in every],
            "EAS": others(mean_cosine),
            "EAE": [sum(np.log(column.std()) for column in matrix.T) for matrix in a],
            "EAO": [outside(matrix) for matrix in a],
            "EAN": [sum(np.sqrt((column**2).sum()) for column in matrix.T) for matrix in a],
            "EGS": others(lambda p, q: cosine(gradients[p], gradients[q])),
            "EGE": [sum(np.log(column.std()) for column in matrix.T) for matrix in gradients],
            "EGO": [outside(matrix) for matrix in gradients],
            "EGN": [np.sqrt((matrix**2).sum()) for matrix in gradients],
            "REAP": [
                np.mean([weight * np.sqrt((row**2).sum()) for row, weight in self.outputs[p]])
                for p in every
            ],
        }
        if not image:
            met = [
                {i for i, chosen in zip(self.ids, self.chosen, strict=True) if p in chosen}
                for p in every
            ]
            found["EVTC"] = [len(ids) / IDS for ids in met]
            found["ETS"] = [[len(met[p] & met[q]) for q in every] for p in every]
        return {name: np.array(value, np.float64) for name, value in found.items()}


def computed(model, data, criterion):
    found = gather(model, CRITERIA[criterion].needs, data)["experts"]
    return np.asarray(CRITERIA[criterion].score(found), np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_criterion_is_what_its_definition_says(kind):
    model, data = network(kind)
    expected = Literal(model, data).scores()
    missing = {"EVTC", "ETS"} if kind == "image" else set()
    assert set(expected) | missing == set(CRITERIA) - {"random"}
    for name, scores in expected.items():
        tolerance = 2e-3 if name.startswith("EG") else 1e-4  # differences, and float32
        np.testing.assert_allclose(
            computed(model, data, name), scores, rtol=tolerance, atol=tolerance, err_msg=name
        )
    for name in ("EAO", "EGO"):  # or that test could not fail
        assert expected[name].sum() > 0
    for name, scores in expected.items():  # nor where all experts are alike
        assert np.unique(np.round(scores, 6)).size > 1 or (kind, name) == ("one", "ECC"), name


@pytest.mark.parametrize("kind", KINDS)
def test_usage_and_collaboration(kind):
    model, data = network(kind)
    layer = model.get_layer("experts")
    used, together = computed(model, data, "EUF"), computed(model, data, "ECC")
    units = EXAMPLES * (1 if layer.routing == "image" else TOKENS)
    assert used.sum() == layer.top_k * units
    np.testing.assert_array_equal(together, together.T)
    np.testing.assert_array_equal(np.diag(together), used)


def test_a_copy_of_an_expert_is_found_by_similarity():
    model, data = network("token")
    layer = model.get_layer("experts")
    for name in ("expand", "project"):
        values = keras.ops.convert_to_numpy(getattr(layer, name)).copy()
        values[3] = values[1]
        getattr(layer, name).assign(values)
    found = gather(model, "weights", data)["experts"]
    gone = weakest([found], "EWS", "max", 2, np.random.default_rng(0))
    assert sorted(expert for expert, _ in gone) == [1, 3]
    assert gone[0][1] == pytest.approx(gone[1][1])


def test_of_the_extreme_pair_the_less_used_goes():
    found = Statistics(np.array([0, 1, 4, 7]), used=np.array([9, 5, 8, 6]))
    found.together = np.array([[9, 1, 4, 3], [1, 5, 2, 0], [4, 2, 8, 6], [3, 0, 6, 6]])
    found.words = np.zeros((4, 10), bool)  # ids in common: 0 and 1: 3, 4 and 7: 1, others: 0
    found.words[[0, 1], :3], found.words[[2, 3], 5] = True, True
    drawn = np.random.default_rng(0)
    # 4 and 7 are together most, then of those left 0 and 4, then 0 and 1.
    assert weakest([found], "ECC", "max", 3, drawn) == [(7, 6), (4, 4), (1, 1)]
    # 1 and 7 never, then 0 and 7, then 0 and 4.
    assert weakest([found], "ECC", "min", 3, drawn) == [(1, 0), (7, 3), (4, 4)]
    assert weakest([found], "ETS", "max", 2, drawn) == [(1, 3), (7, 1)]
    assert weakest([found], "ETS", "min", 1, drawn) == [(4, 0)]  # 0 and 4, the first such pair


def test_minimum_and_maximum_are_opposite_ends():
    model, data = network("token")
    for name, criterion in CRITERIA.items():
        if criterion.pairs or name == "random":
            continue
        found = gather(model, criterion.needs, data)["experts"]
        scores = np.asarray(criterion.score(found))
        for extreme, order in (
            ("min", np.argsort(scores, kind="stable")),
            ("max", np.argsort(-scores, kind="stable")),
        ):
            gone = weakest([found], name, extreme, 2, np.random.default_rng(0))
            assert [expert for expert, _ in gone] == order[:2].tolist(), (name, extreme)
            assert [score for _, score in gone] == [float(scores[e]) for e, _ in gone]


def test_of_experts_left_only_those_count():
    """As if the others had never been: the statistics of the smaller layer."""
    model, data = network("mixtral")
    kept = [0, 2, 3]
    smaller = model.get_layer("experts").keep_experts(kept)
    inputs = keras.Input((TOKENS,), dtype="int32")
    x = smaller(keras.layers.Embedding(IDS, DIM, name="embed")(inputs))
    cut = keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))
    for name in ("embed", "head"):
        cut.get_layer(name).set_weights(model.get_layer(name).get_weights())
    for name, criterion in CRITERIA.items():
        if criterion.needs == "gradients":  # those are of the network as it answers
            continue
        found = gather(model, criterion.needs, data, {"experts": np.array(kept)})["experts"]
        np.testing.assert_allclose(criterion.score(found), computed(cut, data, name), rtol=1e-5)


def test_what_is_missing_is_said():
    image, data = network("image")
    for name in ("EVTC", "ETS"):
        with pytest.raises(NotApplicable, match="no token ids"):
            computed(image, data, name)
    token, data = network("token")
    with pytest.raises(NotApplicable, match="examples"):
        computed(token, None, "EUF")
    for blind in (Data(data.inputs), Data(data.inputs, data.targets)):
        with pytest.raises(NotApplicable, match="targets and a loss"):
            computed(token, blind, "EGN")
    with pytest.raises(ValueError, match="top_k=2 of 1 left"):
        gather(token, "routes", data, {"experts": np.array([2])})
    found = gather(token, "routes", data)["experts"]
    with pytest.raises(ValueError, match="4 of 4 experts to drop"):
        weakest([found], "EUF", "min", 4, np.random.default_rng(0))


def test_layers_of_one_router_are_judged_together():
    """By the mean of standard scores, so that a layer of large numbers does not decide alone."""
    found = gather(*_with_data("token", "outputs"))["experts"]
    other = gather(*_with_data("token", "outputs"))["experts"]
    other.squares = other.squares[::-1] * 1e6
    scores = [np.sqrt(one.squares).sum(1) for one in (found, other)]
    expected = sum((s - s.mean()) / s.std() for s in scores) / 2
    ((expert, score),) = weakest([found, other], "EAN", "min", 1, np.random.default_rng(0))
    assert expert == np.argmin(expected) and score == pytest.approx(expected.min())


def _with_data(kind, needs):
    model, data = network(kind)
    return model, needs, data


def all_scores():
    """Scores by kind of network and criterion."""
    found = {}
    for kind in ("mixtral", "image"):
        model, data = network(kind)
        for name in CRITERIA:
            if kind != "image" or name not in ("EVTC", "ETS"):
                found[kind, name] = np.asarray(computed(model, data, name))
    return found


@pytest.mark.slow
def test_jax_gives_the_same_scores(on_jax):
    expected, found = all_scores(), on_jax(all_scores)
    assert found.keys() == expected.keys() and len(found) == 2 * len(CRITERIA) - 2
    for each, scores in expected.items():
        np.testing.assert_allclose(found[each], scores, rtol=1e-3, atol=1e-4, err_msg=str(each))
