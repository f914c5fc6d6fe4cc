"""One loader of the ecosystem, as a stranger runs it: python load_by_id.py LOADER REPOSITORY PIXELS.npy IMAGE …

Prints JSON: the probabilities of the normalised pixels and, where the loader reads files itself, of the images. Each
run is a process of its own that can't import oct_hf, unless that is the loader.
"""

import json
import sys

import numpy as np


def ask(model) -> list:
    """Probabilities of the pixels from a torch model."""
    import torch

    with torch.inference_mode():
        answer = model.eval()(torch.from_numpy(pixels))
    return getattr(answer, "logits", answer).softmax(-1).tolist()


def automodel(revision: str, trust: bool) -> dict:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    options = {"revision": revision, "trust_remote_code": trust}
    model = AutoModelForImageClassification.from_pretrained(repo, **options)
    processor = AutoImageProcessor.from_pretrained(repo, **options)
    return {"pixels": ask(model), "files": by_processor(model, processor), "class": type(model).__module__}


def by_processor(model, processor) -> list:
    """Probabilities of the images, by the library's own image processor."""
    import torch
    from PIL import Image

    with torch.inference_mode():
        inputs = processor([Image.open(image).convert("RGB") for image in images], return_tensors="pt")
        return model(**inputs).logits.softmax(-1).tolist()


def pipeline() -> dict:
    import transformers

    classify = transformers.pipeline("image-classification", model=repo)
    names = [classify.model.config.id2label[i] for i in range(classify.model.config.num_labels)]
    answers = [{a["label"]: a["score"] for a in answer} for answer in classify(images, top_k=None)]
    return {"files": [[answer[name] for name in names] for answer in answers]}


def timm_wrapper() -> dict:
    from transformers import TimmWrapperForImageClassification

    return {"pixels": ask(TimmWrapperForImageClassification.from_pretrained(repo))}


def timm() -> dict:
    import timm
    import torch
    from PIL import Image

    model = timm.create_model(f"hf_hub:{repo}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with torch.inference_mode():
        batch = torch.stack([transform(Image.open(image).convert("RGB")) for image in images])
        return {"pixels": ask(model), "files": model(batch).softmax(-1).tolist()}


def onnxruntime() -> dict:
    import onnxruntime
    from huggingface_hub import hf_hub_download

    session = onnxruntime.InferenceSession(hf_hub_download(repo, "onnx/model.onnx"), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"pixel_values": pixels})[0]
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return {"pixels": (powers / powers.sum(-1, keepdims=True)).tolist()}


def snapshot() -> dict:
    import os

    from huggingface_hub import ModelCard, snapshot_download

    top = snapshot_download(repo)
    found = [os.path.relpath(os.path.join(folder, name), top) for folder, _, names in os.walk(top) for name in names]
    return {"found": sorted(found), "pipeline_tag": ModelCard.load(repo).data.pipeline_tag}


def oct_hf() -> dict:
    from oct_hf import Predictor

    predictor = Predictor(repo)
    files = [list(answer.probabilities.values()) for answer in predictor.predict(images)]
    return {"pixels": predictor.probabilities(pixels).tolist(), "files": files}


LOADERS = {
    "oct_hf": oct_hf,
    "main": lambda: automodel("main", False),
    "main, code trusted": lambda: automodel("main", True),
    "remote-code": lambda: automodel("remote-code", False),
    "remote-code, code trusted": lambda: automodel("remote-code", True),
    "pipeline": pipeline,
    "TimmWrapper": timm_wrapper,
    "timm": timm,
    "onnxruntime": onnxruntime,
    "snapshot": snapshot,
}

if __name__ == "__main__":
    loader, repo, pixels_file, *images = sys.argv[1:]
    pixels = np.load(pixels_file)
    if loader != "oct_hf":
        sys.modules["oct_hf"] = None  # from here on `import oct_hf` fails
    print(json.dumps(LOADERS[loader]()))
