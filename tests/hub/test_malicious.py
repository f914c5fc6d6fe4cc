"""A repository made to do harm, through every way in: refused with a reason, before anything of it is built or run."""

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from oct_hf import OCTForImageClassification, Predictor
from oct_hf.errors import DataError, ModelError
from oct_hf.inference.fast_files import GRAY_ONNX, ONNX_FILE, check_ends

MARK = "OCT_HF_TEST_MARK"  # names the file that code of the repository would leave behind


class Payload:
    """What a pickle runs that is read without care."""

    def __reduce__(self):
        return os.system, (f'touch "${MARK}"',)


CODE = f"import os, pathlib\npathlib.Path(os.environ['{MARK}']).touch()\nfrom oct_hf.model.modeling_oct import *\n"


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """A file that only code out of a repository makes."""
    monkeypatch.setenv(MARK, str(tmp_path / "it ran"))
    yield tmp_path / "it ran"
    assert not (tmp_path / "it ran").exists()


@pytest.fixture(scope="module")
def sound(finished_run, tmp_path_factory) -> Path:
    """The repository of a finished run, for torch alone: its fast files would answer without the weights."""
    folder = shutil.copytree(finished_run / "model", tmp_path_factory.mktemp("sound") / "model")
    for name in ("onnx", "openvino"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def edit(name: str, change: dict | Callable[[dict], dict]) -> Callable[[Path], None]:
    """A harm to a JSON file of a repository."""

    def harm(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content = content | change if isinstance(change, dict) else change(content)
        (folder / name).write_text(json.dumps(content))

    return harm


def labelled(first: str) -> Callable[[Path], None]:
    def change(config: dict) -> dict:
        names = [first, *config["label_names"][1:]]
        told = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
        return config | told | {"label_names": names}

    return edit("config.json", change)


def pretrained_cfg(**change) -> Callable[[Path], None]:
    return edit("config.json", lambda config: config | {"pretrained_cfg": config["pretrained_cfg"] | change})


def pickled(folder: Path) -> None:
    """Weights that run code, and no others."""
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": Payload()}, folder / "pytorch_model.bin")


def checkpoint(folder: Path) -> None:
    """timm is told to read a pickle after it has built the network."""
    (folder / "more.bin").write_bytes(pickle.dumps(Payload()))
    edit("config.json", {"model_args": {"checkpoint_path": str(folder / "more.bin")}})(folder)


def ensemble(folder: Path) -> None:
    """A network of networks, of which one is to be fetched with its weights."""
    member = {"architecture": "hf-hub:evil/net", "num_classes": 2, "model_args": {"pretrained": True}}
    member |= {"size": [64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    change = {"architecture": "ensemble", "needs_code": True, "model_type": "oct_network"}
    edit("config.json", change | {"model_args": {"members": [member]}})(folder)


def foreign_code(folder: Path) -> None:
    """A class of the repository's own, which transformers would fetch and run."""
    (folder / "modeling_evil.py").write_text(CODE)
    names = {"AutoConfig": "modeling_evil.OCTConfig"}
    names |= {"AutoModelForImageClassification": "modeling_evil.OCTForImageClassification"}
    edit("config.json", {"auto_map": names, "model_type": "evil"})(folder)


def header(change: Callable[[bytes, dict], bytes]) -> Callable[[Path], None]:
    """Weights with another header."""

    def harm(folder: Path) -> None:
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        length = struct.unpack("<Q", whole[:8])[0]
        path.write_bytes(change(whole, json.loads(whole[8 : 8 + length])))

    return harm


def repacked(whole: bytes, about: dict) -> bytes:
    length, written = struct.unpack("<Q", whole[:8])[0], json.dumps(about).encode()
    return struct.pack("<Q", len(written)) + written + whole[8 + length :]


def far_away(whole: bytes, about: dict) -> bytes:
    name = next(name for name in about if name != "__metadata__")
    about[name]["data_offsets"] = [10**12, 10**12 + 4]
    return repacked(whole, about)


def as_large_as_a_disk(whole: bytes, about: dict) -> bytes:
    name = next(name for name in about if name != "__metadata__")
    about[name]["shape"] = [10**9, 10**6]
    return repacked(whole, about)


def shards_outside(folder: Path) -> None:
    """An index that names a file of another place, which is there."""
    weights = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(weights)
    names = {name: "../elsewhere.safetensors" for name in load_file(weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def half_the_weights(folder: Path) -> None:
    """What is missing would be drawn at random, and the answers with it."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: weights[name] for name in list(weights)[::2]}, folder / "model.safetensors", {"format": "pt"})


def nested(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000 + "]" * 100_000)


def endless(folder: Path) -> None:
    (folder / "config.json").write_text('{"id2label": {"0": "' + "A" * (20 << 20) + '"}}')


# The harm, and what is said of it.
IN_CONFIG = {
    "a path as architecture": (edit("config.json", {"architecture": "../../../etc/passwd"}), "no name of a network"),
    "another repository as architecture": (edit("config.json", {"architecture": "hf-hub:a/b"}), "no name of a network"),
    "labels with script": (labelled("<script>alert(1)</script>"), "holds a tag"),
    "labels with control codes": (labelled("DME\x1b]0;owned\x07"), "holds control codes"),
    "labels that are read backwards": (labelled("\u202eLAMRON"), "holds control codes"),
    "labels as formulas": (labelled('=HYPERLINK("http://evil")'), "is a formula"),
    "labels that differ by reader": (
        edit("config.json", lambda c: c | {"id2label": dict(enumerate(reversed(c["label_names"])))}),
        "in another order",
    ),
    "10^9 classes": (edit("config.json", {"num_classes": 10**9}), "at most 100,000 labels"),
    "10^9 labels": (edit("config.json", {"num_labels": 10**9, "id2label": None}), "at most 100,000 labels"),
    "a checkpoint": (checkpoint, "checkpoint_path is no setting"),
    "a member of a network from elsewhere": (ensemble, "is no name of a network"),
    "quantised by others": (edit("config.json", {"quantization_config": {"quant_method": "gptq"}}), "another library"),
    "a kernel from elsewhere": (edit("config.json", {"attn_implementation": "evil/kernel"}), "code of another"),
    "nested": (nested, "nested too deeply"),
    "endless": (endless, "has more than 16 MB"),
    "pictures of terapixels": (
        edit("preprocessor_config.json", {"size": {"height": 10**6, "width": 10**6}}),
        "an input of 1000000x1000000 pixels",
    ),
    "a size that is no number": (edit("preprocessor_config.json", {"size": {"height": "9", "width": -1}}), "can't be"),
    "a deviation of zero": (edit("preprocessor_config.json", {"image_std": [0, 0, 0]}), "std is (0, 0, 0)"),
}
IN_WEIGHTS = {
    "a pickle": (pickled, "weights of another kind aren't read"),
    "code beside": (foreign_code, "no model that can be loaded"),
    "a far larger network": (edit("config.json", {"architecture": "vit_giant_patch14_224"}), "larger network"),
    "an endless network": (
        edit("config.json", {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 10**6, "embed_dim": 3}}),
        "larger network",
    ),
    "a header as long as a disk": (header(lambda whole, _: b"\xff" * 8 + whole[8:]), "header's length is wrong"),
    "a header that is none": (header(lambda whole, _: whole[:8] + b"{" * 200 + whole[208:]), "header is no JSON"),
    "a tensor outside the file": (header(far_away), "lies outside of its place"),
    "a tensor as large as a disk": (header(as_large_as_a_disk), "lies outside of its place"),
    "shards outside": (shards_outside, "is no safetensors file beside it"),
    "half the weights": (half_the_weights, "so its answers would be random"),
}


# What turns files into pixels is no business of the network's class.
OF_PIXELS = ("pictures of terapixels", "a size that is no number", "a deviation of zero")
OWN_CLASS_PASSES = ("code beside",)  # it never looks at `auto_map`, and loads the weights without the code
BASE_PASSES = ("code beside", "half the weights")  # a base may lack what is trained anew


def own_class(folder: Path) -> None:
    OCTForImageClassification.from_pretrained(folder)


def as_a_base(folder: Path) -> None:
    OCTForImageClassification.from_timm(str(folder), ["DME", "NORMAL"])


def harmed(sound: Path, harm: Callable[[Path], None], tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "evil", ignore_errors=True)
    folder = shutil.copytree(sound, tmp_path / "evil" / "model")
    harm(folder)
    return folder


REFUSED = pytest.mark.promise("A repository made to do harm is refused with a reason, through every way in.")


@REFUSED
@pytest.mark.parametrize("name", [*IN_CONFIG, *IN_WEIGHTS])
def test_it_is_refused_with_a_reason_and_soon(name, sound, mark, tmp_path, monkeypatch, cases):
    monkeypatch.chdir(tmp_path)
    harm, said = (IN_CONFIG | IN_WEIGHTS)[name]
    folder = harmed(sound, harm, tmp_path)
    began = time.process_time()
    with pytest.raises(ModelError) as refused:
        Predictor(folder)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    cases.tried += 1
    if name not in OF_PIXELS:
        for load, passes in ((own_class, OWN_CLASS_PASSES), (as_a_base, BASE_PASSES)):
            if name not in passes:
                with pytest.raises((OSError, ValueError, RuntimeError)):
                    load(folder)
                cases.tried += 1
    assert time.process_time() - began < 120  # seconds; the hang that this guards against has no end


def commands(model: Path, picture: Path, out: Path) -> dict[str, list]:
    return {
        "predict": [picture, "--model", model],
        "explain": [picture, "--model", model, "--out", out],
        "serve": [model, "--port", 0],
        "app": [model, "--port", 0],
        "page": [model, "--out", out],
        "export": [model, "--to", "onnx", "--out", out],
        "verify": [model],
        "evaluate": [model, "--data", picture.parent],
    }


@REFUSED
@pytest.mark.parametrize("verb", commands(Path(), Path(), Path()))
def test_every_command_refuses_it(verb, sound, finished_run, run, clinic, mark, tmp_path, cases):
    picture = clinic / "DME/D0/0.png"
    names = cases(3, 100)
    chosen = [*list(IN_CONFIG)[:: max(1, len(IN_CONFIG) // names)], *list(IN_WEIGHTS)[:: max(1, 9 // names)]]
    for name in chosen:
        harm, said = (IN_CONFIG | IN_WEIGHTS)[name]
        if verb == "page":  # it runs the ONNX file alone
            if name in IN_WEIGHTS:
                continue
            folder = harmed(finished_run / "model", harm, tmp_path)
        else:
            folder = harmed(sound, harm, tmp_path)
        code, out, err = run(verb, *commands(folder, picture, tmp_path / "out")[verb])
        assert (code, "Traceback" in err) == (1 if verb == "verify" else 2, False), (name, out, err)
        # Where the files are looked at before anything is loaded, what is found there is said first.
        assert said in out + err or verb == "verify", (name, out, err)
        assert "\x1b" not in out + err and "\u202e" not in out + err, name


# --- fast files ---


def with_onnx(finished_run: Path, tmp_path: Path, change: Callable) -> Path:
    import onnx

    folder = shutil.copytree(finished_run / "model", tmp_path / "evil" / "model")
    for name in (ONNX_FILE, GRAY_ONNX):
        proto = onnx.load(folder / name)
        change(proto, folder)
        (folder / name).write_bytes(proto.SerializeToString())
    return folder


def weights_elsewhere(location: str) -> Callable:
    def change(proto, folder: Path) -> None:
        from onnx import TensorProto

        tensor = max(proto.graph.initializer, key=lambda one: len(one.raw_data))
        secret = folder.parent / "secret.bin"
        secret.write_bytes(tensor.raw_data)
        if not (folder / "onnx/link.bin").is_symlink():
            (folder / "onnx/link.bin").symlink_to(secret)
        where = {"location": location.format(secret=secret), "offset": "0", "length": str(len(tensor.raw_data))}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in where.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return change


def library_operator(proto, folder: Path) -> None:
    proto.graph.node[0].domain = "evil.operators"


def spinning(proto, folder: Path) -> None:
    """A loop of 2^62 turns, within a branch, on whose result the answer depends."""
    from onnx import TensorProto, helper

    def value(name: str, kind: int = TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, [])

    node, output = helper.make_node, proto.graph.output[0].name
    proto.graph.initializer.extend(
        [
            helper.make_tensor("turns", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("on", TensorProto.BOOL, [], [True]),
            helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]),
        ]
    )
    turn = [node("Mul", ["sum", "nothing"], ["next"]), node("Identity", ["go"], ["go_on"])]
    given = [value("turn", TensorProto.INT64), value("go", TensorProto.BOOL), value("sum")]
    body = helper.make_graph(turn, "body", given, [value("go_on", TensorProto.BOOL), value("next")])
    loop = node("Loop", ["turns", "on", "nothing"], ["spun"], body=body)
    branch = helper.make_graph([loop], "branch", [], [value("spun")])
    last = next(one for one in proto.graph.node if output in one.output)
    last.output[list(last.output).index(output)] = "before"
    proto.graph.node.append(node("If", ["on"], ["at_last"], then_branch=branch, else_branch=branch))
    proto.graph.node.append(node("Add", ["before", "at_last"], [output]))


ONNX_HARMS = {
    "endless": (spinning, "repeats a part of itself, maybe without end"),
    "outside": (weights_elsewhere("../../secret.bin"), "its weights lie in another file"),
    "anywhere": (weights_elsewhere("{secret}"), "its weights lie in another file"),
    "through a link": (weights_elsewhere("link.bin"), "its weights lie in another file"),
    "an operator of a library": (library_operator, "uses operators of evil.operators"),
}


@REFUSED
@pytest.mark.parametrize("name", ONNX_HARMS)
def test_a_graph_that_reaches_out_of_its_folder_is_refused(name, finished_run, tmp_path, run, clinic):
    pytest.importorskip("onnxruntime")
    harm, said = ONNX_HARMS[name]
    folder = with_onnx(finished_run, tmp_path, harm)
    with pytest.raises(ModelError, match="can't be loaded"):
        list(Predictor(folder, backend="onnx").predict([clinic / "DME/D0/0.png"]))
    code, out, _ = run("verify", folder)
    assert code == 1 and said in out


@REFUSED
@pytest.mark.parametrize(
    "name, content",
    [
        ("gray.xml", b'<net><layers><layer id="0" type="L&#111;op" version="opset5"/></layers></net>'),
        (
            "gray.xml",
            b'<net><layer type="If"><body><layer type="TensorIterator"/></body></layer></net>',
        ),
        ("gray.onnx", b"weights Loop \x22\x84\x80\x00Loop"),
        ("gray.onnx", b"\x22\x04Scan"),
    ],
)
def test_a_loop_is_seen_however_it_is_written(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="repeats a part of itself"):
        check_ends(tmp_path / name)
    (tmp_path / name).write_bytes(content.replace(b"op", b"p").replace(b"Scan", b"Sc").replace(b"Iter", b"It"))
    check_ends(tmp_path / name)


def test_paths_that_a_run_names_stay_in_its_repository(sound, tmp_path, clinic):
    from oct_hf.inference.description import file_of

    for path in ("../secret.png", "/etc/passwd", "examples/../../x", "C:\\x", "..\\x", "C:x"):
        (tmp_path / "secret.png").write_bytes(b"x")
        assert file_of(shutil.copytree(sound, tmp_path / "m", dirs_exist_ok=True), path) is None
    assert file_of(sound, "examples/DME.png")


# --- data that isn't a model ---


def test_an_array_that_would_have_to_be_unpickled_is_no_data(tmp_path, mark):
    from oct_hf.data.oct import prepare

    names = [f"{side}_{what}" for side in ("train", "val", "test") for what in ("images", "labels")]
    np.savez(tmp_path / "octmnist.npz", **{name: np.array([Payload()], object) for name in names})
    with pytest.raises(DataError):
        prepare("octmnist", tmp_path / "octmnist.npz", tmp_path / "c")
