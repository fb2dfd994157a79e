"""Leaf layers: what several families share and Keras lacks. Importing this registers them all."""

from families.layers.activations import gelu
from families.layers.attention import Attention
from families.layers.cached import CacheBias, KeepLast
from families.layers.detections import Anchors, Detections
from families.layers.embedding import TiedEmbedding
from families.layers.experts import Experts
from families.layers.frames import LastFrames, ValidContext, ValidFrames
from families.layers.fusion import Fusion
from families.layers.head_norm import HeadNormalization
from families.layers.instruction_mask import MaskedFeedForward, MaskPredictor
from families.layers.label_context import LabelContext
from families.layers.layouts import BatchToDepth, DepthToBatch, DepthToSpace, SpaceToDepth
from families.layers.log_mel import LogMel
from families.layers.lstm import LSTM
from families.layers.relative_attention import FrameAttention, RelativeAttention
from families.layers.rotary import Rotary, RotaryAngles
from families.layers.rounding import round_filters
from families.layers.shapes import shapes_only
from families.layers.tokens import ClassToken, Positions
from families.layers.weights import copy_weights

__all__ = [
    "LSTM",
    "Anchors",
    "Attention",
    "BatchToDepth",
    "CacheBias",
    "ClassToken",
    "DepthToBatch",
    "DepthToSpace",
    "Detections",
    "Experts",
    "FrameAttention",
    "Fusion",
    "HeadNormalization",
    "KeepLast",
    "LabelContext",
    "LastFrames",
    "MaskPredictor",
    "MaskedFeedForward",
    "LogMel",
    "Positions",
    "RelativeAttention",
    "Rotary",
    "RotaryAngles",
    "SpaceToDepth",
    "TiedEmbedding",
    "ValidContext",
    "ValidFrames",
    "copy_weights",
    "gelu",
    "round_filters",
    "shapes_only",
]
