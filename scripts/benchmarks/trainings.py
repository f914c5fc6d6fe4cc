"""Ways to train EfficientNetV2-B0 on the same B-scans: bare steps, our Trainer, transformers' own example."""

import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import TrainerCallback

from oct_hf import OCTForImageClassification, OCTTrainer, Preprocessing
from oct_hf.data.pixels import Pixels
from oct_hf.data.transforms import Augmentation
from oct_hf.evaluation.oct_metrics import measure
from oct_hf.images import read_image, to_gray
from oct_hf.runs.run import quiet_libraries
from oct_hf.training.batches import normalise
from oct_hf.training.recipe import TrainRecipe

NAMES = ["CNV", "DME", "DRUSEN", "NORMAL"]
IMAGE_SIZE = 224
ARCHITECTURE = "tf_efficientnetv2_b0"


class Clock(TrainerCallback):
    """Seconds inside steps, and between them within an epoch."""

    def __init__(self):
        self.spans, self.waits, self.ended = [], [], None

    def on_epoch_begin(self, *_, **__):
        self.ended = time.perf_counter() if self.spans else None

    def on_step_begin(self, *_, **__):
        self.began = time.perf_counter()
        if self.ended is not None:
            self.waits.append(self.began - self.ended)

    def on_step_end(self, *_, **__):
        self.ended = time.perf_counter()
        self.spans.append(self.ended - self.began)

    def on_evaluate(self, *_, **__):
        self.ended = None

    def second_epoch(self, batch_size: int) -> tuple[float, float]:
        """Images/s of the second of two epochs, as in a long training, and the share of its time spent waiting."""
        steps = len(self.spans) // 2
        working, waiting = sum(self.spans[steps:]), sum(self.waits[-steps:])
        return steps * batch_size / (working + waiting), waiting / (working + waiting)


class Material:
    """B-scans to train on, one label after the other, which nothing is to be learned from.

    Args:
        encoded: image files.
        count: how many to train on; the files come round again where they are fewer.

    Attributes:
        images: uint8 `(count, height, width)`, as the Trainer gets them.
    """

    def __init__(self, encoded: list[bytes], count: int):
        self.encoded = [encoded[i % len(encoded)] for i in range(count)]
        self.labels, self.preprocessing = np.arange(count) % len(NAMES), Preprocessing(IMAGE_SIZE, IMAGE_SIZE)
        self.images = np.stack(
            [self.preprocessing.resize(to_gray(read_image(data, str(i)))) for i, data in enumerate(self.encoded)]
        )

    def write(self, folder: Path) -> Path:
        """The files in a folder a label."""
        for number, (data, label) in enumerate(zip(self.encoded, self.labels, strict=True)):
            (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
            (folder / NAMES[label] / f"{number}.jpeg").write_bytes(data)
        return folder


def bare(material: Material, batch_size: int, bf16: bool) -> float:
    """Images/s of steps as anybody writes them, on tensors in memory."""
    tensors = normalise(torch.from_numpy(material.images), material.preprocessing)
    targets, batches = torch.from_numpy(material.labels), len(material.labels) // batch_size
    network = _model().to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    for batch in range(-1, batches):  # the first one warms up
        if batch == 0:
            began = time.perf_counter()
        rows = slice(max(batch, 0) * batch_size, (max(batch, 0) + 1) * batch_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = network(tensors[rows]).logits
        functional.cross_entropy(logits.float(), targets[rows]).backward()
        optimiser.step()
        optimiser.zero_grad()
    return batches * batch_size / (time.perf_counter() - began)


def ours(material: Material, batch_size: int, folder: Path) -> tuple[float, float]:
    """Images/s of `OCTTrainer`, from uint8 pictures with augmentation, and the share of time it waits for them."""
    quiet_libraries()
    images, labels, preprocessing = material.images, material.labels, material.preprocessing
    hashes = [str(i) for i in range(len(images))]
    train = Pixels(images, labels, hashes, Augmentation("standard"))
    few = Pixels(images[:8], labels[:8], hashes[:8])
    clock, recipe = Clock(), TrainRecipe(epochs=2, batch_size=batch_size)
    score = lambda probabilities, labels: measure(probabilities, labels, NAMES)  # noqa: E731
    OCTTrainer(_model(), recipe, preprocessing, train, few, folder, score, [clock]).train()
    return clock.second_epoch(batch_size)


def example(files: Path, batch_size: int, bf16: bool, folder: Path) -> float:
    """Images/s as transformers' example `run_image_classification.py` trains: imagefolder, torchvision, Trainer.

    Its transforms and its collation, from image files in a folder a label, on the same network from random weights.
    """
    from datasets import load_dataset
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor
    from transformers import AutoModelForImageClassification, TimmWrapperConfig, Trainer, TrainingArguments

    quiet_libraries()
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=ARCHITECTURE, num_labels=len(NAMES), label_names=NAMES)
    model = AutoModelForImageClassification.from_config(config)
    mean, std = Preprocessing(IMAGE_SIZE, IMAGE_SIZE).mean, Preprocessing(IMAGE_SIZE, IMAGE_SIZE).std
    change = Compose([RandomResizedCrop(IMAGE_SIZE), RandomHorizontalFlip(), ToTensor(), Normalize(mean, std)])

    def transformed(batch: dict) -> dict:
        batch["pixel_values"] = [change(image.convert("RGB")) for image in batch["image"]]
        return batch

    def collate(items: list[dict]) -> dict:
        pixels = torch.stack([item["pixel_values"] for item in items])
        return {"pixel_values": pixels, "labels": torch.tensor([item["label"] for item in items])}

    data = load_dataset("imagefolder", data_dir=str(files), split="train", cache_dir=str(folder / "cache"))
    data.set_transform(transformed)
    settings = TrainingArguments(
        str(folder / "run"),
        num_train_epochs=2,
        per_device_train_batch_size=batch_size,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    clock = Clock()
    Trainer(model, settings, collate, data, callbacks=[clock]).train()
    return clock.second_epoch(batch_size)[0]


def _model() -> OCTForImageClassification:
    torch.manual_seed(0)
    return OCTForImageClassification.from_timm(ARCHITECTURE, NAMES, image_size=IMAGE_SIZE)
