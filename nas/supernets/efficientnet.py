"""EfficientNets, and those of EfficientNet-X that keep their images, as networks of a supernet."""

from families.efficientnet import Block, Config
from nas.supernets.layers import ACTIVATIONS
from nas.supernets.outline import Outline, Stage, divisor


def outline(config: Config) -> Outline:
    """ValueError of blocks in a layout: theirs are other weights, of four times the channels."""
    activations = {config.activation, *(block.activation for block in config.blocks)}
    for name in activations.difference(ACTIVATIONS):
        raise ValueError(f"no supernet has {name} (there is: {', '.join(ACTIVATIONS)})")
    if any(block.layout != "none" for block in config.blocks):
        raise ValueError(
            "no supernet has space-to-depth or space-to-batch: search with --evaluator train, or"
            " without them: --space efficientnet_x:BASE,layouts=false"
        )
    return Outline(
        input_shape=config.input_shape,
        classes=config.classes,
        stem_filters=config.stem_filters,
        stem_stride=config.stem_stride,
        head_filters=config.head_filters,
        stages=tuple(map(_stage, config.blocks)),
        activation=config.activation,
    )


def _stage(block: Block) -> Stage:
    return Stage(
        # Without expansion it is another operation, as in MnasNet's words.
        operation="depthwise" if (block.op, block.expand) == ("mbconv", 1) else block.op,
        kernel=block.kernel,
        stride=block.stride,
        filters=block.filters,
        repeats=block.repeats,
        expand=block.expand,
        squeeze=divisor(block.se_ratio),
        skip="identity" if block.skip else "none",
        activation=block.activation,
    )
