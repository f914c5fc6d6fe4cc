"""The recipe: a frozen dataclass that a YAML file fills (recipe_file.py reads it), and all that a rerun needs to read.

Types are checked by pydantic, which albumentations brings.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

_STRICT = ConfigDict(extra="forbid")
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Looks = Annotated[int, Field(ge=1, le=31)]  # what speckle.py draws
Count = Annotated[int, Field(ge=1)]
Tracker = Literal["trackio", "tensorboard", "wandb"]
Fold = Annotated[str, BeforeValidator(str)]  # YAML reads a fold's name 4 as a number


def _names(given: Any) -> Any:
    """Names that stand in one text with commas between, as a command line has them."""
    return tuple(filter(None, (name.strip() for name in given.split(",")))) if isinstance(given, str) else given


@checked(frozen=True, config=_STRICT)
class DataRecipe:
    """What to train on: the builder's options, and what is known of the set (the catalogue knows it of public ones)."""

    name: str = "phantom"  # a public set, folder, parquet or phantom
    path: str | None = None  # folder or zip; --data gives it on the command line
    title: str | None = None  # the data set's public name, for the card
    homepage: str | None = None  # where the set is described, for the card
    license: str | None = None  # of the data, as the Hub names licences
    citation: str | None = None  # how its owners want to be cited, for the card
    without_patients: bool = False  # nothing tells the patient: groups of near-duplicates stand in
    grouped_by: str = "patient"  # what the patient column really tells apart, for the card: "patient", "eye", "volume"
    public: bool = False  # public patient ids are published as they are; all others as pseudonyms
    labels: tuple[str, ...] | None = None  # in the order of the outputs; by the alphabet where not given
    csv: str | None = None  # beside the images, a row a file: who the patient is
    columns: dict[str, str] = field(default_factory=dict)  # the CSV's own names for file, patient, eye, …
    pattern: str | None = None  # for file names: a regular expression with the groups patient, eye, volume
    label_by: Literal["image", "eye", "worst"] = "image"  # "eye": by its eye's worst case; "worst": only images of it
    size: int = 224  # of OCTMNIST's images, in pixels
    skip_bad: bool = False  # go on without files that can't be used
    min_quality: Annotated[float, Field(ge=0, le=1)] | None = None  # leave out B-scans whose quality is below
    require_oct: bool = False  # leave out pictures that don't look like an OCT B-scan
    stream: bool = False  # of Parquet: train from the shards, without a copy of the pictures on this disk
    corrections: str | None = None  # a corrections.csv, laid over the labels
    signs: bool = False  # of phantoms: learn the signs, several a picture, from which the disease then follows
    generated: str | None = None  # a folder that `oct-hf generate` wrote: pictures for the training side alone
    patients: Count = 100  # of phantoms, of each class
    scans: Count = 4  # of phantoms: B-scans a patient
    seed: int = 0  # of phantoms: another population
    height: Annotated[int, Field(ge=64)] = 496  # of phantoms, in pixels
    width: Annotated[int, Field(ge=64)] = 512  # of phantoms, in pixels


@checked(frozen=True, config=_STRICT)
class SplitRecipe:
    """Which patients are held out: a share of them, a fold of the CSV or the published test side, or as a file says.

    `by: image` splits at random, whoever the patient is. It shows what such a split would have claimed; nothing that
    was measured on it can be published.
    """

    by: Literal["patient", "fold", "published", "file", "image"] = "patient"  # what decides who is held out
    test: Share = 0.15  # share of the images
    validation: Share = 0.15  # share of the images too; it chooses the epoch, the temperature and the thresholds
    folds: Annotated[int, Field(ge=2)] | None = None  # with `by: patient`: that many folds, and test_fold from 0 on
    test_fold: Fold | None = None  # for `by: fold`; "test" is the published test side
    validation_fold: Fold | None = None  # the share `validation` of the rest, by patient, where not given
    path: str | None = None  # a split.csv, for `by: file`
    near_duplicates: bool = True  # search for them and keep them on one side
    mirrored: bool = False  # copies turned left to right too, which takes three times as long
    labelled_per_class: Count | None = None  # so many training labels of each class count; the rest have none
    seed: int = 0  # another draw of patients


@checked(frozen=True, config=_STRICT)
class ModelRecipe:
    """The network and what it starts from."""

    base: str = "tf_efficientnetv2_b0"  # a timm name, a Hub repository, a model folder, or pip:efficientnet_lite0
    weights: str = "hub"  # "hub" (the base's own), "random", or a local safetensors file
    image_size: Annotated[int, Field(ge=32)] = 224  # pixels, height and width
    denoise: str | None = None  # a run's pretraining/ of task denoise, which then cleans pictures inside the network
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2  # before the classifier
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0  # stochastic depth


# The training losses and their options with the papers' own values; losses.py has the formulas.
LOSSES: dict[str, dict[str, float]] = {
    "cross_entropy": {},
    "focal": {"gamma": 2.0},  # Lin et al. 2017
    "ldam": {"margin": 0.5, "scale": 1.0, "reweight_from": 0.8, "beta": 0.9999},  # Cao et al. 2019, deferred weights
    "asymmetric": {"gamma_pos": 1.0, "gamma_neg": 4.0, "clip": 0.05},  # Ben-Baruch et al. 2021
    "gce": {"q": 0.7},  # generalised cross-entropy, Zhang & Sabuncu 2018: noisy labels
    "symmetric": {"alpha": 0.1, "beta": 1.0, "log_zero": -4.0},  # Wang et al. 2019: noisy labels
    "elr": {"lambda": 3.0, "beta": 0.7},  # early-learning regularisation, Liu et al. 2020: noisy labels
}


@checked(frozen=True, config=_STRICT)
class TrainRecipe:
    """The fine-tuning. The first `freeze_epochs` train the head alone; learning rates fall by `layer_decay` a layer.

    All that is random in it comes from `seed` and the step, so that the same recipe gives the same weights to the last
    bit on the same machine, stopped in between or not.
    """

    epochs: Count = 12  # passes over the training side; the best by the validation side is kept
    batch_size: Count = 32  # images a step, of all processes together
    accumulate: Count = 1  # passes that a step is divided into where memory is short; processes of torchrun share them
    # schedule_free needs the extra of that name
    optimizer: Literal["adamw", "adam", "sgd", "lamb", "lion", "muon", "schedule_free"] = "adamw"
    learning_rate: Positive | Literal["find"] = 1e-3  # "find": by a range test before training, Smith 2017
    weight_decay: NotNegative = 0.05  # of the weights; biases and norms have none
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.08  # share of the steps; none with plateau
    schedule: Literal["cosine", "cosine_with_min_lr", "linear", "constant_with_warmup", "one_cycle", "plateau"] = (
        "cosine"  # "plateau": a tenth after three epochs without a better validation; schedule_free has none
    )
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.05  # where cosine_with_min_lr ends, as a share
    freeze_epochs: Annotated[int, Field(ge=0)] = 0  # first epochs, which train the head alone
    thaw_epochs: Annotated[int, Field(ge=0)] = 0  # after those, stage by stage from the head down, Howard & Ruder 2018
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the learning rate, a layer further from the head
    # gce, symmetric and elr are for wrong labels, focal and ldam for rare ones
    loss: Literal["cross_entropy", "focal", "ldam", "asymmetric", "gce", "symmetric", "elr"] = "cross_entropy"
    loss_options: dict[str, float] = field(default_factory=dict)  # instead of the papers' values; LOSSES has them
    # "auto": n / (classes * n_class); "effective": by the effective number of images, Cui et al. 2019
    class_weights: Literal["auto", "effective"] | dict[str, float] | None = None
    class_weights_beta: Annotated[float, Field(ge=0, lt=1)] = 0.999  # of "effective"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of each label that is spread over all
    mixup: NotNegative = 0.0  # alpha of Zhang et al. 2018; 0 is off
    cutmix: NotNegative = 0.0  # alpha of Yun et al. 2019; with both, each batch takes one by chance
    start_size: Annotated[int, Field(ge=32)] | None = None  # pixels of the first epochs, growing in up to four stages
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the averaged weights a step; 0 is off
    swa_epochs: Annotated[int, Field(ge=0)] = 0  # last epochs whose weights are averaged, Izmailov et al. 2018
    snapshots: Annotated[int, Field(ge=0)] = 0  # models kept, each at the end of a cosine of its own, Huang et al. 2017
    patience: Annotated[int, Field(ge=0)] = 0  # epochs without a better validation before stopping; 0 never stops
    max_grad_norm: Positive = 1.0  # longer gradients are cut to it
    bf16: Literal["auto"] | bool = "auto"  # "auto": where the GPU or CPU computes in it
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"  # processes that augment; none where a CPU trains
    seed: int = 0  # of all that is random in the training


@checked(frozen=True, config=_STRICT)
class PretrainRecipe:
    """What the network learns before the fine-tuning, without anybody's labels (`training/pretrain.py`).

    `task: phantoms` classifies drawn B-scans and marks their lesions, whose labels and masks are free; `task: denoise`
    takes speckle off real B-scans (`training/denoising.py`): those of the training side, and of `unlabelled`.
    """

    task: Literal["phantoms", "denoise"] = "phantoms"  # what is learned
    unlabelled: str | None = None  # denoise: a folder or archive of B-scans more, of nobody who is held out
    looks: tuple[Looks, Looks] = (1, 8)  # denoise: bounds of the looks of the speckle put on; one look is the roughest
    phantoms: Annotated[int, Field(ge=8)] = 9600  # drawn once, of as many patients, all four classes in turn
    image_size: Annotated[int, Field(ge=64)] | None = None  # pixels; the model's where not given
    epochs: Count = 4  # passes over them
    batch_size: Count = 32  # images a step
    learning_rate: Positive = 2e-3  # the highest of its cosine
    mask_weight: NotNegative = 0.5  # of the loss of the lesion masks beside that of the labels; 0 has no mask head
    wide: bool = False  # phantoms of layers, devices and fields of view beyond any that exist; takes more of them
    augment: str | tuple[str | dict[str, Any], ...] = "light"  # "drawn" goes with wide ones
    seed: int = 0  # of the phantoms and of all that is random in it


@checked(frozen=True, config=_STRICT)
class TeacherRecipe:
    """A trained network that the model learns from beside the labels (`training/distillation.py` has the loss).

    It is fine-tuned first, on the training side alone, with the settings of `train` but for those given here and
    without `start_size`; with `epochs: 0` it must be a model that knows the same labels already.
    """

    base: str  # as model.base: a timm name, pip:efficientnet_lite0, a Hub repository or a model folder
    weights: str = "hub"  # as model.weights
    image_size: Annotated[int, Field(ge=32)] | None = None  # pixels; the model's where not given
    epochs: Annotated[int, Field(ge=0)] = 12  # of its own fine-tuning; 0: it knows these labels already
    batch_size: Count = 32  # in its fine-tuning
    learning_rate: Positive = 1e-3  # in its fine-tuning
    mixup: NotNegative = 0.0  # alpha, in its fine-tuning alone
    bf16: Literal["auto"] | bool = "auto"  # of its fine-tuning; on a CPU depthwise convolutions learn faster without
    temperature: Positive = 2.0  # by which both networks' logits are divided
    logits: NotNegative = 0.5  # weights of the parts of the loss: the teacher's answers,
    features: NotNegative = 3.0  # what its classifier sees,
    maps: NotNegative = 0.0  # what its stages give, for a student that starts from nothing; 0 doesn't look at them
    labels: NotNegative = 0.5  # and the labels of labelled B-scans
    share: Share = 0.5  # of each batch without labels, where there are such pictures
    phantoms: Annotated[int, Field(ge=0)] = 0  # drawn, to be looked at beside the B-scans
    phantom_labels: bool = False  # take the labels that phantoms carry for labels, where the data has them
    unlabelled: str | None = None  # folder or archive of B-scans without labels, of nobody who is held out


@checked(frozen=True, config=_STRICT)
class SemiRecipe:
    """Learning from B-scans without labels beside the labelled ones: FixMatch (`training/fixmatch.py` has the loss).

    Labelled ones are augmented by the recipe's `augment`. `train.batch_size` counts both kinds.
    """

    unlabelled: str | None = None  # folder or archive; beside it, those that split.labelled_per_class leaves
    ratio: Positive = 7.0  # of a batch, B-scans without a label for each one with
    threshold: Share = 0.95  # how sure an answer must be to be learned from
    weight: NotNegative = 1.0  # of their loss; 0 takes the same steps on the labelled ones alone
    weak: str | tuple[str | dict[str, Any], ...] = "light"  # augmentation of what is answered,
    strong: str | tuple[str | dict[str, Any], ...] = "strong"  # and of what must get the same answer


@checked(frozen=True, config=_STRICT)
class CoTeachingRecipe:
    """Two networks, each choosing the labels that the other learns from (`training/co_teaching.py`)."""

    forget_rate: Annotated[float, Field(ge=0, lt=1)] = 0.2  # share of a batch left out: as many labels as seem wrong
    gradual: Count = 10  # epochs over which it rises from 0


@checked(frozen=True, config=_STRICT)
class AdversarialRecipe:
    """A generator of B-scans, which the classifier learns to tell from real ones (`training/adversarial.py`).

    Salimans et al., "Improved techniques for training GANs" (2016), section 5. The generator stays at home.
    """

    unlabelled: str | None = None  # folder or archive of B-scans without labels, of nobody who is held out
    share: Share = 0.5  # of each batch without labels, where there are such pictures
    weight: Positive = 0.5  # of the loss of real or generated beside that of the labels; its authors' own
    latent: Count = 128  # numbers that a picture is generated from
    width: Count = 8  # channels of the generator's finest feature map; each coarser one has twice as many
    learning_rate: Positive = 3e-4  # of the generator, as its authors have it; it follows the recipe's schedule


@checked(frozen=True, config=_STRICT)
class HeadRecipe:
    """A machine on the network's features, in place of its training: an ant colony chooses the features.

    Of `train`, batch_size and seed count. Choices are scored on patients of the training side left out in turn.
    """

    machine: Literal["svm", "knn"] = "svm"  # linear, as the last layer; or nearest neighbours, which holds its cases
    select: Literal["aco", "all"] = "aco"  # features
    c: Positive = 1.0  # of the SVM: what an error costs
    neighbours: Count = 5  # of knn, by cosine similarity; each votes with exp(similarity / temperature)
    temperature: Positive = 0.07  # of knn; a lower one listens to the nearest alone
    ants: Count = 20  # a round
    rounds: Count = 30  # of the colony
    evaporation: Share = 0.15  # of the trail, a round
    price: NotNegative = 0.01  # of all features, in balanced accuracy
    folds: Annotated[int, Field(ge=2)] = 3  # of patients, on which a choice is scored
    images: Count = 2000  # of the training side that the colony looks at, whole patients


@checked(frozen=True, config=_STRICT)
class EnsembleRecipe:
    """Trained models whose probabilities are averaged, in place of a training."""

    members: Annotated[tuple[str, ...], Field(min_length=2)]  # run folders, model folders or Hub repositories


@checked(frozen=True, config=_STRICT)
class EvaluationRecipe:
    """How the trained model is measured, and what it may decline."""

    calibrate: bool = True  # a temperature, fitted on the validation side, goes into the weights
    level: Share = 0.9  # with which prediction sets hold the true label
    sensitivity: Share = 0.95  # target of an operating point, on the validation side
    specificity: Share = 0.95  # target of another
    explain: Annotated[int, Field(ge=0)] = 8  # B-scans on which heat maps are measured; 0 measures none


@checked(frozen=True, config=_STRICT)
class CardRecipe:
    """What a person must say because no measurement can."""

    license: str | None = None  # of the weights, as the Hub names licences; derived where base and data allow it
    authors: str | None = None  # as the card should name them
    hub_datasets: tuple[str, ...] = ()  # ids of data sets on the Hub


@checked(frozen=True, config=_STRICT)
class HubRecipe:
    """Where `push_to_hub` publishes to, and checkpoints go.

    Not part of the published recipe: a rerun must not push to its author.
    """

    repo: str | None = None  # you/name; the token's account and the recipe's name where not given
    private: bool = False  # makes a new repository private
    gated: Literal["auto", "manual"] | None = None  # who downloads must ask; you grant it, or the Hub does
    checkpoints: str | None = None  # you/other-name, private: every checkpoint, for a machine that may disappear


@checked(frozen=True, config=_STRICT)
class Recipe:
    """A whole fine-tuning run, as one YAML file describes it."""

    name: str = "recipe"  # of the run; the file's name where not given
    description: str = ""  # one line, for `oct-hf info` and the card
    data: DataRecipe = field(default_factory=DataRecipe)
    split: SplitRecipe = field(default_factory=SplitRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    augment: str | tuple[str | dict[str, Any], ...] = "standard"  # a pipeline or a list of transforms
    pretrain: PretrainRecipe | None = None
    train: TrainRecipe = field(default_factory=TrainRecipe)
    teacher: TeacherRecipe | None = None
    semi: SemiRecipe | None = None
    co_teaching: CoTeachingRecipe | None = None
    adversarial: AdversarialRecipe | None = None
    head: HeadRecipe | None = None
    ensemble: EnsembleRecipe | None = None
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    card: CardRecipe = field(default_factory=CardRecipe)
    push_to_hub: bool = False  # the best weights so far to the branch in-training, at the end everything to main
    hub: HubRecipe = field(default_factory=HubRecipe)
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(_names)] = ()  # trackers told of each epoch, at home
    search: dict[str, Any] = field(default_factory=dict)  # ranges for `oct-hf tune`, by key; see training/search.py

    def to_dict(self) -> dict:
        """Plain types only, every field written out."""
        return TypeAdapter(Recipe).dump_python(self, mode="json")

    def to_yaml(self) -> str:
        """The YAML that reads back as this recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
