"""Runs the network beside this file on one example.

    python use.py EXAMPLE [FILE.tflite] [--json]

EXAMPLE: a picture, a .wav, a text, an .npy (of several inputs an .npz), or numbers as 1.5,2,3.
Needs ai-edge-litert and numpy, for pictures pillow; for a .keras file keras in place of LiteRT.
What the file takes and gives stands in it: unzip -p FILE.tflite model_card.json
"""

import argparse
import json
import pathlib
import wave
import zipfile
from typing import Any

import numpy as np

CARD, LABELS = "model_card.json", "labels.txt"
PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
ASPECTS = ("stretch", "keep", "crop", "corner")
BACKGROUND = {"white": 255, "black": 0}
MOST = 5  # classes that are told
BLANK = "<blank>"  # of CTC

Arrays = dict[str, np.ndarray]


def picture(
    file: Any, shape: tuple[int, ...], aspect: str = "stretch", background: str = "white"
) -> np.ndarray:
    """The first frame of a picture as it is seen, uint8 of `shape` (height, width, 1 or 3).

    Turned as its EXIF data say, transparency put on `background`, 16 bits a channel made 8.
    aspect: "stretch" to the size; "keep": all of it, in the middle, with background around it;
    "crop": the middle of it; "corner": all of it, at the upper left.
    """
    from PIL import Image, ImageOps

    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    around = BACKGROUND[background]
    with Image.open(file) as opened:
        image: Any = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I") or image.mode == "F":  # Pillow would cut them at 255
            values = np.asarray(image, np.float64)
            most = 65535 if image.mode != "F" else 1.0
            if values.min(initial=0) < 0 or values.max(initial=0) > most:
                raise ValueError(f"its pixels go up to {values.max():g}; expected 0 to {most:g}")
            image = Image.fromarray(np.rint(values * (255 / most)).astype(np.uint8))
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            image = image.convert("RGBA")
            below = Image.new("RGBA", image.size, (around, around, around, 255))
            image = Image.alpha_composite(below, image)
        image = image.convert(mode)
    bilinear = Image.Resampling.BILINEAR
    if aspect == "stretch":
        image = image.resize((width, height), bilinear)
    elif aspect == "crop":
        image = ImageOps.fit(image, (width, height), bilinear)
    else:
        ratio = min(width / image.width, height / image.height)
        size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
        left, top = (
            (0, 0) if aspect == "corner" else ((width - size[0]) // 2, (height - size[1]) // 2)
        )
        whole = Image.new(mode, (width, height), around if channels == 1 else (around,) * 3)
        whole.paste(image.resize(size, bilinear), (left, top))
        image = whole
    return np.asarray(image, np.uint8).reshape(shape)


def sound(file: Any, rate: int) -> np.ndarray:
    """The samples of a .wav file, -1 to 1, its channels averaged; `ValueError` of another rate."""
    with wave.open(str(file), "rb") as opened:
        if opened.getframerate() != rate:
            raise ValueError(
                f"{file} has {opened.getframerate()} samples a second; expected {rate}: convert it,"
                f" as by ffmpeg -i {file} -ar {rate} converted.wav"
            )
        width, channels = opened.getsampwidth(), opened.getnchannels()
        content = opened.readframes(opened.getnframes())
    if width == 3:  # NumPy has no integers of 24 bits: the upper three of four bytes
        four = np.zeros((len(content) // 3, 4), np.uint8)
        four[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        content, width = four.tobytes(), 4
    values = np.frombuffer(content, {1: "<u1", 2: "<i2", 4: "<i4"}[width]).astype(np.float64)
    values = (values - 128) / 128 if width == 1 else values / 2 ** (8 * width - 1)
    return values.reshape(-1, channels).mean(1).astype(np.float32)


def normalized(values: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """(values / scale - mean) / std, as the network was trained."""
    values = values.astype(np.float32) / np.float32(entry["scale"])
    return (values - np.float32(entry["mean"])) / np.float32(entry["std"])


def read_card(file: Any) -> dict[str, Any]:
    """The model card in a .tflite or .keras file; `ValueError` where there is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = json.loads(archive.read(CARD))
            if LABELS in archive.namelist():
                found["labels"] = archive.read(LABELS).decode().split("\n")
            return found
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: no {CARD} in it ({error}); expected a file of nas") from error


def read(example: str, card: dict[str, Any]) -> Arrays:
    """What the network takes of an example, by the names of inputs: rows (steps, ...) or (1, ...).

    A network of one step a call, such as a token or a chunk of sound, takes several rows.
    """
    takes = [one for one in card["inputs"] if one["kind"] not in ("state", "position")]
    suffix = pathlib.Path(example).suffix.lower()
    if suffix == ".npz":
        with np.load(example) as archive:
            return {one["name"]: _array(archive[one["name"]], one) for one in takes}
    if len(takes) > 1:
        names = ", ".join(one["name"] for one in takes)
        raise ValueError(f"the network has the inputs {names}; expected an .npz with these arrays")
    entry, is_file = takes[0], pathlib.Path(example).is_file()
    shape = tuple(entry["shape"])
    if suffix in PICTURES and is_file:
        if entry["kind"] != "image":
            raise ValueError(f"{example} is a picture; expected {entry['kind']}, {shape}")
        pixels = picture(example, shape, entry["aspect"], entry["background"])
        return {entry["name"]: normalized(pixels, entry)[np.newaxis]}
    if suffix == ".wav" and is_file:
        if entry["kind"] != "audio":
            raise ValueError(f"{example} is a sound; expected {entry['kind']}, {shape}")
        samples = normalized(sound(example, entry["sample_rate"]), entry)
        length, streams = shape[0], any(one["kind"] == "state" for one in card["inputs"])
        count = max(1, -(-len(samples) // length)) if streams else 1
        silence = normalized(np.zeros(max(0, count * length - len(samples)), np.float32), entry)
        padded = np.concatenate([samples, silence])[: count * length]
        return {entry["name"]: padded.reshape(count, *shape)}
    if suffix == ".npy" and is_file:
        return {entry["name"]: _array(np.load(example), entry)}
    if entry["kind"] == "text":
        text = pathlib.Path(example).read_text() if is_file else example
        return {entry["name"]: _tokens(text, card).reshape(-1, *shape)}
    try:
        values = np.array([float(one) for one in example.split(",")], np.float32)
    except ValueError as error:
        raise ValueError(f"no file {example}, nor numbers; expected {entry['kind']}") from error
    return {entry["name"]: _array(values, entry)}


def _array(values: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """One example, with or without its batch; pixels and numbers as before preprocessing."""
    shape = tuple(entry["shape"])
    if values.size != np.prod(shape):
        raise ValueError(f"{entry['name']} has the shape {values.shape}; expected {shape}")
    values = values.reshape(1, *shape)
    return values if "int" in entry["dtype"] else normalized(values, entry)


def _tokens(text: str, card: dict[str, Any]) -> np.ndarray:
    """Ids of characters, or ids that are given as 3,14,15."""
    if card.get("tokenizer") == "characters":
        ids = {character: number for number, character in enumerate(card["vocabulary"])}
        if unknown := [one for one in text if one not in ids]:
            raise ValueError(f"character {unknown[0]!r} is none of those that the network knows")
        return np.array([ids[one] for one in text], np.int32)
    try:
        return np.array([int(one) for one in text.split(",")], np.int32)
    except ValueError as error:
        raise ValueError("expected the ids of tokens, as 3,14,15: see the tokenizer") from error


def run(file: Any, example: str) -> Arrays:
    """The outputs (1, ...) of an example by name; of several steps (steps, ...)."""
    card = read_card(file)
    rows = read(example, card)
    call = _keras(file) if str(file).endswith(".keras") else _litert(file)
    held = [one for one in card["inputs"] if one["kind"] == "state"]
    state = {one["name"]: np.zeros((1, *one["shape"]), one["dtype"]) for one in held}
    where = [one["name"] for one in card["inputs"] if one["kind"] == "position"]
    found: dict[str, list[np.ndarray]] = {}
    for step in range(len(next(iter(rows.values())))):
        given = {name: row[step : step + 1] for name, row in rows.items()}
        given |= {name: np.full((1, 1), step, np.int32) for name in where}
        outputs = call(given | state)
        state = {name: outputs.pop(name) for name in state}
        for name, values in outputs.items():
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


def _litert(file: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    signatures = list(interpreter.get_signature_list())
    if signatures:
        runner: Any = interpreter.get_signature_runner(signatures[0])
        takes, gives = runner.get_input_details(), runner.get_output_details()
    else:  # inputs and outputs go by their tensors
        interpreter.allocate_tensors()
        takes, gives = (
            {one["name"]: one for one in side}
            for side in (interpreter.get_input_details(), interpreter.get_output_details())
        )

        def runner(**given: np.ndarray) -> Arrays:
            for name, values in given.items():
                interpreter.set_tensor(takes[name]["index"], values)
            interpreter.invoke()
            return {name: interpreter.get_tensor(one["index"]) for name, one in gives.items()}

    def call(inputs: Arrays) -> Arrays:
        given = {}
        for name, values in inputs.items():
            kind, (scale, zero) = takes[name]["dtype"], takes[name]["quantization"]
            if scale and np.dtype(kind).kind in "iu" and values.dtype.kind == "f":
                limits = np.iinfo(kind)
                values = np.clip(np.rint(values / scale) + zero, limits.min, limits.max)
            given[name] = values.astype(kind)
        found = {}
        for name, values in runner(**given).items():
            scale, zero = gives[name]["quantization"]
            quantized = scale and values.dtype.kind in "iu" and name not in inputs
            found[name] = (values.astype(np.float32) - zero) * scale if quantized else values
        return found

    return call


def _keras(file: Any) -> Any:
    import keras

    model = keras.models.load_model(file, compile=False)
    card = read_card(file)
    by_name = not isinstance(model, keras.Sequential) and isinstance(model.input, dict)

    def call(inputs: Arrays) -> Arrays:
        given = list(inputs.values())
        found = model(inputs if by_name else given if len(given) > 1 else given[0])
        if not isinstance(found, dict):
            names = [one["name"] for one in card["outputs"]]
            found = dict(zip(names, keras.tree.flatten(found), strict=True))
        return {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}

    return call


def told(outputs: Arrays, card: dict[str, Any]) -> str:
    """Outputs in words: the most probable classes, else numbers."""
    lines = []
    for entry in card["outputs"]:
        if entry["name"] not in outputs:
            continue
        values, names = outputs[entry["name"]], card.get(entry.get("classes") or "", [])
        if names[:1] == [BLANK]:  # CTC: repeats are one, and blanks nothing
            best = values.reshape(-1, len(names)).argmax(-1)
            kept = best[np.flatnonzero(np.diff(best, prepend=0))]
            lines.append("".join(names[one] for one in kept if one))
            continue
        values = _probable(values[-1], entry["gives"])
        if len(names) == 2 and values.shape == (1,):
            values = np.concatenate([1 - values, values])
        if len(names) and values.ndim and values.shape[-1] == len(names):
            row = values.reshape(-1, len(names))[-1]
            for place in np.argsort(-row)[:MOST]:
                lines.append(f"{names[place]!r:>24}  {row[place]:.4f}")
        else:
            text = np.array2string(values, precision=4, threshold=64)
            lines.append(f"{entry['name']} {values.shape}: {text}")
    return "\n".join(lines)


def _probable(values: np.ndarray, gives: str) -> np.ndarray:
    """Probabilities of scores, where they are not that already."""
    if gives == "scores" and not (values.min() >= 0 and np.allclose(values.sum(-1), 1, atol=1e-2)):
        values = np.exp(values - values.max(-1, keepdims=True))
        values = values / values.sum(-1, keepdims=True)
    return 1 / (1 + np.exp(-values)) if gives == "sigmoid logits" else values


def beside() -> pathlib.Path:
    """The network in the folder of this file: best.tflite, else the only one with a model card."""
    folder = pathlib.Path(__file__).parent
    for suffix in (".tflite", ".keras"):
        found = [one for one in sorted(folder.glob(f"*{suffix}")) if zipfile.is_zipfile(one)]
        best = [one for one in found if one.stem == "best"] or found
        if len(best) == 1:
            return best[0]
        if best:
            raise ValueError(f"which of {', '.join(one.name for one in best)}? name it, too")
    raise ValueError(f"no .tflite file with a {CARD} in {folder}; name one")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("example", help="a picture, .wav, text, .npy, .npz, or numbers as 1.5,2,3")
    parser.add_argument("file", nargs="?", help=".tflite or .keras (the one beside this script)")
    parser.add_argument("--json", action="store_true", help="all outputs, as numbers")
    arguments = parser.parse_args()
    try:
        file = arguments.file or beside()
        outputs = run(file, arguments.example)
        if arguments.json:
            print(json.dumps({name: values.tolist() for name, values in outputs.items()}))
        else:
            print(told(outputs, read_card(file)))
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"use.py: {error}") from error


if __name__ == "__main__":
    main()
