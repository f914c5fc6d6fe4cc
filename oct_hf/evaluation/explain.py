"""Where a classifier looks: heat maps of a B-scan by captum and pytorch-grad-cam, through one function.

A map may come from the network's last stage, the one before, or the last four together: at an input of 96 pixels the
last has 3x3 cells, so its maps are coarse. Which of them to believe is measured in `faithfulness.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec

import cv2
import numpy as np
import torch
from torch import nn

from oct_hf.errors import ModelError, OCTError, did_you_mean

BATCH = 32  # images at once
_BLUR = 1 / 12  # of the smaller side: sigma of the blur that leaves no lesion to see
OPACITY = 0.65  # of the strongest heat over a B-scan
_SMOOTHING = 1 / 48  # of the smaller side: sigma by which a map of single pixels is smoothed

Method = Callable[["_Logits", torch.Tensor, torch.Tensor], np.ndarray]


def explain(
    model, pixels: np.ndarray, targets: Sequence[int] | None = None, method: "str | Method" = "integrated_gradients"
) -> np.ndarray:
    """Heat maps: what in each image speaks for a class.

    The model comes back as it was: its mode, its gradients and the global random numbers are untouched. The same
    arguments give the same maps.

    Args:
        model: a `Predictor`, an `OCTForImageClassification`, or any network from such pixels to logits.
        pixels: preprocessed images, float32 `(n, 3, height, width)`.
        targets: the class to explain for each image; the most probable one where not given.
        method: a name of METHODS, or a function as those are: network, pixels and targets as tensors to raw maps.

    Returns:
        float32 `(n, height, width)`: 1 where most speaks for the class, 0 where nothing does. A map without any
        evidence is 0 everywhere.

    Raises:
        OCTError: an unknown method, or captum or pytorch-grad-cam isn't installed.
        ModelError: the network has no maps of features that a CAM could use.
    """
    draw = method if callable(method) else _named(method)
    network = _Logits(getattr(model, "model", model))
    device = next(network.parameters()).device
    maps = []
    with _frozen(network):
        for start in range(0, len(pixels), BATCH):
            batch = torch.tensor(np.asarray(pixels[start : start + BATCH]), dtype=torch.float32, device=device)
            if targets is None:
                with torch.no_grad():
                    wanted = network(batch).argmax(1)
            else:
                wanted = torch.as_tensor(np.asarray(targets[start : start + BATCH]), device=device)
            maps.append(_scaled(np.asarray(draw(network, batch, wanted), np.float32)))
    return np.concatenate(maps) if maps else np.zeros((0, *np.shape(pixels)[2:]), np.float32)


def feature_maps(model, pixels: np.ndarray, layers: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """What chosen layers make of the images, caught by forward hooks.

    Args:
        model, pixels: as for `explain`.
        layers: names of the network's modules (`blocks.2`); the ends of its stages where not given.

    Returns:
        float32 `(n, channels, height, width)` by layer; a transformer's tokens in their grid.

    Raises:
        ModelError: no such layer, or it gives no map.
    """
    network = _Logits(getattr(model, "model", model))
    modules, found = dict(network.inner.named_modules()), {}
    arrange = _arrangement(network.inner)
    with _frozen(network), torch.no_grad():
        batch = torch.tensor(np.asarray(pixels), dtype=torch.float32, device=next(network.parameters()).device)
        names = stages(network, batch[:1]) if layers is None else list(layers)
        for name in names:
            if name not in modules:
                raise ModelError(f'the network has no layer "{name}"{did_you_mean(name, modules)}')
        hooks = [modules[name].register_forward_hook(partial(_keep, found, name)) for name in names]
        try:
            network(batch)
        finally:
            for hook in hooks:
                hook.remove()
    maps = {}
    for name in names:
        value = arrange(found[name]) if isinstance(found.get(name), torch.Tensor) else None
        if value is None or value.ndim != 4:
            raise ModelError(f"the layer {name} gives no map of features (channels, height, width)")
        maps[name] = value.float().cpu().numpy()
    return maps


def stages(network: nn.Module, image: torch.Tensor) -> list[str]:
    """Names of the modules that end a stage, from the first to the last; the last gives what the classifier pools.

    timm says where its stages end (`feature_info`); the very last map is found by running one image. A network that
    timm didn't make has one stage: the last module that gives a map of more than one cell. An ensemble whose members'
    maps differ in size has none.
    """
    inner = getattr(network, "inner", network)
    info = getattr(inner, "feature_info", None)
    names = [entry["module"] for entry in getattr(info, "info", info) or ()]
    if getattr(inner, "num_prefix_tokens", None) is not None:
        # What follows a transformer's last block is read off its class token alone, so gradients must enter it.
        return [f"{name}.norm1" for name in names if hasattr(inner.get_submodule(name), "norm1")]
    seen: list[tuple[str, torch.Tensor]] = []
    hooks = [module.register_forward_hook(partial(_note, seen, name)) for name, module in inner.named_modules() if name]
    run = getattr(inner, "forward_features", inner)
    try:
        with torch.no_grad():
            features = run(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not torch.is_tensor(features):
        return []  # several maps: one alone would tell half of it
    same = [name for name, output in seen if output is features]
    maps = [name for name, output in seen if output.ndim == 4 and output[0, 0].numel() > 1]
    last = same[-1:] if same and features.ndim == 4 else maps[-1:]
    return [*(name for name in names[:-1] if name in maps and name not in last), *last]


def gray_of(pixels: np.ndarray) -> np.ndarray:
    """How bright preprocessed images are, float32 `(n, height, width)`: mean of the channels, each image over 0..1."""
    gray = np.asarray(pixels, np.float32).mean(1)
    low, high = gray.min((1, 2), keepdims=True), gray.max((1, 2), keepdims=True)
    return (gray - low) / np.maximum(high - low, 1e-12)


def blurred(pixels: np.ndarray) -> np.ndarray:
    """The images without anything fine, float32 `(n, 3, height, width)`: what stands for "not there"."""
    sigma = _BLUR * min(pixels.shape[2:])
    return np.stack([_smooth(image.transpose(1, 2, 0), sigma).transpose(2, 0, 1) for image in pixels])


def overlay(bscan: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The B-scan with its heat laid over it, uint8 RGB `(height, width, 3)`.

    Colours are those of inferno, whose lightness rises evenly (jet's doesn't: it makes borders where there are none).
    Where there is no heat, the B-scan stays gray.

    Args:
        bscan: uint8 `(height, width)`.
        heat: 0..1, of any size; it is brought to the B-scan's.
    """
    heat = np.clip(fitted(heat, bscan.shape), 0, 1)
    share = OPACITY * heat[..., None]
    return np.rint((1 - share) * bscan[..., None] + share * coloured(heat)).astype(np.uint8)


def coloured(heat: np.ndarray) -> np.ndarray:
    """The colours of heat from 0 to 1, uint8 RGB `(height, width, 3)`."""
    return cv2.applyColorMap(np.rint(80 + 175 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]


def fitted(heat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map brought to another `(height, width)`, float32, bilinear."""
    heat = np.asarray(heat, np.float32)
    return heat if heat.shape == shape else cv2.resize(heat, shape[::-1], interpolation=cv2.INTER_LINEAR)


def can_explain() -> bool:
    """Whether captum and pytorch-grad-cam are installed."""
    return not _missing()


def require_libraries() -> None:
    """Raises OCTError where captum or pytorch-grad-cam is missing."""
    missing = _missing()
    if missing:
        raise OCTError(f'explanations need {" and ".join(missing)}: pip install "oct-hf[explain]"')


def _missing() -> list[str]:
    return [name for name in ("captum", "pytorch_grad_cam") if find_spec(name) is None]


def _named(method: str) -> Method:
    if method not in METHODS:
        raise OCTError(f"no method {method}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}")
    require_libraries()
    return METHODS[method]


def _cam(
    network: "_Logits", pixels: torch.Tensor, targets: torch.Tensor, kind: str, depths: Sequence[int]
) -> np.ndarray:
    """A CAM of pytorch-grad-cam at the ends of stages, counted from the back (-1 is the last).

    Of several it is the geometric mean, which keeps what all of them mark: late stages know the class, early ones where
    things are.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    arrange, names = _arrangement(network.inner), stages(network, pixels[:1])
    if not names:
        raise ModelError("the network gives no maps of features, so it has no CAM; use occlusion")
    chosen = sorted({max(len(names) + depth, 0) for depth in depths})
    layers = [network.inner.get_submodule(names[index]) for index in chosen]
    with ExitStack() as ends:
        # The graph begins at the first of the layers: nothing before it needs gradients, which saves most of the
        # backward pass. After the CAM's own hooks a map goes on as a copy, since the next layer may write into it.
        ends.callback(layers[0].register_forward_hook(lambda _, __, output: output.detach().requires_grad_()).remove)
        cam = getattr(pytorch_grad_cam, kind)(network, layers, reshape_transform=arrange)
        ends.callback(cam.activations_and_grads.release)  # not `with cam`: it swallows an IndexError
        cam.aggregate_multi_layers = lambda maps: np.prod(np.concatenate(maps, 1), 1) ** (1 / len(layers))
        for layer in layers:
            ends.callback(layer.register_forward_hook(lambda _, __, output: output.clone()).remove)
        return cam(pixels, [ClassifierOutputTarget(int(target)) for target in targets])


def _integrated_gradients(network: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Sundararajan et al. 2017, on the way from the blurred image (black would hide dark lesions).

    Eight Gauss-Legendre steps: on an EfficientNetV2-B0 the map correlates by 0.9997 with that of 64.
    """
    from captum.attr import IntegratedGradients

    baseline = torch.from_numpy(blurred(pixels.cpu().numpy())).to(pixels.device)
    found = IntegratedGradients(network).attribute(
        pixels, baseline, target=targets, n_steps=8, internal_batch_size=BATCH
    )
    evidence = found.sum(1).detach().cpu().numpy()
    sigma = _SMOOTHING * min(evidence.shape[1:])
    return np.stack([_smooth(one.astype(np.float32), sigma) for one in evidence])


def _occlusion(network: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Zeiler and Fergus 2014: how far the logit falls when a window of a sixth of each side is blurred away."""
    from captum.attr import Occlusion

    height, width = pixels.shape[2:]
    window, stride = (3, max(1, height // 6), max(1, width // 6)), (3, max(1, height // 12), max(1, width // 12))
    baseline = torch.from_numpy(blurred(pixels.cpu().numpy())).to(pixels.device)
    with torch.no_grad():
        found = Occlusion(network).attribute(
            pixels,
            sliding_window_shapes=window,
            strides=stride,
            baselines=baseline,
            target=targets,
            perturbations_per_eval=max(1, BATCH // len(pixels)),
        )
    return found.sum(1).cpu().numpy()


_FOUR = (-1, -2, -3, -4)
# Name -> function. `_fine` is of the stage before the last, with four times as many cells; `_stages` of the last four.
METHODS: dict[str, Method] = {
    "gradcam": partial(_cam, kind="GradCAM", depths=(-1,)),  # Selvaraju et al. 2017
    "gradcam_fine": partial(_cam, kind="GradCAM", depths=(-2,)),
    "hirescam": partial(_cam, kind="HiResCAM", depths=(-1,)),  # Draelos and Carin 2020
    "hirescam_fine": partial(_cam, kind="HiResCAM", depths=(-2,)),
    "hirescam_stages": partial(_cam, kind="HiResCAM", depths=_FOUR),
    "layercam": partial(_cam, kind="LayerCAM", depths=(-1,)),  # Jiang et al. 2021
    "layercam_fine": partial(_cam, kind="LayerCAM", depths=(-2,)),
    "layercam_stages": partial(_cam, kind="LayerCAM", depths=_FOUR),
    "integrated_gradients": _integrated_gradients,
    "occlusion": _occlusion,
}
QUICK = ("gradcam", "layercam_stages", "integrated_gradients")  # to be measured where time is short
DEFAULT = "integrated_gradients"  # where a model's own measurement names none
SLOW = ("occlusion",)  # a hundred forward passes an image


class _Logits(nn.Module):
    """The network of a model, with logits less their mean as its output.

    The softmax doesn't see what is added to all logits alike, so neither should a map of what speaks for one of them.
    """

    inner: nn.Module

    def __init__(self, model: nn.Module):
        super().__init__()
        self.inner = getattr(model, "timm_model", model)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output = self.inner(pixels)
        logits = getattr(output, "logits", output)
        return logits - logits.mean(1, keepdim=True)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, weights without gradients; afterwards all as it was, gradients that were there included."""
    modes = [(module, module.training) for module in network.modules()]
    weights = [(weight, weight.requires_grad, weight.grad) for weight in network.parameters()]
    network.eval()
    for weight, _, _ in weights:
        weight.requires_grad_(False)
        weight.grad = None
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, wanted, gradient in weights:
            weight.requires_grad_(wanted)
            weight.grad = gradient


def _arrangement(inner: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What puts a layer's output into (n, channels, height, width): tokens into their grid, channels to the front."""
    if getattr(inner, "output_fmt", None) == "NHWC":
        return lambda output: output.permute(0, 3, 1, 2) if output.ndim == 4 else output
    prefix = getattr(inner, "num_prefix_tokens", None)
    if prefix is None:
        return lambda output: output
    grid = getattr(getattr(inner, "patch_embed", None), "grid_size", None)
    if grid is None:
        raise ModelError("a transformer whose tokens form no known grid has no CAM; use occlusion")

    def arrange(tokens: torch.Tensor) -> torch.Tensor:
        if tokens.ndim != 3:
            return tokens
        return tokens[:, prefix:].reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2)

    return arrange


def _keep(found: dict, name: str, module: nn.Module, inputs: tuple, output) -> None:
    found[name] = output


def _note(seen: list, name: str, module: nn.Module, inputs: tuple, output) -> None:
    if torch.is_tensor(output):
        seen.append((name, output))


def _scaled(maps: np.ndarray) -> np.ndarray:
    """Positive evidence only, each map's largest value 1."""
    maps = np.maximum(np.nan_to_num(maps), 0)
    top = maps.max((1, 2), keepdims=True)
    return np.divide(maps, top, out=np.zeros_like(maps), where=top > 0)


def _smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), sigmaX=sigma, borderType=cv2.BORDER_REFLECT)
