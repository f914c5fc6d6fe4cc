"""What a network's stages give while it is asked, caught by hooks: for heads on feature maps, and for comparing two."""

from functools import partial

import torch
from torch import nn

_STRIDES = 4, 32  # finest and coarsest map that is worth having


class FeatureMaps:
    """Hooks on the last module of each stride of a timm network; each forward pass leaves its maps in `caught`.

    What the network really gives decides; names and channels of timm's `feature_info` are only where to look.

    Args:
        network: a timm network; a network without feature maps (a ViT without a grid, say) has none.
        height, width: in pixels, of its input.

    Attributes:
        strides: of each map in the input's pixels, finest first; empty where there are none.
        channels: of each map.
        caught: by stride the map of the last forward pass, `(N, channels, h, w)`.
    """

    def __init__(self, network: nn.Module, height: int, width: int):
        levels, self.caught = _levels(network), {}
        self._handles = {
            stride: network.get_submodule(name).register_forward_hook(partial(_catch, self.caught, stride, channels))
            for stride, (name, channels) in levels.items()
        }
        state, device = network.training, next(network.parameters()).device
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, height, width, device=device))
        network.train(state)
        self.strides = [stride for stride in levels if stride in self.caught]
        self.channels = [levels[stride][1] for stride in self.strides]
        for stride in levels.keys() - self.caught.keys():
            self._handles.pop(stride).remove()
        self.caught.clear()

    def take(self) -> list[torch.Tensor]:
        """The maps of the last forward pass, finest first, float32; they are forgotten here."""
        maps = [self.caught[stride].float() for stride in self.strides]
        self.caught.clear()
        return maps

    def remove(self) -> None:
        """Takes the hooks off the network."""
        for handle in self._handles.values():
            handle.remove()


def _levels(network: nn.Module) -> dict[int, tuple[str, int]]:
    """By stride the last module that has it, by timm's `feature_info`, and its channels; finest first."""
    finest, coarsest = _STRIDES
    levels = {}
    for level in getattr(network, "feature_info", None) or []:
        if isinstance(level, dict) and level.get("module") and finest <= level["reduction"] <= coarsest:
            levels[level["reduction"]] = (level["module"], level["num_chs"])
    return dict(sorted(levels.items()))


def _catch(caught: dict, stride: int, channels: int, module, inputs, output) -> None:
    """Keeps a feature map, `(N, C, h, w)`; channels that come last are put first, tokens are no map."""
    if isinstance(output, torch.Tensor) and output.ndim == 4:
        if output.shape[1] == channels:
            caught[stride] = output
        elif output.shape[3] == channels:
            caught[stride] = output.permute(0, 3, 1, 2)
