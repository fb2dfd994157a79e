"""Decoders in .keras files: the Config is read off the layers, and must build the same network."""

import json
import pathlib
import re
from typing import Any

import numpy as np

from families import decoder
from families.layers.shapes import shapes_only
from latency.networks import keras_file
from nas.files.readers.checkpoint import Checkpoint


def read(path: str | pathlib.Path) -> Checkpoint:
    """The decoder in a .keras file, of whatever form; ValueError if it is another network."""
    path = pathlib.Path(path)
    model = keras_file.load(path)
    weights = {weight.path: np.asarray(weight) for weight in model.weights}
    return Checkpoint(config_of(model, str(path)), weights, str(path))


def config_of(model: Any, source: str) -> decoder.Config:
    """The Config that builds `model`."""
    layers = {layer.name: layer for layer in model.layers}
    try:
        config = _config(layers)
        with shapes_only():
            again = decoder.build(config)
    except (KeyError, AttributeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{source} is no network of families/decoder.py ({error!r})") from error
    if _layers_as_json(model) != _layers_as_json(again):
        raise ValueError(f"{source} is not the network that {config} builds: layers were changed")
    return config


def _layers_as_json(model: Any) -> str:
    """What a .keras file says of the layers."""
    described = [(type(layer).__name__, layer.get_config()) for layer in model.layers]
    return json.dumps(described, default=str, sort_keys=True)


def _config(layers: dict[str, Any]) -> decoder.Config:
    contexts = [layers[name] for name in layers if name.endswith("_attention_context")]
    count, first, embed = len(contexts), contexts[0], layers["embed"]
    keyed = [name for name in layers if re.fullmatch(r"block\d+_attention_key", name)]
    experts = [name for name in layers if name.endswith("_feed_experts")]
    gates = [name for name in layers if name.endswith("_feed_gate")]
    mixture = layers[experts[0]] if experts else None
    gate = layers[gates[0]] if gates else None
    if gate is None and mixture is None:
        raise KeyError("a feed-forward layer")
    feed: Any = mixture if gate is None else gate
    activations = {function: name for name, function in decoder.ACTIVATIONS.items()}
    windows = [context.window or 0 for context in contexts]
    window = max(windows)
    tokens, cache = layers["tokens"], layers.get("block1_cache_key_next")
    capacity = 0 if cache is None else max(_capacities(layers))
    rotary = [n for n in range(1, count + 1) if f"block{n}_attention_query_rotary" in layers]
    last = any(name.endswith("_last") for name in layers)
    return decoder.Config(
        vocabulary=embed.input_dim,
        length=tokens.batch_shape[1],
        dim=embed.output_dim,
        layers=count,
        heads=first.heads,
        key_value_heads=first.key_value_heads,
        hidden=feed.hidden if gate is None else feed.units,
        head_width=layers["block1_attention_query"].units // first.heads,
        activation=feed.activation if gate is None else activations[feed.activation],
        tied="head_logits" not in layers,
        qk_norm="block1_attention_query_norm" in layers,
        shared=count - len(keyed),
        window=window,
        local=windows.index(0) if 0 in windows else count,
        global_rope=len(rotary) == count,
        experts=0 if mixture is None else mixture.count,
        top_k=0 if mixture is None else mixture.top_k,
        expert_every=_block(experts[0]) if experts else 0,
        rope_theta=layers["rotary_angles"].theta,
        norm_epsilon=layers["head_norm"].epsilon,
        dropout=layers["embed_dropout"].rate if "embed_dropout" in layers else 0.0,
        cache=capacity,
        last_only=last,
    )


def _block(name: str) -> int:
    found = re.match(r"block(\d+)_", name)
    if found is None:
        raise ValueError(f"layer {name!r} is of no block")
    return int(found[1])


def _capacities(layers: dict[str, Any]) -> list[int]:
    names = [name for name in layers if re.fullmatch(r"block\d+_cache_key_next", name)]
    return [layers[name].count for name in names]
