"""Whether a repository's files can do harm when read: no code, no pickle, no data outside the folder.

A name says little, so the content is looked at too: a pickle called weights.json is a pickle.
"""

import pickletools
import zipfile
from collections.abc import Sequence
from pathlib import Path

from oct_hf import model
from oct_hf.hub.allowed import ALLOWED, CODE, CODE_BRANCH
from oct_hf.inference.fast_files import ENDLESS, REPEATING
from oct_hf.model.stated import header_of
from oct_hf.untrusted import json_of, read_json, xml_of

_STARTS = {".png": b"\x89PNG\r\n\x1a\n", ".parquet": b"PAR1"}
# The first is of every pickle since 2003; the others call something, which is what makes a pickle dangerous.
_OF_A_PICKLE = {"PROTO", "GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "NEWOBJ"}
_TEXT = (".json", ".yaml", ".md", ".csv")


def file_faults(folder: Path, files: Sequence[str], revision: str | None = None) -> list[str]:
    """One line for each file that may not be there, or that isn't what its name says.

    Args:
        folder: where the repository's files lie; those that weren't fetched are judged by their names.
        files: every path of the repository.
        revision: on `remote-code`, the custom class's files may be there, as this package has them.
    """
    faults = []
    for name in files:
        path = folder / name
        if revision == CODE_BRANCH and name in CODE:
            if path.read_bytes() != Path(model.__file__).with_name(name).read_bytes():
                faults.append(f"{name}: is not the code of this version of oct-hf; read it before you trust it")
        elif path.suffix not in ALLOWED:
            faults.append(f"{name}: a kind of file that may not be published ({', '.join(ALLOWED)} may)")
        elif not path.resolve().is_relative_to(_real_root(folder)):
            faults.append(f"{name}: a link that leaves the repository")
        elif why := _content_fault(path):
            faults.append(f"{name}: {why}")
    if revision != CODE_BRANCH and "config.json" in files and "auto_map" in _read_json(folder / "config.json"):
        faults.append("config.json: auto_map asks readers to run code")
    return faults


def _real_root(folder: Path) -> Path:
    # In the Hub's cache a snapshot's files are links to ../../blobs.
    root = folder.resolve()
    return root.parent.parent if root.parent.name == "snapshots" else root


def _read_json(path: Path) -> dict:
    try:
        found = read_json(path)
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _content_fault(path: Path) -> str | None:
    try:
        if path.suffix == ".safetensors":
            return _safetensors_fault(path)
        if path.suffix == ".onnx":
            return _onnx_fault(path)
        if path.suffix == ".xml":
            return _openvino_fault(path)
        with open(path, "rb") as file:
            start = file.read(64)
        if path.suffix in _STARTS:
            return None if start.startswith(_STARTS[path.suffix]) else f"is no {path.suffix[1:]} file"
        if path.suffix in _TEXT:
            return _text_fault(path)
        return "a pickle" if zipfile.is_zipfile(path) or _is_pickle(path) else None
    except OSError as error:
        return f"can't be read ({error.strerror})"


def _text_fault(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json_of(text)
    except ValueError as error:
        return f"is no {path.suffix[1:]} text ({error})"
    return None


def _safetensors_fault(path: Path) -> str | None:
    """The header must be JSON whose tensors fill the rest of the file exactly, without gap or overlap."""
    try:
        header, rest = header_of(path)
        spans = sorted(tuple(about["data_offsets"]) for name, about in header.items() if name != "__metadata__")
        ends = [0, *(end for _, end in spans)]
    except ValueError as error:
        return str(error).removeprefix(f"{path.name}: ")
    except (KeyError, TypeError, AttributeError):
        return "is no safetensors file (its header is no JSON of tensors)"
    if any(start != before for (start, _), before in zip(spans, ends, strict=False)) or ends[-1] != rest:
        return "is no safetensors file (its tensors don't fill it)"
    return None


def _onnx_fault(path: Path) -> str | None:
    """Weights inside the file and standard operators only: nothing that a runtime would look for elsewhere."""
    try:
        import onnx
    except ImportError:
        return None
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own error types differ between its versions
        return f"is no ONNX file ({type(error).__name__})"
    tensors, nodes = [], []
    for graph in (proto.graph, *proto.functions):
        _walk(graph, tensors, nodes)
    if any(tensor.external_data for tensor in tensors):
        return "its weights lie in another file"
    own = {function.domain for function in proto.functions}  # made of other operators, which are among `nodes`
    if REPEATING & {node.op_type for node in nodes}:
        return ENDLESS
    strange = sorted({node.domain for node in nodes} - {"", "ai.onnx", "ai.onnx.ml"} - own)
    return f"uses operators of {', '.join(strange)}" if strange else None


def _walk(graph, tensors: list, nodes: list) -> None:
    """Adds what a graph or function holds, also within its operators."""
    tensors += getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        tensors += [sparse.values, sparse.indices]
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                _walk(inner, tensors, nodes)


def _openvino_fault(path: Path) -> str | None:
    """OpenVINO's own operators only, and constants that lie in the .bin file beside it."""
    try:
        net = xml_of(path.read_bytes())
    except ValueError as error:
        return str(error)
    if net.tag != "net":
        return f"is no OpenVINO file (it holds <{net.tag[:20]}>)"
    layers = net.findall("./layers/layer")
    versions = {one.get("version", "none") for one in layers}
    strange = sorted(version[:20] for version in versions if not version.startswith("opset"))
    if strange:
        return f"uses operators of {', '.join(strange)}"
    if REPEATING & {one.get("type") for one in net.iter("layer")}:
        return ENDLESS
    weights = path.with_suffix(".bin")
    held = weights.stat().st_size if weights.is_file() else 0
    try:
        outside = max((_end(one) for one in layers if one.get("type") == "Const"), default=0) > held
    except (KeyError, ValueError):
        return "is no OpenVINO file (its constants say no place)"
    return "its constants don't lie in the .bin file beside it" if outside else None


def _end(constant) -> int:
    """Where its bytes end in the .bin file."""
    place = constant.find("data")
    if place is None:
        raise ValueError("it says no place")
    return int(place.attrib["offset"]) + int(place.attrib["size"])


def _is_pickle(path: Path) -> bool:
    """Whether unpickling the file would come to an end; weights can begin like one, so it must also look like one."""
    seen = set()
    try:
        with open(path, "rb") as file:
            for operation, _, _ in pickletools.genops(file):
                seen.add(operation.name)
    except (ValueError, UnicodeDecodeError, OverflowError, IndexError):
        return False
    return bool(seen & _OF_A_PICKLE)
