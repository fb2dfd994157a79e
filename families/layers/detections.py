"""The ends of a detector: anchors beside what it gives while it is trained, objects in the end."""

from typing import Any

import keras
from keras import ops

from families.objectives import boxes


@keras.saving.register_keras_serializable("nas")
class Anchors(keras.layers.Layer):
    """(batch, A, ...) -> the anchors (batch, A, 4) of an image, the same for every image.

    A network that gives them out with its codes can be trained and read without being known. See
    `families.objectives.boxes.anchors`.
    """

    def __init__(
        self,
        input_shape_of_image: tuple[int, int, int],
        levels: tuple[int, int],
        scale: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.input_shape_of_image = tuple(input_shape_of_image)
        self.levels = (int(levels[0]), int(levels[1]))
        self.scale = scale

    def call(self, inputs: Any) -> Any:
        around = boxes.anchors(self.input_shape_of_image, self.levels, self.scale)
        return ops.broadcast_to(
            ops.convert_to_tensor(around), (ops.shape(inputs)[0], *around.shape)
        )

    def compute_output_spec(self, inputs: Any) -> Any:
        places = boxes.sizes(self.input_shape_of_image, self.levels)
        count = boxes.PER_PLACE * sum(rows * columns for rows, columns in places)
        return keras.KerasTensor((inputs.shape[0], count, 4), "float32")

    def macs(self, *_: Any) -> int:
        return 0

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "input_shape_of_image": self.input_shape_of_image,
            "levels": self.levels,
            "scale": self.scale,
        }


@keras.saving.register_keras_serializable("nas")
class Detections(keras.layers.Layer):
    """[logits (batch, A, classes), codes (batch, A, 4)] -> objects, as `boxes.select_objects` does.

    Three outputs: boxes (batch, most, 4), scores and classes (batch, most). By convention no MACs:
    overlaps are no multiplications of weights.
    """

    chooses_outputs = True

    def __init__(
        self,
        input_shape_of_image: tuple[int, int, int],
        levels: tuple[int, int],
        scale: float,
        candidates: int = boxes.CANDIDATES,
        most: int = boxes.MOST,
        overlap: float = boxes.OVERLAP,
        least_score: float = boxes.LEAST_SCORE,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.input_shape_of_image = tuple(input_shape_of_image)
        self.levels = (int(levels[0]), int(levels[1]))
        self.scale = scale
        self.candidates = candidates
        self.most = most
        self.overlap = overlap
        self.least_score = least_score

    def call(self, inputs: Any) -> Any:
        logits, codes = inputs
        around = boxes.anchors(self.input_shape_of_image, self.levels, self.scale)
        objects = boxes.select_objects(
            logits,
            codes,
            around,
            self.input_shape_of_image,
            candidates=self.candidates,
            most=self.most,
            overlap=self.overlap,
            least_score=self.least_score,
        )
        return objects["boxes"], objects["scores"], objects["classes"]

    def compute_output_spec(self, inputs: Any) -> Any:
        batch = inputs[0].shape[0]
        return (
            keras.KerasTensor((batch, self.most, 4), "float32"),
            keras.KerasTensor((batch, self.most), "float32"),
            keras.KerasTensor((batch, self.most), "int32"),
        )

    def macs(self, *_: Any) -> int:
        return 0

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "input_shape_of_image": self.input_shape_of_image,
            "levels": self.levels,
            "scale": self.scale,
            "candidates": self.candidates,
            "most": self.most,
            "overlap": self.overlap,
            "least_score": self.least_score,
        }
