"""The Trainer against bare training steps."""

import time
from pathlib import Path

from benchmarks.material import PAIRS, median


def benchmark_training(scratch: Path, image_size: int = 224, batch_size: int = 32, batches: int = 8) -> dict:
    """The Trainer, from uint8 pictures with augmentation, against bare steps on tensors in memory.

    Bare steps as anybody writes them, and with the memory kept that the Trainer keeps too.
    """
    import numpy as np
    import torch
    from torch.nn import functional
    from transformers import TrainerCallback

    from oct_hf import OCTForImageClassification, OCTTrainer, Preprocessing, draw_phantom
    from oct_hf.data.pixels import Pixels
    from oct_hf.data.transforms import Augmentation
    from oct_hf.evaluation.oct_metrics import measure
    from oct_hf.parallel import kept_memory
    from oct_hf.runs.run import quiet_libraries
    from oct_hf.training.arguments import bf16_is_faster
    from oct_hf.training.batches import normalise
    from oct_hf.training.recipe import TrainRecipe

    class Clock(TrainerCallback):
        """Seconds inside steps, and between them within an epoch; the first step warms up and isn't counted."""

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

    quiet_libraries()
    names = ["CNV", "DME", "DRUSEN", "NORMAL"]
    labels = np.arange(batch_size * batches) % 4
    drawn = [draw_phantom(names[label], patient=i, height=248, width=256).image for i, label in enumerate(labels)]
    preprocessing = Preprocessing(image_size, image_size)
    images = np.stack([preprocessing.resize(image) for image in drawn])
    hashes = [str(i) for i in range(len(images))]
    train = Pixels(images, labels, hashes, Augmentation("standard"))
    few = Pixels(images[:8], labels[:8], hashes[:8])
    tensors = normalise(torch.from_numpy(images), preprocessing)
    targets = torch.from_numpy(labels)
    bf16 = bf16_is_faster()

    def model():
        torch.manual_seed(0)
        return OCTForImageClassification.from_timm("tf_efficientnetv2_b0", names, image_size=image_size)

    def bare() -> float:
        network = model().to(memory_format=torch.channels_last).train()
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

    def ours(number: int) -> tuple[float, float]:
        clock = Clock()
        score = lambda probabilities, labels: measure(probabilities, labels, names)  # noqa: E731
        recipe = TrainRecipe(epochs=2, batch_size=batch_size)
        OCTTrainer(model(), recipe, preprocessing, train, few, scratch / f"run{number}", score, [clock]).train()
        # The second epoch: what a long training is made of.
        spans, waits = clock.spans[batches:], clock.waits[-batches:]
        return len(spans) * batch_size / (sum(spans) + sum(waits)), sum(waits) / (sum(spans) + sum(waits))

    def bare_with_kept_memory() -> float:
        with kept_memory():
            return bare()

    pairs = [(bare(), *ours(number), bare_with_kept_memory()) for number in range(PAIRS)]
    return {
        "image_size": image_size,
        "batch_size": batch_size,
        "bf16": bf16,
        "bare_images_per_s": median(p[0] for p in pairs),
        "trainer_images_per_s": median(p[1] for p in pairs),
        "bare_with_kept_memory_images_per_s": median(p[3] for p in pairs),
        "speed_ratio": median(p[1] / p[0] for p in pairs),
        "speed_ratio_with_kept_memory": median(p[1] / p[3] for p in pairs),
        "speed_ratios": [round(p[1] / p[0], 3) for p in pairs],
        "waiting_for_data_share": median(p[2] for p in pairs),
    }
