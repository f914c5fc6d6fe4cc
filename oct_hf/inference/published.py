"""Where a repository keeps the files that fast backends run; apart, so that reading them needn't load what writes them.

`onnx/model.onnx` takes the torch model's input and gives logits, as transformers.js wants it. The others take gray
B-scans, uint8 `(batch, height, width)` of the model's size, and give probabilities: all arithmetic is in the graph.
"""

ONNX_FILE = "onnx/model.onnx"
GRAY_ONNX, GRAY_ONNX_INT8 = "onnx/gray.onnx", "onnx/gray_int8.onnx"
GRAY_OPENVINO, GRAY_OPENVINO_INT8 = "openvino/gray.xml", "openvino/gray_int8.xml"  # each with a .bin beside it
