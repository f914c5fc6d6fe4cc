"""A classifier as fast prediction wants it: gray pixels in, probabilities out, everything between in one graph.

A gray B-scan repeats one channel three times, so the first convolution's three kernels are one: W * x summed over
channels, with each channel's mean and standard deviation in the weights. Zeros that pad the normalised picture stay
zeros of the normalised picture, which is why means that differ between channels need a second channel of ones.
"""

import copy

import torch
from torch import nn

from oct_hf.images import Preprocessing

ONE = 255.0  # what a pixel of 1 is stored as
SAME_LOGITS = 1e-8  # of the largest logit, in float64: what the order of sums moves; a wrong folding moves far more


class GrayNetwork(nn.Module):
    """uint8 `(N, height, width)`, already of the model's size, to probabilities, float32 `(N, labels)`.

    The softmax, or the sigmoid of a model of signs, is the last layer; the calibration lies in the classifier's weights
    anyway. `GrayNetwork.of` makes one.

    Args:
        network: takes pixels after the normalisation, and gives logits.
        mean, std: of the normalisation; one number, or one for each channel that `network` takes.
        several: a picture may have several labels, each with a sigmoid of its own.
        ones: `network` takes a channel of ones behind.
    """

    def __init__(self, network: nn.Module, mean: torch.Tensor, std: torch.Tensor, several: bool, ones: bool = False):
        super().__init__()
        self.network, self.several, self.ones = network, several, ones
        mean, std = (torch.as_tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", 1 / (ONE * std))
        self.register_buffer("shift", -mean / std)

    @classmethod
    def of(cls, model, preprocessing: Preprocessing) -> "GrayNetwork":
        """The network of an `OCTForImageClassification` on the CPU, in float32.

        Its first convolution is folded where it is a plain one and the logits stay; else the gray pixels are repeated
        on three channels inside, which is the same answer a little slower.
        """
        network = copy.deepcopy(model.timm_model).eval().double()
        whole = cls(network, preprocessing.mean, preprocessing.std, model.config.several)
        folded = _folded(network, preprocessing, model.config.several)
        same = folded is not None and _same_logits(folded, whole, preprocessing)
        return (folded if same else whole).float()

    @property
    def channels(self) -> int:
        """How many the network is given: 1 where its first convolution is folded, 2 with one of ones, or 3."""
        return len(self.scale) + self.ones

    def forward(self, gray: torch.Tensor) -> torch.Tensor:
        logits = self.logits(gray)
        return logits.sigmoid() if self.several else logits.softmax(-1)

    def logits(self, gray: torch.Tensor) -> torch.Tensor:
        """As its weights' dtype, `(N, labels)`."""
        pixels = gray[:, None].to(self.scale.dtype) * self.scale + self.shift
        if self.ones:
            pixels = torch.cat([pixels, torch.ones_like(pixels)], 1)
        return self.network(pixels)


def _folded(network: nn.Module, preprocessing: Preprocessing, several: bool) -> GrayNetwork | None:
    """A copy, in float64, whose first convolution takes gray; None where there is no plain one."""
    name = network.pretrained_cfg.get("first_conv")
    if not isinstance(name, str) or name not in dict(network.named_modules()):
        return None
    network = copy.deepcopy(network)
    layer = network.get_submodule(name)
    if not isinstance(layer, nn.Conv2d) or layer.in_channels != 3 or layer.groups != 1:
        return None
    # Each channel is x_c = a z + b of the first one's z.
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocessing.mean, preprocessing.std))
    a, b = std[0] / std, (mean[0] - mean) / std
    weight = layer.weight.detach()
    gray, constant = ((weight * by.reshape(1, 3, 1, 1)).sum(1, keepdim=True) for by in (a, b))
    unpadded = type(layer) is nn.Conv2d and layer.padding in ((0, 0), "valid")  # timm's own kinds pad by themselves
    ones = bool(b.any()) and not unpadded
    if b.any() and unpadded:
        bias = constant.sum((1, 2, 3)) + (0 if layer.bias is None else layer.bias.detach())
        layer.bias = nn.Parameter(bias)
    weight = torch.cat([gray, constant], 1) if ones else gray
    layer.weight, layer.in_channels = nn.Parameter(weight), weight.shape[1]
    return GrayNetwork(network, mean[:1], std[:1], several, ones)


@torch.inference_mode()
def _same_logits(folded: GrayNetwork, whole: GrayNetwork, preprocessing: Preprocessing) -> bool:
    """Some networks look at their pixels, or at this layer's weights, elsewhere too: they can't be folded."""
    size = (2, preprocessing.height, preprocessing.width)
    noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        expected, found = whole.logits(noise), folded.logits(noise)
    except (RuntimeError, ValueError, AssertionError):  # it asks for three channels, or for float32
        return False
    return bool((found - expected).abs().max() <= SAME_LOGITS * expected.abs().max())
