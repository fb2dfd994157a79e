"""Leaf layers: what several families share and Keras lacks. Importing this registers them all."""

from families.layers.attention import Attention
from families.layers.rounding import round_filters
from families.layers.shapes import shapes_only
from families.layers.weights import copy_weights

__all__ = ["Attention", "copy_weights", "round_filters", "shapes_only"]
