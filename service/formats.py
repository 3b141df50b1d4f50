"""What may be registered: weights as safetensors, data as npz or image folders. Judged by name and by content, never loaded.

A pickle runs code when it is loaded, whatever it is called; so weights are accepted for what they are, not refused for what
they are known to be.

Source: safetensors format, "Format" section of its README (8-byte little-endian header length N, N bytes of JSON, the tensors
without holes).
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
from collections.abc import Sequence
from typing import Any, NoReturn

from service import npz
from service.errors import BadLocation, PickleWeights
from service.files import Found, Location

MODEL_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".md"})
MODEL_NAMES = frozenset({"LICENSE", "NOTICE", ".gitattributes"})
PICKLE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".keras", ".msgpack", ".pb"}
)
"""Weights in forms that run code when loaded, or that nothing here reads."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})

LONGEST_HEADER = 16 << 20
LARGEST_JSON = 32 << 20
"""The largest that is known to be needed is a tokenizer of 17 MB; parsing takes several times as much memory."""
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


def _refuse(detail: str) -> NoReturn:
    raise BadLocation(detail, pointer="/location")


# -------------------------------------------------------------------------------------------------------------- weights


def check_model(location: Location) -> None:
    """Refuse a model folder that holds anything but safetensors, configuration and text.

    Raises:
        PickleWeights: a pickle, by name or by content.
        BadLocation: a file that does not belong there, a broken safetensors file, or none at all.
    """
    for file in location.files:
        if file.suffix in PICKLE_SUFFIXES:
            raise PickleWeights("expected weights as .safetensors, found a format that runs code", pointer="/location")
        if file.suffix not in MODEL_SUFFIXES and file.name not in MODEL_NAMES:
            _refuse(f"expected only {', '.join(sorted(MODEL_SUFFIXES))} files in a model folder")
    weights = [f for f in location.files if f.suffix == ".safetensors"]
    if not weights:
        _refuse("expected at least one .safetensors file")
    for file in weights:
        check_safetensors(file)
    for file in location.files:
        if file.suffix == ".json":
            check_json(file)


def check_json(file: Found) -> None:
    """Refuse a .json file that no loader could read: every one in a model folder is an object. Its content is not judged.

    Raises:
        BadLocation: too large, not UTF-8, not JSON, or not an object.
    """
    if file.size > LARGEST_JSON:
        _refuse(f"expected .json files of at most {LARGEST_JSON >> 20} MiB in a model folder")
    try:
        with file.open() as stream:
            value = json.loads(stream.read(LARGEST_JSON + 1).decode("utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise BadLocation("a file of the location could not be read", pointer="/location") from error
    except (ValueError, RecursionError):
        _refuse("a .json file of the model folder is not JSON")
    if not isinstance(value, dict):
        _refuse("expected a JSON object in every .json file of a model folder")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def check_safetensors(file: Found) -> None:
    """Refuse a file that only calls itself safetensors. Reads the header alone.

    Raises:
        PickleWeights: it begins as a zip or a pickle does.
        BadLocation: the header is not what the format says.
    """
    try:
        with file.open() as stream:
            start = stream.read(8)
            if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x01\x02\x03\x04\x05"):
                raise PickleWeights("a .safetensors file holds a pickle", pointer="/location")
            if len(start) < 8:
                _refuse("a .safetensors file is too short")
            (length,) = struct.unpack("<Q", start)
            if length > min(LONGEST_HEADER, file.size - 8):
                _refuse("a .safetensors header is longer than the file or than 16 MiB")
            header = stream.read(length)
    except OSError as error:
        raise BadLocation("a file of the location could not be read", pointer="/location") from error
    _check_header(header, file.size - 8 - length)


def _check_header(header: bytes, buffer_bytes: int) -> None:
    try:
        tensors = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        _refuse("a .safetensors header is not JSON with unique keys")
    if not header.startswith(b"{") or not isinstance(tensors, dict):
        _refuse("a .safetensors header is not a JSON object")
    metadata = tensors.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse("a .safetensors header's __metadata__ is not text by text")
    end = 0
    for begin, stop in sorted(_span(t) for t in tensors.values()):
        if begin != end:
            _refuse("the tensors of a .safetensors file overlap or leave holes")
        end = stop
    if not tensors or end != buffer_bytes:
        _refuse("a .safetensors file is truncated, padded or empty")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _span(tensor: Any) -> tuple[int, int]:
    """The tensor's bytes in the buffer, once its dtype and shape agree with them."""
    match tensor:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(stop)], **rest} if not rest:
            counts = all(type(d) is int and 0 <= d < 2**48 for d in shape)
            size = DTYPE_BYTES.get(dtype)
            if counts and size and 0 <= begin <= stop and stop - begin == size * math.prod(shape):
                return begin, stop
    _refuse("a .safetensors header describes a tensor wrongly")


# ----------------------------------------------------------------------------------------------------------------- data


def check_npz(location: Location) -> None:
    """Refuse an npz that is not `images` uint8 (N,H,W[,C]), `labels` int (N,) and perhaps `ids` (N,), none of them pickled.

    Raises:
        BadLocation: with what was expected.
    """
    found = [f for f in location.files if f.suffix == ".npz"]
    if len(found) != 1 or len(location.files) != 1:
        _refuse("expected exactly one .npz file and nothing else")
    try:
        with found[0].open() as stream, zipfile.ZipFile(stream) as archive:
            headers = {info.filename: npz.header(archive, info) for info in archive.infolist()}
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadLocation("the .npz file is not a readable zip archive", pointer="/location") from error
    if not {"images.npy", "labels.npy"} <= set(headers) <= {"images.npy", "labels.npy", "ids.npy"}:
        _refuse("expected the arrays images and labels, perhaps ids, and no other in the .npz file")
    _check_arrays(headers)


def _check_arrays(headers: dict[str, npz.Header]) -> None:
    dtype, shape = headers["images.npy"]
    if dtype != "|u1" or len(shape) not in (3, 4) or 0 in shape or (len(shape) == 4 and shape[3] not in (1, 3)):
        _refuse("expected images as uint8 (N,H,W), (N,H,W,1) or (N,H,W,3)")
    items = shape[:1]
    dtype, shape = headers["labels.npy"]
    if not re.fullmatch(r"[<>|=][iu][1248]", dtype) or shape != items:
        _refuse("expected labels as integers (N,)")
    dtype, shape = headers.get("ids.npy", ("<U1", items))
    if not re.fullmatch(r"[<>|=](U\d{1,5}|[iu][1248])", dtype) or shape != items:
        _refuse("expected ids as text or integers (N,)")


def check_image_folder(location: Location, class_names: Sequence[str]) -> None:
    """Refuse a folder that is not `<class>/<image>` or `train|test/<class>/<image>` with an image to train on for every class.

    Of each folder of images the first .png is asked for its depth, so that the usual mistake, scans of 16 bits, is not found
    out by the first run. The worker looks at every image.

    Raises:
        BadLocation: with what was expected.
    """
    paths = [f.path.split("/") for f in location.files]
    split = all(p[0] in ("train", "test") and len(p) > 2 for p in paths)
    seen = set()
    drawn: dict[str, Found] = {}
    for file, parts in zip(location.files, paths, strict=True):
        if len(parts) != (3 if split else 2) or file.suffix not in IMAGE_SUFFIXES or file.name.startswith("."):
            _refuse("expected only <class>/<image> or train/<class>/<image> and test/<class>/<image>")
        if parts[-2] not in class_names:
            _refuse("a folder is not named after a class")
        if not split or parts[0] == "train":
            seen.add(parts[-2])
        if file.suffix == ".png":
            drawn.setdefault("/".join(parts[:-1]), file)
    if seen != set(class_names):
        _refuse("expected at least one training image for every class")
    for file in drawn.values():
        _check_depth(file)


def _check_depth(file: Found) -> None:
    """Refuse a grey PNG of 16 bits: shown in 8 it would be clipped, and how to scale it is its owner's decision.

    Source: PNG, W3C recommendation, 11.2.2 (IHDR): after the chunk's name width, height, bit depth and colour type.
    """
    try:
        with file.open() as stream:
            start = stream.read(26)
    except OSError as error:
        raise BadLocation("a file of the location could not be read", pointer="/location") from error
    if start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR" and start[24:26] == b"\x10\x00":
        _refuse("expected images of 8 bits, found a grey .png of 16")
