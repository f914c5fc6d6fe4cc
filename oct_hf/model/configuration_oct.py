"""OCTConfig: transformers' `timm_wrapper` configuration that also carries timm's own keys.

One config.json serves four readers: this class, AutoConfig, the native TimmWrapper and `timm.create_model`. This file
and modeling_oct.py import nothing of the package, because the Hub's remote-code branch carries just the two.
"""

from typing import Any

from transformers import TimmWrapperConfig


class OCTConfig(TimmWrapperConfig):
    """Configuration of an OCT classifier.

    Beside those of `TimmWrapperConfig` (`architecture`, `id2label`, `label2id`, …) its attributes are timm's keys:
    `pretrained_cfg` (input size, interpolation, mean, std …), `num_features`, `label_names` and `label_descriptions`.
    A calibrated model also has `calibration_temperature`, the number by which its classifier was divided (or one an
    output); its name isn't `temperature`, which transformers takes for a setting of text generation.
    """

    def to_dict(self) -> dict[str, Any]:
        """The parent drops id2label and label2id, and writes a null `model_args` on which timm fails."""
        output = super().to_dict()
        output["id2label"] = {int(index): name for index, name in self.id2label.items()}
        output["label2id"] = {name: int(index) for index, name in self.id2label.items()}
        output["label_names"] = list(self.id2label.values())
        if output.get("model_args") is None:
            output.pop("model_args", None)
        return output
