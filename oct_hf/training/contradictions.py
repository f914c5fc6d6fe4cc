"""What in a recipe doesn't go together, each fault as a line that says what to do."""

from oct_hf.errors import did_you_mean
from oct_hf.training.recipe import LOSSES, PretrainRecipe, Recipe, SplitRecipe, TrainRecipe

# Sections by which a network learns otherwise than from its labels alone, or doesn't learn.
_WAYS = ("teacher", "semi", "co_teaching", "adversarial", "head", "ensemble")


def contradictions(recipe: Recipe) -> list[str]:
    """All faults of a recipe; none where it can be run."""
    faults = training_contradictions(recipe.train) + _pretraining(recipe.pretrain) + _ways_to_learn(recipe)
    faults += _splitting(recipe.split) + _generator(recipe) + _signs(recipe) + _cleaning(recipe) + _untrained(recipe)
    if recipe.hub.checkpoints and recipe.train.snapshots:
        faults.append("hub.checkpoints: snapshots aren't among them; leave out train.snapshots")
    return faults


def training_contradictions(train: TrainRecipe) -> list[str]:
    """What in a fine-tuning's settings doesn't go together."""
    faults = []
    known = LOSSES[train.loss]
    for name in train.loss_options:
        if name not in known:
            has = f"; {train.loss} has {', '.join(known)}" if known else f"; {train.loss} has none"
            faults.append(f'train.loss_options: no option "{name}"{did_you_mean(name, known)}{has}')
    options = known | train.loss_options
    if not 0 < options.get("q", 1) <= 1:
        faults.append("train.loss_options: q of gce is above 0 and at most 1")
    if not options.get("log_zero", -1) < 0:
        faults.append("train.loss_options: log_zero of symmetric is below 0")
    if train.ema and train.swa_epochs:
        faults.append("train.ema and train.swa_epochs are two ways to average weights: choose one")
    if train.swa_epochs > train.epochs:
        faults.append(f"train.swa_epochs: {train.swa_epochs} of {train.epochs} epochs; at most all")
    if train.freeze_epochs + train.thaw_epochs >= train.epochs and train.thaw_epochs:
        faults.append(f"train.thaw_epochs: with freeze_epochs they leave none of {train.epochs} to the whole network")
    if train.loss in ("elr", "asymmetric") and (train.mixup or train.cutmix):
        faults.append(f"train.loss: {train.loss} needs each image's own label, so neither mixup nor cutmix")
    if train.optimizer == "schedule_free" and (train.ema or train.swa_epochs):
        faults.append("train.optimizer: schedule_free averages weights itself, so neither ema nor swa_epochs")
    if train.snapshots and train.epochs % train.snapshots:
        faults.append(f"train.snapshots: {train.epochs} epochs aren't divisible into {train.snapshots} equal cycles")
    plain = train.schedule == "cosine" and train.optimizer != "schedule_free" and not (train.ema or train.swa_epochs)
    if train.snapshots and not (plain and not train.patience):
        faults.append("train.snapshots: they need the schedule cosine, and neither ema, swa_epochs nor patience")
    return faults


def _splitting(split: SplitRecipe) -> list[str]:
    """What in a split's settings doesn't go together."""
    if split.folds and split.by != "patient":
        return [f"split.folds: folds are drawn with split.by=patient, not {split.by}; leave it out, or give that"]
    return []


def _pretraining(pretrain: PretrainRecipe | None) -> list[str]:
    """What in a pretraining's settings doesn't go together."""
    faults = []
    if pretrain and pretrain.unlabelled and pretrain.task != "denoise":
        faults.append("pretrain.unlabelled: B-scans without labels are for pretrain.task=denoise")
    if pretrain and pretrain.looks[0] > pretrain.looks[1]:
        faults.append(f"pretrain.looks: {pretrain.looks[0]} to {pretrain.looks[1]} are no bounds; the lower one first")
    return faults


def _signs(recipe: Recipe) -> list[str]:
    """What doesn't go with `data.signs`, where a picture has several labels at once."""
    if not recipe.data.signs:
        return []
    faults, train = [], recipe.train
    if recipe.data.name != "phantom":
        faults.append(f"data.signs: {recipe.data.name} doesn't say which signs a B-scan shows; data.name=phantom does")
    if train.loss not in ("cross_entropy", "focal", "asymmetric"):
        faults.append(
            f"train.loss: {train.loss} is for one label a picture; signs take asymmetric, focal or cross_entropy"
        )
    if train.mixup or train.cutmix:
        faults.append("data.signs: mixed pictures have no signs of their own, so neither mixup nor cutmix")
    faults += [f"data.signs: {way} takes one label a picture; {way}=null" for way in _WAYS if getattr(recipe, way)]
    return faults


def _cleaning(recipe: Recipe) -> list[str]:
    """What doesn't go with `model.denoise`, whose autoencoder stays as it is and cleans pictures of one size."""
    if not recipe.model.denoise:
        return []
    faults, train = [], recipe.train
    if train.start_size:
        faults.append("train.start_size: model.denoise cleans pictures of one size only; start_size=null")
    if train.swa_epochs or train.optimizer == "schedule_free":
        faults.append("model.denoise: swa_epochs and schedule_free would measure its batch norm anew; take ema")
    return faults


def _ways_to_learn(recipe: Recipe) -> list[str]:
    """Sections of which a recipe has one, and what each of them needs."""
    faults, train = [], recipe.train
    kinds = [name for name in ("teacher", "semi", "co_teaching", "adversarial") if getattr(recipe, name)]
    if len(kinds) > 1:
        faults.append(f"{' and '.join(kinds)} are different ways to train: keep one and set {kinds[-1]}=null")
    for name in ("semi", "co_teaching"):
        if getattr(recipe, name) and (train.mixup or train.cutmix):
            faults.append(f"{name} needs each image's own label: train.mixup=0 train.cutmix=0")
    semi, both = recipe.semi, recipe.co_teaching
    if semi and recipe.data.stream:
        faults.append("semi takes no streamed data: data.stream=false")
    if both and recipe.pretrain:
        faults.append("co_teaching starts both networks from model.base: pretrain=null")
    if both and train.loss == "elr":
        faults.append("co_teaching: two networks can't share what the loss elr remembers: train.loss=cross_entropy")
    if both and train.learning_rate == "find":
        faults.append("co_teaching: the range test is for one network: give train.learning_rate a number")
    if both and both.gradual >= train.epochs:
        faults.append(
            f"co_teaching.gradual: {both.gradual} of {train.epochs} epochs never reach the forget rate; fewer do"
        )
    return faults


def _generator(recipe: Recipe) -> list[str]:
    """What doesn't go with generated pictures, and with learning beside a generator."""
    faults, train = [], recipe.train
    if recipe.data.generated and recipe.data.stream:
        faults.append("data.generated: generated pictures don't go with streamed data; data.stream=false")
    if recipe.adversarial is None:
        return faults
    if recipe.data.stream:
        faults.append("adversarial: takes no streamed data; data.stream=false")
    if train.optimizer not in ("adamw", "adam"):
        faults.append(f"train.optimizer: a generator doesn't learn by {train.optimizer}; adamw or adam")
    if train.mixup or train.cutmix or train.loss == "elr":
        faults.append("adversarial: goes with neither mixup, cutmix nor the loss elr")
    if train.accumulate > 1:
        faults.append("train.accumulate: a generator learns once a step, so 1 with adversarial")
    if train.learning_rate == "find":
        faults.append("train.learning_rate: give a number with adversarial; the range test knows no generator")
    return faults


def _untrained(recipe: Recipe) -> list[str]:
    """What doesn't go with a machine on features or an ensemble, which train nothing."""
    faults = []
    for name in ("head", "ensemble"):
        if getattr(recipe, name) is None:
            continue
        others = [
            other
            for other in ("pretrain", "teacher", "semi", "co_teaching", "adversarial", "head", "ensemble")
            if other != name
        ]
        if given := [other for other in others if getattr(recipe, other) is not None]:
            faults.append(f"{name}: nothing is trained by gradients, so leave out {', '.join(given)}")
        if recipe.data.stream:
            faults.append(f"{name}: takes no streamed data; data.stream=false")
        if recipe.hub.checkpoints:
            faults.append(f"hub.checkpoints: {name} makes none; leave it out")
        if recipe.report_to:
            faults.append(f"report_to: {name} has no epochs to tell of; leave it out")
    members = recipe.ensemble.members if recipe.ensemble else ()
    if twice := sorted({member for member in members if members.count(member) > 1}):
        faults.append(f"ensemble.members: {', '.join(twice)} stands there twice")
    return faults
