"""The backends that a network runs on, as one table: what each needs installed, and which file of the repository.

`auto` is that of fp32's answers which a short measurement on this machine finds the fastest (`choice`). Those that
answer otherwise, bfloat16 and int8, are taken only when they are named.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from oct_hf.errors import ModelError, OCTError, did_you_mean
from oct_hf.inference.cores import has_accelerator
from oct_hf.inference.description import Description
from oct_hf.inference.fast_files import (
    CASCADE,
    GRAY_ONNX,
    GRAY_OPENVINO,
    INT8_ONNX,
    INT8_OPENVINO,
    ONNX_FILE,
)
from oct_hf.inference.network import Network, whole_file


@dataclass(frozen=True)
class Backend:
    """One way to compute.

    Attributes:
        package: what must be installed, also the name of the extra that brings it.
        files: of the repository, the first that is there; none are needed where empty.
        exact: whether its probabilities are fp32's, to 1e-4.
        to: what `oct-hf export --to` calls its file.
    """

    package: str
    files: tuple[str, ...] = ()
    exact: bool = True
    to: str = ""

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return find_spec(self.package) is not None

    def file(self, description: Description) -> Path | None:
        """The file that it runs, on this machine; None where the repository has none."""
        return next(filter(None, (whole_file(description, path) for path in self.files)), None)


# In the order in which a single picture would rather have them: by how soon they are loaded.
BACKENDS = {
    "onnx": Backend("onnxruntime", (GRAY_ONNX, ONNX_FILE), to="onnx"),
    "openvino": Backend("openvino", (GRAY_OPENVINO,), to="openvino"),
    "torch": Backend("torch"),
    "openvino-bf16": Backend("openvino", (GRAY_OPENVINO,), exact=False, to="openvino"),
    "onnx-int8": Backend("onnxruntime", (INT8_ONNX,), exact=False, to="onnx-int8"),
    "openvino-int8": Backend("openvino", (INT8_OPENVINO,), exact=False, to="openvino-int8"),
    "cascade": Backend("openvino", (CASCADE,), exact=False, to="cascade"),
}
CHOICES = ("auto", *BACKENDS)
_EXTRAS = {"onnxruntime": "onnx"}
FEW = 64  # pictures; for so few no backend pays for what loading several of them costs


def open_network(description: Description, backend: str = "auto", images: int | None = None) -> Network:
    """The network of a repository on a backend.

    Args:
        description: of the model.
        backend: one of CHOICES.
        images: how many it is to answer, where that is known: for a few the backend that loads soonest is taken.

    Raises:
        OCTError: no such backend, it isn't installed, or this CPU can't run it.
        ModelError: the repository lacks its file, or it can't be loaded.
    """
    if backend not in CHOICES:
        raise OCTError(f"no backend {backend}{did_you_mean(backend, CHOICES)}; there are {', '.join(CHOICES)}")
    if backend != "auto":
        return _opened(description, backend, _file(description, backend))
    usable = {name: file for name, file in _usable(description).items() if name != "torch" or has_accelerator()}
    if not usable:
        return _opened(description, "torch", None)
    if len(usable) == 1 or (images is not None and images <= FEW):
        name, file = next(iter(usable.items()))
        return _opened(description, name, file)
    from oct_hf.inference.choice import fastest

    openers = {name: _opener(description, name, file) for name, file in usable.items()}
    return fastest(openers, next(filter(None, usable.values())), description.preprocessing)


def _usable(description: Description) -> dict[str, Path | None]:
    """The backends of fp32's answers that are installed and have their file, with it."""
    found = {}
    for name, backend in BACKENDS.items():
        if backend.exact and backend.installed:
            file = backend.file(description)
            if file is not None or not backend.files:
                found[name] = file
    return found


def _file(description: Description, name: str) -> Path | None:
    backend = BACKENDS[name]
    if not backend.installed:
        extra = _EXTRAS.get(backend.package, backend.package)
        raise OCTError(f'--backend {name}: {backend.package} isn\'t installed: pip install "oct-hf[{extra}]"')
    file = backend.file(description)
    if file is None and backend.files:
        raise ModelError(
            f"{description.name}: no {backend.files[0]} in it, which {name} runs; oct-hf export MODEL --to {backend.to}"
            " writes it"
        )
    return file


def _opener(description: Description, name: str, file: Path | None) -> Callable[[], Network]:
    return lambda: _opened(description, name, file)


def _opened(description: Description, name: str, file: Path | None) -> Network:
    if name == "torch":
        from oct_hf.inference.on_torch import TorchNetwork

        return TorchNetwork(description)
    assert file is not None  # every other backend needs one
    if BACKENDS[name].package == "onnxruntime":
        from oct_hf.inference.on_onnx import OnnxNetwork

        return OnnxNetwork(description, name, file)
    if name == "cascade":
        from oct_hf.inference.cascade import CascadeNetwork

        return CascadeNetwork(description, file)
    from oct_hf.inference.on_openvino import OpenVINONetwork

    return OpenVINONetwork(description, name, file)
