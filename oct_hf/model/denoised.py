"""Denoising autoencoders: a decoder on a network's feature maps, and a classifier that sees cleaned pictures.

The cleaning is a layer of the classifier and no step before it, so that every loader of the model does it and none can
forget it. Like its neighbours this file imports nothing of the package but them.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn
from torch.nn import functional

DENOISED = "denoised"  # the network's name among timm's


class PyramidHead(nn.Module):
    """Pictures from a network's feature maps: each projected by 1x1, the coarser laid over the finer (Lin et al.,
    "Feature pyramid networks", CVPR 2017), then one 3x3 convolution, whose channels may make finer pixels (Shi et al.,
    "Real-time single image and video super-resolution", CVPR 2016).

    Args:
        channels: of the maps, finest first.
        outputs: channels of the picture.
        width: of what is laid together.
        finer: pixels of the answer along one cell of the finest map.

    Shape:
        maps `(N, channels[i], h_i, w_i)` to `(N, outputs, finer h_0, finer w_0)`.
    """

    def __init__(self, channels: Sequence[int], outputs: int, width: int = 24, finer: int = 1):
        super().__init__()
        self.finer = finer
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.out = nn.Conv2d(width, outputs * finer**2, 3, padding=1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        total = self.lateral[-1](maps[-1])
        for project, finer in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            total = project(finer) + functional.interpolate(total, finer.shape[2:], mode="bilinear")
        return functional.pixel_shuffle(self.out(functional.relu(total)), self.finer)


class Decoder(PyramidHead):
    """What is to be added to a picture so that it is clean, from an encoder's feature maps of it.

    To learn the noise and not the picture is easier (Zhang et al., "Beyond a Gaussian denoiser", IEEE TIP 2017), and
    encoders learned so transfer better (Brempong et al., "Denoising pretraining for semantic segmentation", CVPRW
    2022). It starts at 0, the picture as it is.

    Args:
        encoder: a timm network with `forward_intermediates`.
        width: as of `PyramidHead`.

    Shape: a picture's maps to `(N, 1, height, width)`, in units of the display range.

    Raises:
        ValueError: the network gives no feature maps of strides 2 to 32.
    """

    def __init__(self, encoder: nn.Module, width: int = 32):
        levels: dict[int, tuple[int, int]] = {}
        if hasattr(encoder, "forward_intermediates"):
            for index, level in enumerate(_levels(encoder)):
                if 2 <= level["reduction"] <= 32:
                    levels[level["reduction"]] = (index, level["num_chs"])
        if not levels:
            raise ValueError("it gives no feature maps")
        strides = sorted(levels)
        super().__init__([levels[stride][1] for stride in strides], 1, width, strides[0])
        self.levels = [levels[stride][0] for stride in strides]
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)


def noise_of(pixels: torch.Tensor, encoder: Any, decoder: Decoder) -> torch.Tensor:
    """What a denoising autoencoder would add to pictures, in units of the display range.

    Args:
        pixels: float `(N, 3, height, width)`, normalised as the encoder wants them.

    Returns:
        `(N, 1, height, width)`.
    """
    maps = encoder.forward_intermediates(pixels, indices=decoder.levels, intermediates_only=True)
    found = decoder([m.float() for m in maps])
    return found[:, :, : pixels.shape[2], : pixels.shape[3]]


class Denoised(nn.Module):
    """A classifier behind a denoising autoencoder, which was trained before and never changes.

    Args:
        num_classes: outputs.
        base: timm name of the classifier.
        cleaner: timm name of the autoencoder's encoder.
        norms: (mean, std) by which pictures come normalised, and those by which the encoder wants them, each of three
            channels; what timm names for the two networks where not given.
        in_chans: 3; pictures are gray, and their first channel is looked at.
        kwargs: of the classifier, such as `drop_rate`.

    Shape: `(N, 3, height, width)`, normalised as `base` wants it, to `(N, num_classes)`.
    """

    network: Any  # timm's networks have attributes that torch's type doesn't know
    cleaner: Any
    pretrained_cfg: dict[str, Any]  # timm's entry for it

    def __init__(
        self,
        num_classes: int = 1000,
        base: str = "tf_efficientnetv2_b0",
        cleaner: str = "tf_efficientnetv2_b0",
        norms: Sequence | None = None,
        in_chans: int = 3,
        global_pool: str = "avg",
        **kwargs,
    ):
        super().__init__()
        self.network = timm.create_model(base, num_classes=num_classes, in_chans=in_chans, **kwargs)
        self.cleaner = timm.create_model(cleaner, num_classes=0, in_chans=in_chans)
        self.decoder = Decoder(self.cleaner)
        if hasattr(self.cleaner, "prune_intermediate_layers"):
            self.cleaner.prune_intermediate_layers(self.decoder.levels, prune_norm=True, prune_head=True)
        self.num_classes, self.num_features = num_classes, self.network.num_features
        self.head_hidden_size = getattr(self.network, "head_hidden_size", self.num_features)
        self.feature_info = [
            {**level, "module": f"network.{level['module']}"} for level in _levels(self.network) if level.get("module")
        ]
        if norms is None:
            cfgs = (self.network.pretrained_cfg, self.cleaner.pretrained_cfg)
            norms = [(cfg["mean"], cfg["std"]) for cfg in cfgs]
        self._own, self._theirs = norms

    def train(self, mode: bool = True) -> "Denoised":
        """The cleaner's batch norm keeps its statistics."""
        super().train(mode)
        self.cleaner.eval()
        return self

    def clean(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures without their noise, normalised as they came."""
        (mean, std), (their_mean, their_std) = (
            [x.new_tensor(values)[:, None, None] for values in pair] for pair in (self._own, self._theirs)
        )
        gray = (x * std + mean)[:, :1]
        noise = noise_of((gray - their_mean) / their_std, self.cleaner, self.decoder)
        return ((gray + noise.to(gray.dtype)).clamp(0, 1) - mean) / std

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The classifier's feature maps of the cleaned pictures."""
        if self.training:
            with torch.no_grad():
                x = self.clean(x)
        else:
            x = self.clean(x)
        return self.network.forward_features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits, or what stands before them, of what `forward_features` gave."""
        return self.network.forward_head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.network.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer for `num_classes`."""
        self.num_classes = num_classes
        self.network.reset_classifier(num_classes)

    def group_matcher(self, coarse: bool = False) -> dict:
        """The cleaner at the bottom, then the classifier's own groups as far as they are named by one number."""
        stages = r"^network\.(?:blocks|stages|layer|features)\.?(\d+)"
        blocks = [(stages, None), (r"^network\.(?!conv_stem|stem|bn1)", (999,))]
        return {"stem": r"^(?:cleaner|decoder|network\.(?:conv_stem|stem|bn1))", "blocks": blocks}


def _levels(network: nn.Module) -> list[dict]:
    return [level for level in getattr(network, "feature_info", None) or [] if isinstance(level, dict)]


default_cfgs = generate_default_cfgs(
    {
        f"{DENOISED}.untrained": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": None,
            "classifier": "network.classifier",
            "license": "apache-2.0",
        }
    }
)


@register_model
def denoised(pretrained: bool = False, **kwargs) -> Denoised:
    """A classifier behind a denoising autoencoder; both are filled after they are built, from where each learned."""
    if pretrained and not has_weights(DENOISED, kwargs):
        raise ValueError("a denoised network starts from its parts: give model.base and model.denoise")
    network: Denoised = build_model_with_cfg(Denoised, DENOISED, pretrained, **kwargs)
    if not pretrained:  # pictures as the classifier wants them
        own = network.network.pretrained_cfg
        network.pretrained_cfg |= {
            key: own[key] for key in ("mean", "std", "interpolation", "input_size") if key in own
        }
        names = own.get("classifier") or ()
        names = [f"network.{name}" for name in ([names] if isinstance(names, str) else names)]
        network.pretrained_cfg["classifier"] = names[0] if len(names) == 1 else names
    return network


def has_weights(name: str, kwargs: dict) -> bool:
    """Whether a file or repository with the whole network's weights is given."""
    given = {key: kwargs.get(key) for key in ("pretrained_cfg", "pretrained_cfg_overlay")}
    found = resolve_pretrained_cfg(name, **given)
    return bool(found.has_weights or found.state_dict)
