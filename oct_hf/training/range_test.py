"""`learning_rate: find`: a short training at rising rates, after which the network is as it was.

Smith, "Cyclical learning rates for training neural networks" (2017), section 3.3. The rate taken is that at which the
smoothed loss falls fastest; it depends on data, network and seed alone. The loss's lowest point says less: on few
images the network learns them by heart on the way, and the loss falls to the end.
"""

import math
from itertools import islice

import numpy as np
from scipy.ndimage import gaussian_filter1d

from oct_hf.errors import TrainingError

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100
_SMOOTH = 4.0  # steps, a quarter of a power of ten
_DIVERGED = 4  # times the first loss above the lowest
_FELL = 0.02  # share of the first loss; less is noise


def range_test(trainer, steps: int = STEPS) -> dict:
    """`learning_rate`, and `curve`: pairs of rate and smoothed loss.

    Args:
        trainer: an `OCTTrainer` that hasn't begun; its own loss, optimiser, batches and mixing are used.
        steps: at most so many; it ends earlier where the loss runs away.

    Raises:
        TrainingError: the loss falls at no rate.
    """
    kept = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.args.learning_rate = 1.0
    optimizer = trainer.create_optimizer()
    scales = [group["lr"] for group in optimizer.param_groups]
    rates = np.geomspace(LOWEST, HIGHEST, steps)
    losses: list[float] = []
    for number, (rate, batch) in enumerate(zip(rates, islice(trainer.endless_batches(), steps), strict=True)):
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        batch.pop("index", None)  # what the loss remembers of images would fall whatever the rate
        trainer.seed_step(number)
        loss = trainer.try_step(batch)
        if not math.isfinite(loss) or loss > min([loss, *losses]) + _DIVERGED * abs([*losses, loss][0]):
            break
        losses.append(loss)
    trainer.optimizer = None
    trainer.model.load_state_dict(kept)
    smoothed = gaussian_filter1d(losses, _SMOOTH, mode="nearest") if losses else np.zeros(0)
    if len(smoothed) < 3 or smoothed[0] - smoothed.min() < _FELL * abs(smoothed[0]):
        raise TrainingError("train.learning_rate: the range test found no rate at which the loss falls; give a number")
    found = rates[int(np.gradient(smoothed).argmin())]
    pairs = zip(rates, smoothed, strict=False)
    return {
        "learning_rate": float(f"{found:.3g}"),
        "curve": [[float(f"{rate:.4g}"), float(f"{loss:.5g}")] for rate, loss in pairs],
    }
