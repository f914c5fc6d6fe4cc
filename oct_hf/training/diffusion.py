"""A diffusion generator of B-scans, one network for all classes: diffusers' UNet and schedulers, transformers' Trainer.

Ho et al., "Denoising diffusion probabilistic models" (2020), with the cosine schedule of Nichol and Dhariwal (2021) and
velocities as what is predicted (Salimans and Ho 2022); sampled by DDIM (Song et al. 2021) with classifier-free guidance
(Ho and Salimans 2022), for which a share of the labels is hidden in training. Noise and hidden labels come from seed
and step, so a stopped training goes on as it would have.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from oct_hf.data.pixels import Pixels
from oct_hf.errors import ModelError, OCTError, TrainingError
from oct_hf.parallel import kept_memory
from oct_hf.training.arguments import bf16_is_faster
from oct_hf.training.averages import MovingAverage
from oct_hf.training.batches import EpochSampler, collate
from oct_hf.training.checkpoints import WholeCheckpoints
from oct_hf.training.recipe import Count, NotNegative, Positive, Share
from oct_hf.training.trainer import EMA_FILE

SCHEDULER = "scheduler"
_LEVELS = 4  # of the UNet, each of half the size of the one before
_GROUPS = 8  # of its group norm


@checked(frozen=True)
class DiffusionSettings:
    """How a generator is trained and asked.

    Attributes:
        image_size: pixels, height and width; a multiple of 8.
        epochs, batch_size, learning_rate, ema, seed: of the training.
        width: channels of the UNet's finest level.
        hidden: share of the labels that training doesn't tell.
        steps: from noise to a picture.
        guidance: how much more a picture shows its class than the network says; 1 is as it says.
    """

    image_size: Annotated[int, Field(ge=32, multiple_of=2 ** (_LEVELS - 1))] = 64
    epochs: Count = 200
    batch_size: Count = 16
    learning_rate: Positive = 2e-4
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    width: Annotated[int, Field(ge=_GROUPS, multiple_of=_GROUPS)] = 32
    hidden: Share = 0.1
    steps: Annotated[int, Field(ge=2, le=1000)] = 50
    guidance: NotNegative = 1.5
    seed: int = 0


def _diffusers() -> Any:
    """The library, where the extra is installed; its classes are loaded by name, and no type knows them."""
    try:
        import diffusers
    except ImportError:
        raise OCTError('generating B-scans by diffusion needs pip install "oct-hf[generate]"') from None
    diffusers.utils.logging.set_verbosity_error()
    return diffusers


def build_unet(settings: DiffusionSettings, classes: int):
    """A `UNet2DModel` of gray pictures on random weights; its label number `classes` stands for a hidden label."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return _diffusers().UNet2DModel(
            sample_size=settings.image_size,
            in_channels=1,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=tuple(settings.width * times for times in (1, 2, 3, 4)),
            down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=_GROUPS,
            attention_head_dim=8,
            num_class_embeds=classes + 1,
        )


def make_scheduler() -> Any:
    """The noise of training, from which sampling makes its own."""
    return _diffusers().DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )


class _Denoiser(nn.Module):
    """The UNet as the Trainer calls a model: velocity predicted for noisy pictures `(N, 1, h, w)`."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.unet(noisy, times, class_labels=labels).sample


class DiffusionTrainer(WholeCheckpoints):
    """Trains a UNet to tell B-scan from noise, of `Pixels` of its size.

    Args:
        unet: of `build_unet`.
        settings: of the training.
        train: B-scans of the training side, with their labels.
        output_dir: for checkpoints.
        callbacks: further ones.

    Attributes:
        ema: the averaged weights, which are what draws pictures.
    """

    model: _Denoiser
    train_dataset: Any  # `Pixels`

    def __init__(
        self, unet, settings: DiffusionSettings, train: Pixels, output_dir: str | Path, callbacks: Sequence = ()
    ):
        self.settings, self.hidden_label = settings, unet.config.num_class_embeds - 1
        self.scheduler = make_scheduler()
        sides: dict[str, Any] = {"train_dataset": train}  # `Pixels` are no Dataset of torch's, which nothing needs
        super().__init__(
            model=_Denoiser(unet),
            args=_arguments(settings, output_dir),
            data_collator=collate,
            callbacks=list(callbacks),
            **sides,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.ema = MovingAverage(self.model, settings.ema)
        self.add_callback(self.ema)

    def train(self, resume_from_checkpoint: str | Path | None = None, **kwargs):
        """Trains to the end, or from a checkpoint on."""
        if resume_from_checkpoint:
            self.ema.module.load_state_dict(load_file(Path(resume_from_checkpoint) / EMA_FILE))
        with kept_memory():
            return super().train(resume_from_checkpoint=str(resume_from_checkpoint or "") or None, **kwargs)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return EpochSampler(len(self.train_dataset), self.settings.seed)

    def training_step(self, model, inputs, num_items_in_batch=None):
        torch.manual_seed(hash((self.settings.seed, self.state.global_step)) % 2**63)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the generator's loss is no number; train it in another folder "
                "with another seed"
            )
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean squared error of the predicted velocity, `sqrt(a) noise - sqrt(1 - a) clean`.

        Salimans and Ho, "Progressive distillation for fast sampling of diffusion models" (ICLR 2022), appendix D. Of
        almost pure noise a prediction of the noise says nothing of the picture, least how bright it is.
        """
        clean = as_input(inputs["pixel_values"])
        noise = torch.randn_like(clean)
        times = torch.randint(self.scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
        hidden = torch.rand(len(clean), device=clean.device) < self.settings.hidden
        labels = torch.where(hidden, self.hidden_label, inputs["labels"])
        noisy = self.scheduler.add_noise(clean, noise, times)
        velocity = self.scheduler.get_velocity(clean, noise, times)
        loss = functional.mse_loss(model(noisy, times, labels).float(), velocity)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        kept = {key: value.contiguous() for key, value in self.ema.module.state_dict().items()}
        folder = output_dir or self.args.output_dir
        assert folder is not None  # `_arguments` names one
        save_file(kept, Path(folder) / EMA_FILE)

    def save_generator(self, folder: Path) -> None:
        """UNet and scheduler as diffusers loads them. They may hold what training pictures show, so they stay home."""
        self.ema.module.unet.save_pretrained(folder)
        self.scheduler.save_pretrained(folder / SCHEDULER)


def as_input(pictures: torch.Tensor) -> torch.Tensor:
    """float32 `(N, 1, h, w)` from -1 to 1 of uint8 `(N, h, w)`."""
    return pictures[:, None].float() / 127.5 - 1


def _arguments(settings: DiffusionSettings, output_dir: str | Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=100,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=bf16_is_faster(),
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        seed=settings.seed,
        save_strategy="steps",
        save_steps=0.1,  # of all steps
        logging_strategy="epoch",
        dataloader_num_workers=0,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
    )


# --- asking it -------------------------------------------------------------------------------------------------------


class DiffusionGenerator:
    """A trained generator.

    Args:
        folder: that `DiffusionTrainer.save_generator` wrote.
        device: to compute on.

    Raises:
        ModelError: there is none.
    """

    def __init__(self, folder: str | Path, device: str = "cpu"):
        library = _diffusers()
        try:
            self.unet = library.UNet2DModel.from_pretrained(folder, use_safetensors=True).eval().to(device)
            self.scheduler = library.DDIMScheduler.from_pretrained(folder, subfolder=SCHEDULER)
        except (OSError, ValueError, json.JSONDecodeError) as error:
            raise ModelError(f"{folder}: no generator that can be loaded ({str(error).splitlines()[0]})") from None
        self.device, self.classes = device, self.unet.config.num_class_embeds - 1

    @torch.inference_mode()
    def pictures(
        self, labels: Sequence[int], steps: int = 50, guidance: float = 1.5, seed: int = 0, batch_size: int = 32
    ) -> np.ndarray:
        """uint8 `(n, h, w)`, a picture a label; each by its own noise, so batches don't matter.

        Args:
            labels: n numbers of classes.
            steps: of DDIM.
            guidance: weight of what the class adds; 1 for none beyond its own.
            seed: of the noise, with the picture's number.
            batch_size: pictures drawn at once.
        """
        self.scheduler.set_timesteps(steps)
        drawn = []
        for start in range(0, len(labels), batch_size):
            some = torch.tensor(labels[start : start + batch_size])
            values = torch.stack([self._noise(seed, start + number) for number in range(len(some))]).to(self.device)
            for time in self.scheduler.timesteps:
                velocity = self._predicted(values, time, some.to(self.device), guidance)
                values = self.scheduler.step(velocity, time, values).prev_sample
            drawn.append(((values[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy())
        return np.concatenate(drawn)

    def _noise(self, seed: int, number: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(hash((seed, number)) % 2**63)
        side = self.unet.config.sample_size
        return torch.randn(1, side, side, generator=random)

    def _predicted(self, values: torch.Tensor, time, labels: torch.Tensor, guidance: float) -> torch.Tensor:
        told = self.unet(values, time, class_labels=labels).sample
        if guidance == 1:
            return told
        hidden = self.unet(values, time, class_labels=torch.full_like(labels, self.classes)).sample
        return hidden + guidance * (told - hidden)
