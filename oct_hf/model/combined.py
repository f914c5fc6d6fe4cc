"""Networks made of other networks: backbones whose features are joined, and an ensemble of whole classifiers.

Like its neighbours this file imports nothing of the package: a repository's remote-code branch carries it. Each inner
network sees the pixels as it was trained to, whatever mean and standard deviation the whole was given.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional

# doi 10.3390/s23156706, whose features come from these three
PAPERS_BACKBONES = ("densenet201.tv_in1k", "inception_v3.tv_in1k", "resnet50.tv_in1k")
HALF = (0.5, 0.5, 0.5)  # mean and standard deviation of the whole's input
PARTS = ("backbones", "neighbours", "members")  # arguments that say what a network is made of


class OwnNetwork(nn.Module):
    """What timm asks of a network that ends in one layer `fc`, which is given `head_hidden_size` numbers."""

    num_classes: int
    head_hidden_size: int
    forward_features: Callable[..., Any]  # what each network says in its own way
    forward_head: Callable[..., torch.Tensor]
    fc: nn.Module

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer for `num_classes`."""
        self.num_classes, self.fc = num_classes, classifier(self.head_hidden_size, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


class JoinedNet(OwnNetwork):
    """The feature maps of several backbones joined and pooled, then one linear layer, or the nearest neighbours.

    Args:
        num_classes: outputs; 0 gives what the last layer would be given.
        in_chans: channels of the input.
        drop_rate: dropout before the last layer.
        backbones: timm's names of convolutional networks.
        pretrained_backbones: load the weights that timm names for them.
        neighbours: arguments of `NearestNeighbours`, whose answer the last layer then gets instead of the features.

    Shape: `(N, in_chans, height, width)` to `(N, num_classes)`.

    Raises:
        ValueError: a backbone that gives no maps of features.
    """

    backbones: Any  # a list of timm's networks, whose attributes torch's type doesn't know

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        backbones: Sequence[str] = PAPERS_BACKBONES,
        pretrained_backbones: bool = False,
        neighbours: dict | None = None,
    ):
        super().__init__()
        as_maps = {"pretrained": pretrained_backbones, "num_classes": 0, "global_pool": "", "in_chans": in_chans}
        self.backbones = nn.ModuleList(timm.create_model(name, **as_maps) for name in backbones)
        for name, backbone in zip(backbones, self.backbones, strict=True):
            if hasattr(backbone, "num_prefix_tokens") or getattr(backbone, "output_fmt", "NCHW") != "NCHW":
                raise ValueError(f"{name} gives no map of features; join convolutional networks")
        self.inputs = nn.ModuleList(Renormalised.of(backbone.pretrained_cfg) for backbone in self.backbones)
        self.num_features = sum(backbone.num_features for backbone in self.backbones)
        self.joined = Joined()
        self.feature_info = [{"num_chs": self.num_features, "reduction": 32, "module": "joined"}]
        self.head_drop = nn.Dropout(drop_rate)
        self.neighbours = NearestNeighbours(**neighbours) if neighbours else None
        self.num_classes = num_classes
        self.head_hidden_size = neighbours["classes"] if neighbours else self.num_features
        self.fc = classifier(self.head_hidden_size, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, num_features, h, w)`: smaller maps are brought to the largest's size."""
        maps = [backbone(own(x)) for own, backbone in zip(self.inputs, self.backbones, strict=True)]
        size = max(tuple(one.shape[2:]) for one in maps)
        resized = (one if one.shape[2:] == size else functional.interpolate(one, size, mode="bilinear") for one in maps)
        return self.joined(*resized)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits, or what the last layer is given, of what `forward_features` gave."""
        x = self.head_drop(x.mean((2, 3)))
        if self.neighbours is not None:
            x = self.neighbours(x)
        return x if pre_logits else self.fc(x)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which parameters are how deep, for learning rates that fall layer by layer."""
        return {"stem": r"^(?:backbones|inputs)", "blocks": [(r"^neighbours", (0,))]}


class NearestNeighbours(nn.Module):
    """k nearest neighbours as layers, over training cases that the network holds.

    As Wu et al., "Unsupervised feature learning via non-parametric instance discrimination" (CVPR 2018) and DINO (Caron
    et al., ICCV 2021) measure features: cosine similarity, the k most similar cases vote with exp(similarity / T). Each
    class gets half a case more (Jeffreys' prior), so that none is impossible.

    Args:
        cases: held.
        features: of each, out of those given.
        classes: of the cases.
        k: neighbours that vote; at most `cases`.
        temperature: T, above 0.

    Shape: features `(N, all)` to the logarithms of probabilities `(N, classes)`.
    """

    chosen: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    cases: torch.Tensor
    labels: torch.Tensor

    def __init__(self, cases: int, features: int, classes: int, k: int, temperature: float):
        super().__init__()
        self.k, self.temperature = min(k, cases), temperature
        self.register_buffer("chosen", torch.arange(features))  # places of the features used
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("cases", torch.zeros(cases, features))  # standardised, each of length 1
        self.register_buffer("labels", torch.zeros(cases, classes))  # one-hot

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.normalize((x[:, self.chosen] - self.mean) / self.scale)
        similarity, places = (x @ self.cases.T).topk(self.k, dim=1)
        weights = (similarity / self.temperature).softmax(1)
        votes = (weights[..., None] * self.labels[places]).sum(1)
        return ((self.k * votes + 0.5) / (self.k + 0.5 * self.labels.shape[1])).log()


class Ensemble(OwnNetwork):
    """Whole classifiers, whose probabilities are averaged: Lakshminarayanan et al., "Simple and scalable predictive
    uncertainty estimation using deep ensembles" (NeurIPS 2017).

    The last layer gets the logarithms of the mean probabilities and starts as the identity, so that the softmax of the
    logits is that mean, and a temperature can lie in it.

    Args:
        num_classes: outputs; 0 gives the logarithms.
        in_chans: channels of the input.
        members: of each `architecture` (timm's), `model_args`, `num_classes`, `size` (height and width of its images),
            `mean` and `std` of its input.

    Shape: `(N, in_chans, height, width)` to `(N, num_classes)`. A member with another size gets the images resized.

    Raises:
        ValueError: no members, or of different classes.
    """

    members: Any  # a list of timm's networks

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "",
        members: Sequence[dict] = (),
    ):
        super().__init__()
        if len({member["num_classes"] for member in members}) != 1:
            raise ValueError("an ensemble has members, all with the same classes")
        self.members = nn.ModuleList(
            timm.create_model(
                member["architecture"],
                num_classes=member["num_classes"],
                in_chans=in_chans,
                **(member.get("model_args") or {}),
            )
            for member in members
        )
        self.inputs = nn.ModuleList(Renormalised.of(member, member["size"]) for member in members)
        self.joined = Joined()
        self.num_features = sum(member.num_features for member in self.members)
        self.feature_info = [{"num_chs": self.num_features, "reduction": 32, "module": "joined"}]
        self.num_classes, self.head_hidden_size = num_classes, members[0]["num_classes"]
        self.fc = classifier(self.head_hidden_size, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The members' maps joined, `(N, num_features, h, w)`; one by one where they differ in size or are no maps."""
        found = [member.forward_features(own(x)) for own, member in zip(self.inputs, self.members, strict=True)]
        shapes = [tuple(one.shape[1:]) for one in found]
        maps = [(member.num_features, *shapes[0][1:]) for member in self.members]
        return self.joined(*found) if len(shapes[0]) == 3 and shapes == maps else tuple(found)

    def forward_head(self, x: torch.Tensor | tuple[torch.Tensor, ...], pre_logits: bool = False) -> torch.Tensor:
        """Logits, or the logarithms of the mean probabilities, of what `forward_features` gave."""
        if isinstance(x, torch.Tensor):
            x = x.split([member.num_features for member in self.members], dim=1)
        answers = [member.forward_head(own) for member, own in zip(self.members, x, strict=True)]
        each = torch.stack([answer.log_softmax(-1) for answer in answers])
        x = each.logsumexp(0) - math.log(len(answers))
        return x if pre_logits else self.fc(x)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which parameters are how deep, for learning rates that fall layer by layer."""
        return {"stem": r"^(?:members|inputs)", "blocks": []}


class Renormalised(nn.Module):
    """Normalised pixels as a network wants them that was trained with another normalisation or size.

    Args:
        mean, std: of the network's input, one a channel.
        size: height and width of its images; as they come where not given.
        given: mean and standard deviation of the pixels as they come; `HALF` each where not given.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: Sequence[int] | None = None,
        given: tuple[Sequence[float], Sequence[float]] = (HALF, HALF),
    ):
        super().__init__()
        self.size = tuple(size) if size else None
        given_mean, given_std, own_mean, own_std = (
            torch.tensor(values)[:, None, None] for values in (*given, mean, std)
        )
        # Buffers of the state dict: a model that is loaded is first built without values.
        self.register_buffer("scale", given_std / own_std)
        self.register_buffer("shift", (given_mean - own_mean) / own_std)

    @classmethod
    def of(cls, cfg: dict, size: Sequence[int] | None = None) -> "Renormalised":
        """For a network with this `mean` and `std`."""
        return cls(cfg["mean"], cfg["std"], size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.size and tuple(x.shape[2:]) != self.size:
            x = functional.interpolate(x, self.size, mode="bilinear", antialias=True)
        return x * self.scale + self.shift


class Joined(nn.Module):
    """Maps of one size as one; a module, so that a heat map can look at what it gives."""

    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        return torch.cat(maps, 1)


def classifier(features: int, num_classes: int) -> nn.Module:
    """The last layer; the identity for no classes."""
    return nn.Linear(features, num_classes) if num_classes else nn.Identity()


@torch.no_grad()
def pass_on(layer: nn.Linear) -> None:
    """Makes a square linear layer give what it gets."""
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
