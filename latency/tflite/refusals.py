"""Why TensorFlow's converter makes no file of a network, in one line with a layer and a remedy."""

import re
from collections.abc import Mapping
from typing import Any

_MISSING = re.compile(r"error: 'tf\.(\w+)' op is neither")
_CARRIERS = ("Placeholder",)  # what a missing operation reads, itself missing
_MOST = 300  # characters of what TensorFlow says otherwise


def reason(model: Any, error: Exception, placed: Mapping[str, str]) -> str:
    """One line for what the conversion of a Keras model raised.

    placed: kind of operation -> the name of one in the graph, which begins with model and layer.

    >>> from types import SimpleNamespace as Some
    >>> net = Some(name="net", layers=[Some(name="pool")])
    >>> text = "error: 'tf.MaxPool3D' op is neither a custom op nor a flex op"
    >>> reason(net, ValueError(text), {"MaxPool3D": "net_1/pool_1/Pool"}).partition(";")[0]
    "model 'net': layer 'pool' (SimpleNamespace) needs MaxPool3D, which LiteRT does not have"
    """
    for kind in _MISSING.findall(str(error)):
        if kind not in _CARRIERS:
            layer = _layer(model, placed.get(kind, ""))
            named = f"layer {layer.name!r} ({type(layer).__name__})" if layer else "the network"
            return (
                f"model {model.name!r}: {named} needs {kind}, which LiteRT does not have; give "
                "the network without it, or with another layer in its place"
            )
    lines = [one for one in str(error).splitlines() if "error:" in one] or [str(error)]
    text = " ".join(lines[0].split("error:")[-1].split()) or type(error).__name__
    return (
        f"model {model.name!r}: TensorFlow's converter makes no LiteRT file of it: {text[:_MOST]}"
    )


def _layer(model: Any, scope: str) -> Any:
    """The layer in a name such as net_1/pool_1/MaxPool3D, which count the calls; None: unknown."""
    parts = [re.sub(r"_\d+$", "", part) for part in scope.split("/")] + scope.split("/")
    return next((layer for layer in model.layers if layer.name in parts), None)
