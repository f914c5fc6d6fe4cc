"""A model whose answers differ from picture to picture, of one that was hardly trained."""

from pathlib import Path

import torch

from oct_hf import Predictor
from oct_hf.inference.export import write_onnx
from oct_hf.inference.export_gray import write_gray_onnx
from oct_hf.inference.fast_files import GRAY_ONNX, ONNX_FILE
from oct_hf.model.modeling_oct import OCTForImageClassification


def sharpen(repository: Path) -> None:
    """Spreads the answers of a network that was hardly trained, so that a wrong weight or pixel shows in them."""
    model = OCTForImageClassification.from_pretrained(repository).eval()
    with torch.no_grad():
        model.timm_model.get_classifier().weight.mul_(300)
    model.save_pretrained(repository)
    write_onnx(model, repository / ONNX_FILE)
    preprocessing = Predictor(repository, backend="torch").preprocessing
    write_gray_onnx(model, preprocessing, repository / GRAY_ONNX, repository / ONNX_FILE)
