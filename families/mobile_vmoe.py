"""V-MoE and Mobile V-MoE: vision transformers in which some MLPs are mixtures of experts.

V-MoE routes every token: Riquelme et al., arXiv 2106.05974 (table 7; google-research/vmoe). Mobile
V-MoE routes whole images, by one router for all layers, which can be taught what experts are for by
super-classes of images: Daxberger et al., arXiv 2309.04354.
"""

import dataclasses
import functools
from typing import Any

import keras

from families import vit
from families.blocks.checks import check, spell
from families.layers import Experts

_check = functools.partial(check, "MobileVMoE")

IMAGENET, JFT = 1000, 18_291  # classes


@dataclasses.dataclass(frozen=True)
class Config(vit.Config):
    """A whole network in canonical form: two Configs are equal exactly when their networks are.

    moe_blocks: numbers of the blocks, from 1, in which `experts` MLPs of `expert_hidden` units each
        replace the MLP, and `top_k` of them are used. With 1 expert that is a plain MLP.
    routing: "token", each layer with a router of its own, without bias; or "image", one router with
        bias, before the first of these layers. It sees the mean of the tokens there (which of the
        tokens it is, the paper's public descriptions do not say: our choice).
    capacity, batch_priority, noise, importance_weight, load_weight: see `families.layers.Experts`;
        for images the noise would differ from layer to layer, so there is none.
    router_outputs: the model gives {"logits", "router"}, what the router is to be trained with.
    """

    moe_blocks: tuple[int, ...] = ()
    experts: int = 1
    top_k: int = 1
    expert_hidden: int = 0  # 0: as `hidden`
    routing: str = "token"
    capacity: float | None = None
    batch_priority: bool = False
    noise: float = 0.0
    importance_weight: float = 0.0
    load_weight: float = 0.0
    router_outputs: bool = False

    def __post_init__(self):
        super().__post_init__()
        spell(self, _canonical(self))


def _canonical(config: Config) -> dict:
    """Check every field of the experts and give equal choices the same spelling."""
    numbers = {name: int(getattr(config, name)) for name in ("experts", "top_k")}
    _check(numbers["experts"] > 0, "experts", config.experts, "a positive integer")
    _check(
        1 <= numbers["top_k"] <= numbers["experts"],
        "top_k",
        config.top_k,
        f"1 to {config.experts}, as many as there are experts",
    )
    blocks = tuple(sorted({int(block) for block in config.moe_blocks}))
    _check(
        not blocks or (blocks[0] >= 1 and blocks[-1] <= config.layers),
        "moe_blocks",
        config.moe_blocks,
        f"numbers from 1 to {config.layers}",
    )
    hidden = int(config.expert_hidden) or config.hidden
    _check(hidden > 0, "expert_hidden", config.expert_hidden, "a positive integer, or 0")
    _check(config.routing in ("token", "image"), "routing", config.routing, "token or image")
    _check(
        config.routing == "token" or not (config.noise or config.load_weight),
        "noise and load_weight",
        (config.noise, config.load_weight),
        "0, where images are routed",
    )
    fields: dict[str, Any] = numbers | {
        "moe_blocks": blocks,
        "expert_hidden": hidden,
        "routing": str(config.routing),
        "capacity": None if config.capacity is None else float(config.capacity),
        "batch_priority": bool(config.batch_priority and config.capacity is not None),
        "noise": float(config.noise),
        "importance_weight": float(config.importance_weight),
        "load_weight": float(config.load_weight),
        "router_outputs": bool(config.router_outputs),
    }
    if not blocks or numbers["experts"] == 1:  # nothing to route
        _check(not config.router_outputs, "router_outputs", True, "False without a router")
        plain = {field.name: field.default for field in dataclasses.fields(Config)}
        kept = ("moe_blocks", "expert_hidden") if blocks and hidden != config.hidden else ()
        fields = {name: fields[name] if name in kept else plain[name] for name in fields}
    _check(
        not config.router_outputs or config.routing == "image",
        "router_outputs",
        True,
        "False where tokens are routed: each layer has its own router",
    )
    return fields


def _vmoe(size: str, patch: int, layout: str = "", classes: int = JFT) -> Config:
    """A network of table 7: `layout` is "every2", "last2" (of those) or, for the dense one, ""."""
    layers, dim, heads, hidden = {
        "s": (8, 512, 8, 2048),
        "b": (12, 768, 12, 3072),
        "l": (24, 1024, 16, 4096),
        "h": (32, 1280, 16, 5120),
        "15b": (48, 1408, 16, 6400),
    }[size]
    every_second = tuple(range(2, layers + 1, 2))
    last = int(layout[4:]) if layout.startswith("last") else len(every_second)
    config = Config((224, 224, 3), classes, patch, layers, dim, heads, hidden, pre_logits=True)
    if not layout:
        return config
    return dataclasses.replace(
        config,
        moe_blocks=every_second[-last:],
        experts=32,
        top_k=2,
        capacity=1.05,
        noise=1.0,
        importance_weight=0.005,  # half of 0.01 for each loss: appendix B.4
        load_weight=0.005,
    )


_TI = Config(
    (224, 224, 3),
    IMAGENET,
    patch=16,
    layers=12,
    dim=192,
    heads=3,
    hidden=768,
    moe_blocks=(11, 12),
    experts=10,
    top_k=2,
    routing="image",
    importance_weight=0.005,
)
# For small grey images: so narrow that a few experts pay (tools/bench_vmoe.py).
_TINY = Config(
    (28, 28, 1),
    10,
    patch=8,
    stem=(16, 32, 32),
    layers=4,
    dim=32,
    heads=4,
    hidden=32,
    moe_blocks=(3, 4),
    experts=10,
    top_k=2,
    expert_hidden=16,
    routing="image",
    importance_weight=0.005,
)

VARIANTS: dict[str, Config] = {
    "ti16": _TI,
    "ti16_k1": dataclasses.replace(_TI, top_k=1),
    **{
        f"{size}{patch}{layout and '_'}{layout}": _vmoe(size, patch, layout)
        for size, patch, layout in (
            *(("s", 32, ""), ("s", 32, "last2"), ("s", 32, "every2")),
            *(("b", 32, ""), ("b", 32, "every2"), ("b", 16, ""), ("b", 16, "every2")),
            *(("l", 32, ""), ("l", 32, "last2"), ("l", 16, ""), ("l", 16, "every2")),
            *(("h", 14, ""), ("h", 14, "last5"), ("h", 14, "every2")),
        )
    },
    # Its head has as many classes as make the published count.
    "15b_every2": _vmoe("15b", 14, "every2", classes=29_593),
    # Released, trained on ImageNet alone.
    "s32_last2_e8": dataclasses.replace(_vmoe("s", 32, "last2", classes=IMAGENET), experts=8),
    "tiny": _TINY,
    "tiny_token": dataclasses.replace(_TINY, routing="token", noise=1.0, load_weight=0.005),
}


def build(config: Config) -> keras.Model:
    """Images (batch, *input_shape) -> logits (batch, classes): flat and Functional.

    With `router_outputs` the output is {"logits", "router": (batch, experts)}.

    >>> build(VARIANTS["tiny"]).count_params()
    59716
    """
    inputs = keras.Input(config.input_shape, name="image")
    x, router = vit.embed(inputs, config), None
    for number in range(1, config.layers + 1):
        path = f"block{number}"
        x = vit.attend(x, config, path)
        if number not in config.moe_blocks:
            x = vit.mlp(x, config, config.hidden, path)
        elif config.experts == 1:
            x = vit.mlp(x, config, config.expert_hidden or config.hidden, path)
        else:
            x, router = _experts(x, config, path, router)
    logits = vit.classify(x, config)
    outputs = {"logits": logits, "router": router} if config.router_outputs else logits
    return keras.Model(inputs, outputs, name="mobile_vmoe")


def deploy(config: Config) -> Config:
    """The form that runs on a device: no token is dropped, and only the logits come out."""
    return dataclasses.replace(config, capacity=None, router_outputs=False)


def dense_twin(config: Config) -> Config:
    """The network without experts that does the same multiply-adds, but for the router's."""
    hidden = config.top_k * (config.expert_hidden or config.hidden)
    return dataclasses.replace(
        config, experts=1, top_k=1, expert_hidden=hidden, capacity=None, router_outputs=False
    )


def _experts(inputs: Any, config: Config, path: str, router: Any) -> Any:
    """The mixture in place of an MLP; returns the sum and the logits of the router, if shared."""
    x = vit.norm(inputs, f"{path}_mlp_norm")
    first = router is None
    if config.routing == "image" and first:
        mean = keras.layers.GlobalAveragePooling1D(name="router_mean")(x)
        router = keras.layers.Dense(config.experts, name="router")(mean)
    x = Experts(
        config.experts,
        config.expert_hidden,
        config.top_k,
        capacity=config.capacity,
        batch_priority=config.batch_priority,
        routing=config.routing,
        noise=config.noise,
        # One router for all layers has one loss.
        importance_weight=config.importance_weight if first else 0.0,
        load_weight=config.load_weight,
        name=f"{path}_experts",
    )(*([x] if router is None else [x, router]))
    x = vit.dropout(x, config, f"{path}_experts_dropout")
    return keras.layers.Add(name=f"{path}_experts_add")([inputs, x]), router
