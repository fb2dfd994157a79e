"""What the experts for whole images are for: super-classes of images that are easily confused.

Daxberger et al., "Mobile V-MoEs", arXiv 2309.04354: classes are clustered by the confusions of a
dense network, and the router learns to name the cluster beside the network's own loss.
"""

from typing import Any

import numpy as np
from keras import ops


def super_classes(confusion: np.ndarray, groups: int) -> np.ndarray:
    """Super-class 0..groups-1 of every class, int32 (classes,), numbered as they first appear.

    `confusion` (classes, classes) counts how often an image of class i was taken for one of class
    j. Spectral clustering of the graph whose edges are the shares of confusions, both ways; with as
    many groups as classes each class is its own.
    """
    counts = np.asarray(confusion, np.float64)
    classes = len(counts)
    if counts.shape != (classes, classes) or counts.min() < 0:
        raise ValueError(f"confusion {counts.shape}; expected counts (classes, classes)")
    if not 1 <= groups <= classes:
        raise ValueError(f"{groups} groups of {classes} classes; expected 1 to {classes}")
    if groups == classes:
        return np.arange(classes, dtype=np.int32)
    if groups == 1:
        return np.zeros(classes, np.int32)
    from sklearn.cluster import SpectralClustering  # slow to import

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    edges = shares + shares.T
    np.fill_diagonal(edges, 0)
    # Clustering needs a connected graph: what was never confused is confused a little.
    edges = edges + 1e-6 + 1e-3 * edges.mean()
    found = SpectralClustering(groups, affinity="precomputed", assign_labels="cluster_qr")
    labels = found.fit_predict(edges)
    order = {label: number for number, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()], np.int32)


def router_loss(logits: Any, labels: Any, mapping: np.ndarray) -> Any:
    """Cross-entropy (batch,) of the router's logits (batch, groups) and the labels' super-classes.

    `mapping` (classes,) is of `super_classes`; expert e is for super-class e, so there must be as
    many experts.
    """
    groups = int(np.max(mapping)) + 1
    if logits.shape[-1] != groups:
        raise ValueError(f"{logits.shape[-1]} experts for {groups} super-classes; expected as many")
    targets = ops.take(ops.convert_to_tensor(np.asarray(mapping, np.int32)), labels)
    return ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
