"""The public OCT classification sets as one table: what each is called, where it is, and how its files are read.

A new set is a new row. Only what a source says stands here: where a layout is known from those who used the set and
not from its owner, `note` says so. Sizes and checksums are those that the owners published.
"""

from dataclasses import dataclass, field

from oct_hf.errors import DataError, did_you_mean
from oct_hf.labels import LABEL_SETS


@dataclass(frozen=True)
class File:
    """One file of a set.

    Attributes:
        name: as it should be called here.
        url: where a program can fetch it; None where the owner wants a click or a form.
        md5: 32 hexadecimal digits, where published.
        size: bytes, where published.
    """

    name: str
    url: str | None = None
    md5: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Table:
    """A CSV that comes with a set.

    Attributes:
        name: its file name.
        columns: which of its columns stand for file, patient, eye and label.
        patient: how the patient is told from its columns, where their numbers begin anew in each class.
        needed: without it the set can't be read.
    """

    name: str
    columns: dict[str, str]
    patient: str = "{patient}"
    needed: bool = True


@dataclass(frozen=True)
class PublicSet:
    """One row of the table.

    Attributes:
        name: what it is called on the command line.
        title, homepage, license, citation: for the card; `license` as the Hub names licences, None where none is
            stated.
        images: how many its owner counts, without what a version added or lost; None where versions differ.
        files: what to download.
        pattern: regular expression for a whole path inside the set, with the groups `label`, and `folder`, `side`,
            `patient`, `eye` and `volume` where the path tells them; files that don't match are no part of the set. A
            volume's name there is one in the whole set, or in its patient.
        says: that pattern in words.
        aliases: labels as the set writes them, where its label set has another word.
        table: the CSV with patients.
        patients: whether the set tells the patient at all.
        grouped_by: what its patient column really tells apart.
        note: what isn't known for sure.
    """

    name: str
    title: str
    homepage: str
    license: str | None
    citation: str
    pattern: str
    says: str
    files: tuple[File, ...] = ()
    images: int | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    table: Table | None = None
    patients: bool = True
    grouped_by: str = "patient"
    note: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Its classes, in the order of a model's outputs."""
        return LABEL_SETS[self.name]


_PICTURE = r"\.(?i:jpe?g|png|tiff?|bmp)"
_OCT2017 = {
    "homepage": "https://data.mendeley.com/datasets/rscbjbr9sj",
    "license": "cc-by-4.0",
    "citation": "Kermany et al., Cell 172(5), 2018, doi 10.1016/j.cell.2018.02.010",
    "pattern": r"(?:.*/)?(?P<side>train|test|val)/(?P<folder>CNV|DME|DRUSEN|NORMAL)/"
    rf"(?P<label>[A-Z]+)-(?P<patient>\d+)-\d+{_PICTURE}",
    "says": "train|test/LABEL/LABEL-PATIENT-NUMBER.jpeg",
    "files": (
        File(
            "OCT2017.zip",
            "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
            "810b2ce2-11c3-4424-996e-3bef36600907/file_downloaded",
        ),
    ),
}
_SIZES = {
    28: ("octmnist.npz", "c68d92d5b585d8d81f7112f81e2d0842", None),
    64: ("octmnist_64.npz", "e229e9440236b774d9f0dfef9d07bdaf", None),
    128: ("octmnist_128.npz", "0a97e76651ace45c5d943ee3f65b63ae", None),
    224: ("octmnist_224.npz", "abc493b6d529d5de7569faaef2773ba3", 3_959_197_818),
}

_ROWS = (
    PublicSet("oct2017", "OCT2017 (Kermany et al. 2018)", **_OCT2017),
    PublicSet(
        "oct2017_binary",
        "OCT2017 (Kermany et al. 2018), normal against abnormal",
        aliases={"CNV": "ABNORMAL", "DME": "ABNORMAL", "DRUSEN": "ABNORMAL"},
        **_OCT2017,
    ),
    PublicSet(
        "neh_ut_2021",
        "NEH-UT 2021 retinal OCT (Sotoudeh-Paima et al. 2022)",
        "https://data.mendeley.com/datasets/8kt969dhx6",
        None,
        "Sotoudeh-Paima et al., Computers in Biology and Medicine 144, 2022, doi 10.1016/j.compbiomed.2022.105368",
        rf"(?:.*/)?(?P<path>(?P<volume>(?P<label>CNV|DRUSEN|NORMAL)/[^/]+(?:/[^/]+)*)/[^/]+{_PICTURE})",
        "CLASS/PATIENT/EYE/image, and data_information.csv with the label of each image",
        (File("NEH_UT_2021RetinalOCTDataset.zip"), File("data_information.csv")),
        16_822,
        table=Table(
            "data_information.csv",
            {"file": "Directory", "patient": "Patient ID", "eye": "Eye", "label": "Label", "class": "Class"},
            patient="{class}-{patient}",
        ),
        note="Patients are numbered anew in each class. Users report eyes that were entered twice, also under two "
        "labels: those files are refused, or left out with skip_bad.",
    ),
    PublicSet(
        "neh_2018",
        "Noor Eye Hospital OCT (Rasti et al. 2018)",
        "https://hrabbani.site123.me/available-datasets/dataset-for-oct-classification-50-normal-48-amd-50-dme",
        None,
        "Rasti et al., IEEE Transactions on Medical Imaging 37(4), 2018",
        r"(?:.*/)?(?P<path>(?P<label>AMD|DME|(?i:NORMAL))/(?:(?P<volume>(?P<patient>[^/]+)(?:/[^/]+)*)/)?"
        rf"[^/]+{_PICTURE})",
        "CLASS/PATIENT/image, or CLASS/image with a groups.csv (file,eye,fold,guard)",
        table=Table(
            "groups.csv",
            {"file": "file", "patient": "eye", "fold": "fold", "guard": "guard"},
            needed=False,
        ),
        grouped_by="eye",
        note="The layout of the owner's own archives was not seen: class folders with a folder a patient, or a "
        "groups.csv, are read.",
    ),
    PublicSet(
        "srinivasan2014",
        "Duke SD-OCT (Srinivasan et al. 2014)",
        "https://people.duke.edu/~sf59/Srinivasan_BOE_2014_dataset.htm",
        None,
        "Srinivasan et al., Biomedical Optics Express 5(10), 2014, doi 10.1364/BOE.5.003568",
        r"(?:.*/)?(?P<volume>(?P<patient>(?P<label>AMD|DME|NORMAL)\d+))/TIFFs/8bitTIFFs/[^/]+\.(?i:tiff?)",
        "CLASSn/TIFFs/8bitTIFFs/n.tif, a folder for each of the 45 subjects, one volume each",
        (File("2014_BOE_Srinivasan.zip", "http://www.duke.edu/~sf59/Datasets/2014_BOE_Srinivasan.zip"),),
        note="For research and education; its owners ask not to pass it on.",
    ),
    PublicSet(
        "octdl",
        "OCTDL (Kulyabin et al. 2024)",
        "https://data.mendeley.com/datasets/sncdhf53xc",
        "cc-by-4.0",
        "Kulyabin et al., Scientific Data 11, 365, 2024, doi 10.1038/s41597-024-03182-7",
        rf"(?:.*/)?(?P<path>(?P<label>AMD|DME|ERM|NO|RAO|RVO|VID)/[^/]+{_PICTURE})",
        "CLASS/image, and OCTDL_labels.csv with the patient of each image",
        (
            File(
                "OCTDL.zip",
                "https://data.mendeley.com/public-files/datasets/sncdhf53xc/files/"
                "2721fe0f-7793-4ef5-b2d0-d31a2ebfdeef/file_downloaded",
            ),
            File(
                "OCTDL_labels.csv",
                "https://data.mendeley.com/public-files/datasets/sncdhf53xc/files/"
                "82880b41-939c-42b5-9f6b-3304b2c8dca1/file_downloaded",
            ),
        ),
        2_064,
        table=Table(
            "OCTDL_labels.csv",
            {"file": "file_name", "patient": "patient_id", "eye": "eye", "label": "disease"},
        ),
    ),
    PublicSet(
        "octid",
        "OCTID (Gholami et al. 2020)",
        "https://borealisdata.ca/dataverse/OCTID",
        None,
        "Gholami et al., Computers & Electrical Engineering 81, 2020, doi 10.1016/j.compeleceng.2019.106532",
        rf"(?:.*/)?(?P<label>(?i:NORMAL|AMD|ARMD|AMRD|CSR|DR|MH))/(?:[^/]+/)*[^/]+{_PICTURE}",
        "CLASS/image, or one CLASS.zip a class",
        tuple(File(f"{name}.zip") for name in ("NORMAL", "AMD", "CSR", "DR", "MH")),
        572,
        aliases={"ARMD": "AMD", "AMRD": "AMD"},
        patients=False,
        note="It tells no patients, so groups of near-duplicates stand in for them. How its archives are named inside "
        "was not seen.",
    ),
    PublicSet(
        "octmnist",
        "OCTMNIST (MedMNIST+, from OCT2017)",
        "https://medmnist.com",
        "cc-by-4.0",
        "Yang et al., Scientific Data 10, 41, 2023, doi 10.1038/s41597-022-01721-8; Kermany et al., Cell 172(5), 2018",
        r"(?P<side>train|val|test)/(?P<label>CNV|DME|DRUSEN|NORMAL)/\d+\.png",
        "an .npz of 28, 64, 128 or 224 pixels",
        tuple(
            File(name, f"https://zenodo.org/records/10519652/files/{name}?download=1", md5, size)
            for name, md5, size in _SIZES.values()
        ),
        109_309,
        patients=False,
        note="It tells no patients; its sides are the published ones, which were made without looking at patients.",
    ),
)

CATALOG = {row.name: row for row in _ROWS}


def public_set(name: str) -> PublicSet:
    """The row of a public set.

    Raises:
        DataError: no set has this name.
    """
    if name not in CATALOG:
        raise DataError(f'no public set "{name}"{did_you_mean(name, CATALOG)}; known: {", ".join(CATALOG)}')
    return CATALOG[name]


def files_of(row: PublicSet, size: int = 224) -> tuple[File, ...]:
    """The files that a preparation needs: all of a set's, and of OCTMNIST the one of a size in pixels.

    Raises:
        DataError: OCTMNIST has no such size.
    """
    if row.name != "octmnist":
        return row.files
    if size not in _SIZES:
        raise DataError(f"data.size: OCTMNIST has no images of {size} pixels; it has {', '.join(map(str, _SIZES))}")
    return tuple(file for file in row.files if file.name == _SIZES[size][0])
