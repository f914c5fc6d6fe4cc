"""`learning_rate: find`: a short training at rising rates, after which the network is as it was.

Smith, "Cyclical learning rates for training neural networks" (2017), section 3.3. The rate taken is a tenth of that
at which the smoothed loss was lowest, the rule of fastai's first finder; it depends on data, network and seed alone.
"""

import math
from itertools import islice

from oct_hf.errors import TrainingError

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100
_SMOOTH = 0.9
_DIVERGED = 4  # times the lowest loss


def range_test(trainer, steps: int = STEPS) -> dict:
    """`learning_rate`, and `curve`: pairs of rate and smoothed loss.

    Args:
        trainer: an `OCTTrainer` that hasn't begun; its own loss, optimiser, batches and mixing are used.
        steps: at most so many; it ends earlier where the loss runs away.

    Raises:
        TrainingError: the loss falls at no rate.
    """
    kept = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    remembered = {key: value.clone() for key, value in trainer.loss.state_dict().items()}
    trainer.args.learning_rate = 1.0
    optimizer = trainer.create_optimizer()
    scales = [group["lr"] for group in optimizer.param_groups]
    curve, average, lowest = [], 0.0, math.inf
    for number, batch in enumerate(islice(trainer.endless_batches(), steps)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (steps - 1))
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        trainer.seed_step(number)
        loss = trainer.try_step(batch)
        average = _SMOOTH * average + (1 - _SMOOTH) * loss
        smoothed = average / (1 - _SMOOTH ** (number + 1))
        if not math.isfinite(smoothed) or smoothed > _DIVERGED * lowest:
            break
        lowest = min(lowest, smoothed)
        curve.append([float(f"{rate:.4g}"), float(f"{smoothed:.5g}")])
    trainer.optimizer = None
    trainer.model.zero_grad(set_to_none=True)
    trainer.model.load_state_dict(kept)
    trainer.loss.load_state_dict(remembered)
    at = min(range(len(curve)), key=lambda i: curve[i][1], default=0)
    if at < 0.05 * steps:
        raise TrainingError("train.learning_rate: the range test found no rate at which the loss falls; give a number")
    return {"learning_rate": float(f"{curve[at][0] / 10:.3g}"), "curve": curve}
