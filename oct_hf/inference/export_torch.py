"""A model as torch's own exported program, for those who go on from there: AOTInductor, ExecuTorch, torch.compile.

It is never published: a .pt2 file is an archive that torch takes apart with more trust than a stranger's file deserves.
"""

from pathlib import Path

import torch
from torch import nn

from oct_hf.errors import ModelError
from oct_hf.images import Preprocessing
from oct_hf.inference.export import ONNX_TOLERANCE, first_line
from oct_hf.inference.export_gray import probe, torch_probabilities
from oct_hf.inference.on_torch import probabilities_of

FILE = "gray.pt2"


class FromGray(nn.Module):
    """A classifier from gray pixels of its size, uint8 `(n, height, width)`, to probabilities, float32 `(n, labels)`.

    Args:
        model: an `OCTForImageClassification`.
        preprocessing: of its input.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model, preprocessing: Preprocessing):
        super().__init__()
        self.model = model
        mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, gray: torch.Tensor) -> torch.Tensor:
        pixels = (gray[:, None].float() * (1 / 255) - self.mean) / self.std
        return probabilities_of(self.model(pixel_values=pixels).logits, self.model.config.several)


def write_torch_export(model, preprocessing: Preprocessing, path: Path) -> None:
    """Writes a model as `torch.export` saves it (.pt2), with a batch of any size, and compares its answers.

    Args:
        model: an `OCTForImageClassification` on the CPU, in float32.
        preprocessing: of its input.
        path: the file; `torch.export.load(path).module()` takes gray pixels and gives probabilities, see `FromGray`.

    Raises:
        ModelError: torch can't export this network, or the saved program answers otherwise; there is no file then.
    """
    example = torch.zeros(2, preprocessing.height, preprocessing.width, dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        batch = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(FromGray(model, preprocessing).eval(), (example,), dynamic_shapes=batch)
    except Exception as error:  # a network of timm's thousand may do what can't be traced
        raise ModelError(f"{model.config.architecture} can't be exported by torch ({first_line(error)})") from None
    torch.export.save(program, path)
    grays = probe(preprocessing)
    found = torch.export.load(path).module()(torch.from_numpy(grays)).detach().numpy()
    off = float(abs(found - torch_probabilities(model, preprocessing, grays)).max())
    if not off <= ONNX_TOLERANCE:
        path.unlink()
        raise ModelError(f"{model.config.architecture}: the exported program is {off:.1e} from torch's probabilities")
