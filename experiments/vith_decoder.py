"""The real ViT-H decoder's tensors out of its published ONNX export, under their official names.

The source package sam_serve 1.1.0 holds it as model-store/sam_vit_h_decode.onnx (sha256 below): take that one file
out of the archive; nothing of the package needs to run. An export keeps the names of most tensors. Nameless are the
weights of linear layers, which lie transposed and are named after the bias that is added to their products; and
constants that were reshaped when it was made, which are known by what is done with them.
"""

import hashlib
from pathlib import Path

import numpy as np

SHA256 = "7d777a399a2326655b53fe7d844c720990b845f203191b9655bca48d956067c0"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def read_tensors(path) -> dict[str, np.ndarray]:
    """{official name: float32 array} of the prompt encoder and the mask decoder."""
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{path} is not the published sam_vit_h_decode.onnx")
    graph, = _messages(data, 7)
    arrays = dict(map(_tensor, _messages(graph, 5)))
    nodes = [_node(node) for node in _messages(graph, 1)]
    arrays |= {outputs[0]: values for kind, _, outputs, values in nodes if kind == "Constant" and values is not None}
    named = {name: x for name, x in arrays.items() if "." in name and not name.startswith("/") and "::" not in name}
    products = {outputs[0]: inputs[1] for kind, inputs, outputs, _ in nodes if kind == "MatMul" and inputs[1] in arrays}
    for kind, inputs, outputs, _ in nodes:
        if kind == "Add":
            for product, bias in (inputs, inputs[::-1]):
                if product in products and bias in named:
                    named[bias.removesuffix("bias") + "weight"] = arrays[products[product]].T
        for name in set(inputs) & {name for name in arrays if "::" in name}:
            named |= _reshaped(kind, arrays[name], outputs[0])
    return {name.removeprefix("model."): np.ascontiguousarray(x) for name, x in named.items()}


def _reshaped(kind: str, x: np.ndarray, output: str) -> dict[str, np.ndarray]:
    """The parameters in a nameless constant: by the operation that takes it and the name of its result."""
    if kind == "Expand" and x.shape == (1, 5, 256):
        return {"mask_decoder.iou_token.weight": x[0, :1], "mask_decoder.mask_tokens.weight": x[0, 1:]}
    if kind == "Mul" and x.shape == (1, 256, 1, 1):
        return {"prompt_encoder.no_mask_embed.weight": x.reshape(1, 256)}
    if kind in ("Mul", "Add") and x.shape[1:] == (1, 1):  # a channel norm: /mask_downscaling/mask_downscaling.1/Mul_...
        layer = output.split("/")[2]
        branch = "prompt_encoder" if layer.startswith("mask_downscaling") else "mask_decoder"
        return {f"{branch}.{layer}.{'weight' if kind == 'Mul' else 'bias'}": x.ravel()}
    return {}


def _fields(data: bytes):
    """(number, wire type, value) of a message's fields."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
        elif wire == BYTES:
            size, at = _varint(data, at)
            value, at = data[at:at + size], at + size
        else:
            size = {FIXED64: 8, FIXED32: 4}[wire]
            value, at = data[at:at + size], at + size
        yield number, wire, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _messages(data: bytes, number: int) -> list[bytes]:
    return [value for n, wire, value in _fields(data) if n == number and wire == BYTES]


def _tensor(data: bytes) -> tuple[str, np.ndarray | None]:
    """(name, values); None for other types than float32."""
    dims, name, raw, kind = [], "", b"", 0
    for number, wire, value in _fields(data):
        if number == 1:
            dims += [value] if wire == VARINT else _packed(value)
        elif number == 2:
            kind = value
        elif number == 4:
            raw = value if wire == BYTES else raw + value
        elif number == 8:
            name = value.decode()
        elif number == 9:
            raw = value
    if kind != 1:
        return name, None
    return name, np.frombuffer(raw, "<f4").reshape(dims)


def _packed(data: bytes) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


def _node(data: bytes) -> tuple[str, list[str], list[str], np.ndarray | None]:
    """(operation, inputs, outputs, the value of a constant)."""
    text = lambda number: [value.decode() for value in _messages(data, number)]
    constants = [tensor for attribute in _messages(data, 5) for tensor in _messages(attribute, 5)]
    return text(4)[0], text(1), text(2), _tensor(constants[0])[1] if constants else None
