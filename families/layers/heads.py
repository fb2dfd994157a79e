"""Channels of attention heads: a head leaves as a whole, or not at all."""

from typing import Any

import numpy as np

from families.layers.protocol import ChannelGraph, Labels


def tie_groups(graph: ChannelGraph, labels: Labels, groups: int) -> bool:
    """Tie queries, keys and values of each group of heads; False where they do not divide."""
    query, key, value = labels[:3]
    if any(len(one) % groups for one in (query, key, value)):
        return False
    rows = [one.reshape(groups, -1) for one in (query, key, value)]
    graph.tie_within(np.concatenate(rows, axis=1))
    return True


def tie_heads(graph: ChannelGraph, layer: Any, labels: np.ndarray) -> Labels:
    """The rule of a layer that treats each of its `heads` by itself."""
    heads = labels.reshape(layer.heads, -1)
    graph.tie_within(heads)
    width = heads.shape[1]
    graph.size(layer, heads=lambda count: count(labels) // width)
    return [labels]
