"""A forest of extremely randomized trees as plain arrays: grown by scikit-learn, asked with NumPy.

Geurts et al., "Extremely randomized trees", Machine Learning 63, 2006.
"""

import dataclasses

import numpy as np

TREES = 60


@dataclasses.dataclass(frozen=True, eq=False)
class Forest:
    """All nodes of all trees in one list; `roots` are where the trees begin. A leaf has no left."""

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    roots: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """What each tree says (n, trees) of features (n, d)."""
        rows = np.arange(len(features))[:, None]
        nodes = np.broadcast_to(self.roots, (len(features), len(self.roots)))
        features = features.astype(np.float32)  # as the trees were grown
        while True:
            left = self.left[nodes]
            if (left < 0).all():
                return self.value[nodes]
            goes_left = features[rows, self.feature[nodes]] <= self.threshold[nodes]
            down = np.where(goes_left, left, self.right[nodes])
            nodes = np.where(left < 0, nodes, down)


def grow(features: np.ndarray, values: np.ndarray, weights: np.ndarray, seed: int = 0) -> Forest:
    """A forest of `values` (n,) given features (n, d)."""
    from sklearn.ensemble import ExtraTreesRegressor

    model = ExtraTreesRegressor(TREES, bootstrap=True, random_state=seed)
    model.fit(features, values, weights)
    parts: dict[str, list[np.ndarray]] = {}
    offset, roots = 0, []
    for estimator in model.estimators_:
        tree = estimator.tree_
        leaf = tree.children_left < 0
        for name, array in (
            ("feature", np.maximum(tree.feature, 0)),
            ("threshold", tree.threshold),
            ("left", np.where(leaf, -1, tree.children_left + offset)),
            ("right", np.where(leaf, -1, tree.children_right + offset)),
            ("value", tree.value[:, 0, 0]),
        ):
            parts.setdefault(name, []).append(array)
        roots.append(offset)
        offset += tree.node_count
    return Forest(**{name: np.concatenate(p) for name, p in parts.items()}, roots=np.array(roots))
