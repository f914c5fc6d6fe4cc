"""Networks of published OCT systems that timm lacks, registered with it, so that whatever takes a timm name takes them.

Like its neighbours this file imports nothing else of the package: a repository's remote-code branch carries it. Another
network is a class with timm's methods and one `@register_model` function named in NETWORKS.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn
from torch.nn import functional

from .combined import HALF, Ensemble, Joined, JoinedNet, OwnNetwork, classifier
from .denoised import DENOISED, has_weights

NETWORKS = ("custom_cnn", "roct_net", "joined", "ensemble", DENOISED)


class CustomCNN(OwnNetwork):
    """A small network after VGG-16, to be trained from nothing: four blocks of convolution and pooling, three layers.

    After CNN03 of C. Mesiti's Retinal-OCT-Classification (github.com/CMesiti/Retinal-OCT-Classification): 3x3
    convolutions with batch normalisation to 32, 64, 128 and 256 channels, each halved by max-pooling; an average over
    4x4 cells; fully connected 512 and 128. With 3 classes it has 2,553,091 parameters.

    Args:
        num_classes: outputs; 0 gives the 128 features.
        in_chans: channels of the input.
        drop_rate: dropout after the first fully connected layer (the author's 0.5); after the second it is 0.6 of it.

    Shape: `(N, in_chans, height, width)`, at least 16 pixels, to `(N, num_classes)`.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5, global_pool: str = "avg"):
        super().__init__()
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, 256, 128
        channels = (in_chans, 32, 64, 128, 256)
        self.stages = nn.Sequential(*(_block(a, b) for a, b in pairwise(channels)))
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (i + 1), "module": f"stages.{i}"}
            for i, width in enumerate(channels[1:])
        ]
        self.pre_logits = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(256 * 4 * 4, 512),
            nn.ReLU(),
            nn.Dropout(drop_rate),
            nn.Linear(512, 128),
            nn.ReLU(),
            nn.Dropout(0.6 * drop_rate),
        )
        self.fc = classifier(128, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, 256, height // 16, width // 16)`."""
        return self.stages(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits, or the 128 features before them, of what `forward_features` gave."""
        x = self.pre_logits(x)
        return x if pre_logits else self.fc(x)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which parameters are how deep, for learning rates that fall layer by layer."""
        return {"stem": r"^stages\.0", "blocks": [(r"^stages\.(\d+)", None), (r"^pre_logits", (99,))]}


class ROCTNet(OwnNetwork):
    """ROCT-Net: the features of Xception and EfficientNet-B0 joined, pooled by learned weights, read by capsules.

    Rahimzadeh and Mohammadi, "ROCT-Net" (ICCKE 2021, doi 10.1109/ICCKE54056.2021.9721471, arXiv 2203.01883): 3,328
    joined channels; Wise-SrNet; a capsule layer from 3,328 capsules of one number to 10 of 16; dropout 0.2; a fully
    connected layer over the 160 numbers.

    Args:
        num_classes: outputs; 0 gives the 160 numbers.
        in_chans: channels of the input.
        img_size: height and width in pixels (the authors' 512); the pooling's weights are of one size of map.
        drop_rate: dropout before the last layer.
        backbones: load the ImageNet weights that timm names for the two backbones.

    Shape: `(N, in_chans, img_size, img_size)` to `(N, num_classes)`.

    Raises:
        ValueError: the two backbones' maps of such an image differ in size.
    """

    xception: Any  # timm's networks have attributes that torch's type doesn't know
    efficientnet: Any

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 512,
        drop_rate: float = 0.2,
        global_pool: str = "",
        backbones: bool = False,
    ):
        super().__init__()
        self.num_classes, self.head_hidden_size = num_classes, 160
        as_features = {"pretrained": backbones, "num_classes": 0, "global_pool": "", "in_chans": in_chans}
        self.xception = timm.create_model("legacy_xception.tf_in1k", **as_features)
        self.efficientnet = timm.create_model("tf_efficientnet_b0.in1k", **as_features)
        self.num_features = self.xception.num_features + self.efficientnet.num_features
        self.joined = Joined()
        self.feature_info = [{"num_chs": self.num_features, "reduction": 32, "module": "joined"}]
        self.pool = WiseSrNet(self.num_features, _map_size(img_size))
        self.capsules = CapsuleLayer(self.num_features, 1, 10, 16)
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = classifier(160, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, 3328, height / 32, width / 32)`, the latter rounded up."""
        return self.joined(self.xception(x), self.efficientnet(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits, or the capsules' 160 numbers, of what `forward_features` gave."""
        x = self.head_drop(self.capsules(self.pool(x)[..., None]).flatten(1))
        return x if pre_logits else self.fc(x)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which parameters are how deep, for learning rates that fall layer by layer."""
        return {"stem": r"^(?:xception|efficientnet)", "blocks": [(r"^pool", (0,)), (r"^capsules", (1,))]}


class WiseSrNet(nn.Module):
    """Pools a map of features by a weight for each channel and cell, in place of one mean: a depthwise convolution.

    Rahimzadeh et al., "Wise-SrNet" (arXiv 2104.12294). As in the authors' code (github.com/mr7495/
    image-classification-spatial) the weights count as zero where they are negative, and a large map (from 9 cells on)
    is first averaged over 3x3 cells. Here they start as the mean that they replace, not as noise.

    Args:
        channels: of the map.
        size: its height and width in cells.

    Shape: `(N, channels, size, size)` to `(N, channels)`.
    """

    def __init__(self, channels: int, size: tuple[int, int]):
        super().__init__()
        self.average = 3 if min(size) >= 9 else 1
        height, width = (cells // self.average for cells in size)
        self.weight = nn.Parameter(torch.full((channels, 1, height, width), 1 / (height * width)))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.average > 1:
            x = functional.avg_pool2d(x, self.average)
        # The gradient passes a weight that counts as zero, so that it can come back, as under a constraint.
        weight = self.weight + (self.weight.clamp_min(0) - self.weight).detach()
        return functional.conv2d(x, weight, self.bias, groups=len(self.bias)).flatten(1)


class CapsuleLayer(nn.Module):
    """Capsules that agree find each other: dynamic routing after Sabour, Frosst and Hinton (2017), procedure 1.

    Args:
        capsules, dims: of the input.
        out_capsules, out_dims: of the output.
        routings: iterations.

    Shape: `(N, capsules, dims)` to `(N, out_capsules, out_dims)`, each of these of a length below 1.
    """

    def __init__(self, capsules: int, dims: int, out_capsules: int, out_dims: int, routings: int = 3):
        super().__init__()
        self.routings = routings
        self.weight = nn.Parameter(torch.empty(capsules, dims, out_capsules, out_dims))
        nn.init.xavier_uniform_(self.weight.view(capsules * dims, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        votes = torch.einsum("nid,idjk->nijk", x, self.weight)
        return route(votes, self.routings)


def route(votes: torch.Tensor, routings: int) -> torch.Tensor:
    """Output capsules `(N, out, dims)` of the votes `(N, in, out, dims)` that input capsules cast for each of them."""
    agreement = votes.new_zeros(votes.shape[:3])
    for iteration in range(routings):
        share = agreement.softmax(2)  # of an input capsule's vote that each output capsule gets
        found = squash(torch.einsum("nij,nijk->njk", share, votes))
        if iteration < routings - 1:
            agreement = agreement + torch.einsum("nijk,njk->nij", votes, found)
    return found


def squash(x: torch.Tensor) -> torch.Tensor:
    """Vectors along the last axis, in their direction, of length |x|² / (1 + |x|²) (Sabour et al., equation 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (length / (1 + length.square()))


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))


def _map_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Cells of both backbones' last maps: five halvings, of which Xception makes the first without padding."""
    sizes = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    height, width = (-(-pixels // 32) for pixels in sizes)
    xceptions = tuple(-(-((pixels - 1) // 2 - 2) // 16) for pixels in sizes)
    if (height, width) != xceptions or min(sizes) < 32:
        size = "x".join(map(str, sizes))
        raise ValueError(f"roct_net's two backbones see an image of {size} pixels differently; take a multiple of 32")
    return height, width


def _cfg(**own) -> dict:
    return {
        "url": "",
        "num_classes": 1000,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": HALF,
        "std": HALF,
        "classifier": "fc",
        **own,
    }


default_cfgs = generate_default_cfgs(
    {
        "custom_cnn.untrained": _cfg(input_size=(3, 224, 224), first_conv="stages.0.0", license="apache-2.0"),
        "roct_net.untrained": _cfg(input_size=(3, 512, 512), fixed_input_size=True, license="apache-2.0"),
        "joined.untrained": _cfg(input_size=(3, 224, 224), first_conv=None),
        "ensemble.untrained": _cfg(input_size=(3, 224, 224), first_conv=None),
    }
)


@register_model
def custom_cnn(pretrained: bool = False, **kwargs) -> CustomCNN:
    """Mesiti's small network; nobody published weights of it."""
    if pretrained and not has_weights("custom_cnn", kwargs):
        raise ValueError("nobody published weights of custom_cnn: it starts from nothing (model.weights=random)")
    return build_model_with_cfg(CustomCNN, "custom_cnn", pretrained, **kwargs)


@register_model
def roct_net(pretrained: bool = False, **kwargs) -> ROCTNet:
    """ROCT-Net; its authors published no weights, so `pretrained` means those of the two backbones (ImageNet)."""
    backbones = pretrained and not has_weights("roct_net", kwargs)
    return build_model_with_cfg(ROCTNet, "roct_net", pretrained and not backbones, backbones=backbones, **kwargs)


@register_model
def joined(pretrained: bool = False, **kwargs) -> JoinedNet:
    """Backbones whose features are joined; `pretrained` means the weights that timm names for each of them."""
    backbones = pretrained and not has_weights("joined", kwargs)
    return build_model_with_cfg(
        JoinedNet, "joined", pretrained and not backbones, pretrained_backbones=backbones, **kwargs
    )


@register_model
def ensemble(pretrained: bool = False, **kwargs) -> Ensemble:
    """Classifiers whose probabilities are averaged; it has no weights but its members'."""
    if pretrained and not has_weights("ensemble", kwargs):
        raise ValueError("an ensemble is made of trained models (ensemble.members)")
    return build_model_with_cfg(Ensemble, "ensemble", pretrained, **kwargs)
