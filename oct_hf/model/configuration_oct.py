"""OCTConfig: transformers' `timm_wrapper` configuration that also carries timm's own keys.

One config.json serves four readers: this class, AutoConfig, the native TimmWrapper and `timm.create_model`. That of a
network which timm lacks says another type, so that no reader takes it for one that loads without code. This file and
its neighbours architectures.py, combined.py, denoised.py, modeling_oct.py and stated.py import nothing else of the
package: the Hub's remote-code branch carries just the six.
"""

from dataclasses import field
from typing import TYPE_CHECKING, Any

from transformers import TimmWrapperConfig

from .stated import config_fault

OWN_TYPE = "oct_network"  # the type in config.json of a network that timm lacks; transformers knows none of that name


class OCTConfig(TimmWrapperConfig):
    """Configuration of an OCT classifier.

    Beside those of `TimmWrapperConfig` (`architecture`, `id2label`, `label2id`, …) its attributes are timm's keys:
    `pretrained_cfg` (input size, interpolation, mean, std …), `num_features`, `label_names` and `label_descriptions`.
    A calibrated model also has `calibration_temperature`, the number by which its classifier was divided (or one an
    output); its name isn't `temperature`, which transformers takes for a setting of text generation. `needs_code` is
    there, and true, where timm lacks the network, so that only this package's code can build it.
    """

    if TYPE_CHECKING:  # at run time transformers would make each of them an argument with a place in every config.json
        id2label: dict[int, str] = field(default_factory=dict)
        num_labels: int
        pretrained_cfg: dict[str, Any]
        num_features: int
        label_names: list[str]
        label_descriptions: dict[str, str]
        image_processor_type: str
        calibration_temperature: float | list[float]
        needs_code: bool

    @property
    def several(self) -> bool:
        """Whether a picture may have several labels at once, so that each probability is a sigmoid of its own."""
        return self.problem_type == "multi_label_classification"

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the parent's; both types are this class's own. Raises ValueError of one that isn't to be followed."""
        config, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if fault := config_fault(config):
            raise ValueError(f"config.json: {fault}")
        if config.get("model_type") == OWN_TYPE:
            config = config | {"model_type": cls.model_type}
        return config, rest

    def to_dict(self) -> dict[str, Any]:
        """The parent drops id2label and label2id, and writes a null `model_args` on which timm fails."""
        output = super().to_dict()
        if getattr(self, "needs_code", False):
            output["model_type"] = OWN_TYPE
        output["id2label"] = {int(index): name for index, name in self.id2label.items()}
        output["label2id"] = {name: int(index) for index, name in self.id2label.items()}
        output["label_names"] = list(self.id2label.values())
        if output.get("model_args") is None:
            output.pop("model_args", None)
        return output
