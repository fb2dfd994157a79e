"""Hugging Face's Llama, Mistral and Mixtral: config.json and the names in their safetensors.

Kernels are stored (outputs, inputs); rotary pairs are halves, as ours.
"""

import json
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from families import decoder
from nas.files.readers.checkpoint import Checkpoint
from nas.files.readers.safetensors import Tensors

MODELS = ("llama", "mistral", "mixtral")
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
# What a config.json may say that our networks do not do; the values with which they are equal.
UNKNOWN = {
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
}
LAYER = {
    "input_layernorm": "attention_norm/scale",
    "self_attn.q_proj": "attention_query/kernel",
    "self_attn.k_proj": "attention_key/kernel",
    "self_attn.v_proj": "attention_value/kernel",
    "self_attn.o_proj": "attention_output/kernel",
    "post_attention_layernorm": "feed_norm/scale",
    "mlp.gate_proj": "feed_gate/kernel",
    "mlp.up_proj": "feed_up/kernel",
    "mlp.down_proj": "feed_down/kernel",
    "block_sparse_moe.gate": "feed_experts/router",
}
OUTSIDE = {
    "model.embed_tokens": "embed/embeddings",
    "model.norm": "head_norm/scale",
    "lm_head": "head_logits/kernel",
}
EXPERT = {"w1": "gate", "w3": "expand", "w2": "project"}
COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")


def read(path: pathlib.Path, found: Tensors, config_file: pathlib.Path) -> Checkpoint:
    """The network in Hugging Face's files of one folder."""
    config = _config(config_file, "lm_head.weight" not in found)
    return Checkpoint(config, _Renamed(found, config), str(path))


def _config(path: pathlib.Path, lacks_head: bool) -> decoder.Config:
    try:
        fields = json.loads(path.read_bytes())
        kind = fields.get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a config.json of Hugging Face: {error}") from error
    if kind not in MODELS:
        raise ValueError(f"{path}: model_type {kind!r}; expected one of {', '.join(MODELS)}")
    rope = fields.get("rope_parameters") or {}  # since transformers 5
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = rope
    for name, equal in UNKNOWN.items():
        if fields.get(name) not in equal:
            raise ValueError(
                f"{path}: {name}={fields[name]!r} is not supported; expected {equal[0]}"
            )
    activation = fields.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{path}: hidden_act={activation!r}; expected {', '.join(ACTIVATIONS)}")
    mixture = kind == "mixtral"
    try:
        return decoder.Config(
            vocabulary=fields["vocab_size"],
            length=fields["max_position_embeddings"],
            dim=fields["hidden_size"],
            layers=fields["num_hidden_layers"],
            heads=fields["num_attention_heads"],
            key_value_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"],
            hidden=fields["intermediate_size"],
            head_width=fields.get("head_dim") or 0,
            activation=ACTIVATIONS[activation],
            tied=bool(fields.get("tie_word_embeddings", False)) or lacks_head,
            experts=fields["num_local_experts"] if mixture else 0,
            top_k=fields["num_experts_per_tok"] if mixture else 0,
            rope_theta=rope.get("rope_theta") or fields.get("rope_theta") or 10000.0,
            norm_epsilon=fields.get("rms_norm_eps", 1e-6),
        )
    except (KeyError, TypeError, ValueError) as error:
        missing = "lacks " if isinstance(error, KeyError) else ""
        raise ValueError(f"{path}: {missing}{error}") from error


class _Renamed(Mapping):
    """The arrays of a file under our paths; experts, which it holds one by one, together."""

    def __init__(self, found: Tensors, config: decoder.Config):
        self._found = found
        self._parts: dict[str, list[str]] = {}
        for name in found:
            if COMPUTED.fullmatch(name) or (config.tied and name == "lm_head.weight"):
                continue
            self._parts.setdefault(_path(name), []).append(name)
        self._experts = config.experts

    def __getitem__(self, path: str) -> np.ndarray:
        names = self._parts[path]
        if len(names) == 1 and ".experts." not in names[0]:
            value = self._found[names[0]]
            return value if path.endswith(("scale", "embeddings")) else value.T
        if len(names) != self._experts:
            raise ValueError(f"{path} has {len(names)} experts; expected {self._experts}")
        names = sorted(names, key=lambda name: int(name.split(".experts.")[1].split(".")[0]))
        return np.stack([self._found[name].T for name in names])

    def __iter__(self):
        return iter(self._parts)

    def __len__(self):
        return len(self._parts)


def _path(name: str) -> str:
    """Our path of a weight; its own name where we know none."""
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return OUTSIDE[stem]
    layer = re.fullmatch(r"model\.layers\.(\d{1,6})\.(.+)", stem)
    if layer is None:
        return name
    block = f"block{int(layer[1]) + 1}"
    if layer[2] in LAYER:
        return f"{block}_{LAYER[layer[2]]}"
    expert = re.fullmatch(r"block_sparse_moe\.experts\.\d{1,6}\.(w[123])", layer[2])
    return f"{block}_feed_experts/{EXPERT[expert[1]]}" if expert else name
