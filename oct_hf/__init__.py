"""Retinal OCT classifiers: fine-tuned on patient-disjoint splits, measured honestly, published for every loader.

Names are imported when first used, so that `import oct_hf` loads neither torch nor datasets.
"""

import importlib

__version__ = "0.1.0"

_WHERE = {
    "OCTConfig": "oct_hf.model.configuration_oct",
    "OCTForImageClassification": "oct_hf.model.modeling_oct",
    "OCTMetrics": "oct_hf.evaluation.oct_metrics",
    "OCTTrainer": "oct_hf.training.trainer",
    "OCT": "oct_hf.data.oct",
    "Predictor": "oct_hf.inference.predictor",
    "Preprocessing": "oct_hf.images",
    "Recipe": "oct_hf.training.recipe",
    "Volume": "oct_hf.data.volumes",
    "adapt_model": "oct_hf.runs.adapted",
    "answer_eyes": "oct_hf.inference.eyes",
    "cross_validate": "oct_hf.runs.folds",
    "OCTError": "oct_hf.errors",
    "draw_phantom": "oct_hf.data.phantom:draw",
    "evaluate_model": "oct_hf.runs.other_data",
    "export_model": "oct_hf.runs.fast_export",
    "finetune": "oct_hf.runs.run",
    "prepare": "oct_hf.data.oct",
    "publish_data": "oct_hf.runs.data_set",
    "read_image": "oct_hf.images",
    "read_volumes": "oct_hf.data.volumes",
    "split_by_patient": "oct_hf.data.splits",
    "tune": "oct_hf.runs.tune",
    "write_repository": "oct_hf.hub.repository",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'oct_hf' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
