"""Turns the graph of `onnx/model.onnx` into one from gray pixels to probabilities.

A gray B-scan repeats one channel three times, so the first convolution's three kernels are one: the sum over channels,
with each channel's mean and standard deviation in it. Zeros that pad are zeros of the normalised picture, which is why
means that differ between channels need a second channel of ones. Worked on the graph, since to export a network again
takes as long as the first time. Imports onnx, so it is imported where onnx is needed.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from oct_hf.images import Preprocessing
from oct_hf.inference.fast_files import INPUT, OUTPUT

ONE = 255.0  # what a pixel of 1 is stored as
PIXELS, LOGITS = "pixel_values", "logits"  # of the graph as it comes


def from_gray(proto: onnx.ModelProto, preprocessing: Preprocessing, several: bool) -> onnx.ModelProto:
    """A copy that takes `gray`, uint8 `(batch, height, width)`, and gives `probabilities`, float32 `(batch, labels)`.

    Args:
        proto: takes `pixel_values`, float32 `(batch, 3, height, width)`, and gives `logits`. Where its first layer is
            no plain convolution, the gray pixels are repeated on three channels inside: the same answer, a little
            slower.
        preprocessing: of its input.
        several: a picture may have several labels, each with a sigmoid of its own; else a softmax.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    graph = copied.graph
    mean, std = (np.array(values, np.float64) for values in (preprocessing.mean, preprocessing.std))
    scale, shift = _fold(graph, mean, std) or (1 / (ONE * std), -mean / std)
    before = [
        helper.make_node("Unsqueeze", [INPUT, "gray_axis"], ["gray_channel"]),
        helper.make_node("Cast", ["gray_channel"], ["gray_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["gray_float", "gray_scale"], ["gray_scaled"]),
        helper.make_node("Add", ["gray_scaled", "gray_shift"], [PIXELS]),
    ]
    last = helper.make_node("Sigmoid", [LOGITS], [OUTPUT]) if several else None
    last = last or helper.make_node("Softmax", [LOGITS], [OUTPUT], axis=-1)
    nodes = [*before, *graph.node, last]
    del graph.node[:], graph.value_info[:]  # the shapes noted there are of three channels
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "gray_axis"))
    for name, values in (("gray_scale", scale), ("gray_shift", shift)):
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32).reshape(1, -1, 1, 1), name))
    batch, _, height, width = graph.input[0].type.tensor_type.shape.dim
    shape = [batch.dim_param, height.dim_value, width.dim_value]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    graph.output[0].name = OUTPUT
    return copied


def channels(proto: onnx.ModelProto) -> int:
    """How many channels the first layer of a graph by `from_gray` is given: 1 or 2 where it is folded, else 3."""
    return next(one for one in proto.graph.initializer if one.name == "gray_scale").dims[1]


def _fold(graph: onnx.GraphProto, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Makes the first convolution one of gray; None, and nothing changed, where there is no plain one.

    Returns:
        scale and shift of the channels that it is to be given.
    """
    padded, layer = _first_convolution(graph)
    if layer is None:
        return None
    weights = {one.name: one for one in graph.initializer}
    kernels = numpy_helper.to_array(weights[layer.input[1]]).astype(np.float64)
    # Each channel is a z + b of the first one's z.
    a, b = (values.reshape(1, 3, 1, 1) for values in (std[0] / std, (mean[0] - mean) / std))
    gray, constant = (kernels * a).sum(1, keepdims=True), (kernels * b).sum(1, keepdims=True)
    scale, shift = [1 / (ONE * std[0])], [-mean[0] / std[0]]
    if b.any() and padded:
        gray = np.concatenate([gray, constant], 1)
        scale, shift = [*scale, 0.0], [*shift, 1.0]
    elif b.any():
        name = layer.input[2] if len(layer.input) > 2 else ""
        bias = numpy_helper.to_array(weights[name]) if name else 0.0
        graph.initializer.append(_tensor(bias + constant.sum((1, 2, 3)), "gray_bias"))
        layer.input[:] = [*layer.input[:2], "gray_bias"]
    graph.initializer.append(_tensor(gray, "gray_weight"))
    layer.input[1] = "gray_weight"
    _drop_unused(graph)
    return np.array(scale), np.array(shift)


def _first_convolution(graph: onnx.GraphProto) -> tuple[bool, onnx.NodeProto | None]:
    """Whether the pixels are padded, and the convolution, its weights in the file, that alone takes them."""
    weights = {one.name: one for one in graph.initializer}
    taking, padded = [node for node in graph.node if PIXELS in node.input and not _counts_images(node)], False
    if len(taking) == 1 and taking[0].op_type == "Pad" and _pads_zeros(taking[0], weights):
        padded, name = True, taking[0].output[0]
        taking = [node for node in graph.node if name in node.input]
    if len(taking) != 1 or taking[0].op_type != "Conv":
        return False, None
    layer, set_to = taking[0], _attributes(taking[0])
    known = all(name in weights for name in layer.input[1:] if name)
    if not known or set_to.get("group", 1) != 1 or weights[layer.input[1]].dims[1] != 3:
        return False, None
    padded |= any(set_to.get("pads", ())) or set_to.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    return padded, layer


def _attributes(node: onnx.NodeProto) -> dict:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _counts_images(node: onnx.NodeProto) -> bool:
    return node.op_type == "Shape" and (_attributes(node).get("start", 0), _attributes(node).get("end")) == (0, 1)


def _pads_zeros(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
    how = _attributes(node).get("mode", b"constant")
    value = node.input[2] if len(node.input) > 2 else ""
    zero = not value or (value in weights and not numpy_helper.to_array(weights[value]).any())
    return how == b"constant" and zero


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _tensor(values: np.ndarray, name: str) -> TensorProto:
    return numpy_helper.from_array(values.astype(np.float32), name)
