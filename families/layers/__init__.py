"""Leaf layers: what several families share and Keras lacks. Importing this registers them all."""

from families.layers.activations import gelu
from families.layers.attention import Attention
from families.layers.cached import CacheBias, KeepLast
from families.layers.embedding import TiedEmbedding
from families.layers.experts import Experts
from families.layers.head_norm import HeadNormalization
from families.layers.rotary import Rotary, RotaryAngles
from families.layers.rounding import round_filters
from families.layers.shapes import shapes_only
from families.layers.weights import copy_weights

__all__ = [
    "Attention",
    "CacheBias",
    "Experts",
    "HeadNormalization",
    "KeepLast",
    "Rotary",
    "RotaryAngles",
    "TiedEmbedding",
    "copy_weights",
    "gelu",
    "round_filters",
    "shapes_only",
]
