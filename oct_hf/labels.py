"""Label sets of the public data sets, what each label means, and the maps between sets.

All of it is data: a new label or map adds one entry, and the code below only reads them.
"""

from collections.abc import Collection, Sequence

from oct_hf.errors import DataError

DESCRIPTIONS = {
    "AMD": "age-related macular degeneration",
    "CNV": "choroidal neovascularisation (neovascular AMD)",
    "DME": "diabetic macular oedema",
    "DRUSEN": "drusen (early or intermediate AMD)",
    "NORMAL": "no sign of disease",
    "SRF": "subretinal fluid",
    "NoSRF": "no subretinal fluid",
    "ERM": "epiretinal membrane",
    "NO": "normal",
    "RAO": "retinal artery occlusion",
    "RVO": "retinal vein occlusion",
    "VID": "vitreomacular interface disease",
    "CSR": "central serous retinopathy",
    "DR": "diabetic retinopathy",
    "MH": "macular hole",
    "ABNORMAL": "signs of a disease",
    "MNV": "tissue of a macular neovascularisation",
    "IRF": "intraretinal fluid in cystoid spaces",
    "exudates": "hard exudates",
}

LABEL_SETS = {
    "oct2017": ("CNV", "DME", "DRUSEN", "NORMAL"),
    "neh_2018": ("AMD", "DME", "NORMAL"),
    "neh_ut_2021": ("CNV", "DRUSEN", "NORMAL"),
    "srinivasan2014": ("AMD", "DME", "NORMAL"),
    "octdl": ("AMD", "DME", "ERM", "NO", "RAO", "RVO", "VID"),
    "octid": ("NORMAL", "AMD", "CSR", "DR", "MH"),
    "octmnist": ("CNV", "DME", "DRUSEN", "NORMAL"),
    "oct2017_binary": ("ABNORMAL", "NORMAL"),
}

# From mild to severe within one eye, as Sotoudeh-Paima et al. (2022) take an eye's worst case.
SEVERITY = ("NORMAL", "DRUSEN", "CNV")

# A finer label may be read as a coarser one, never the other way round; of several coarser ones the first that fits.
# DR isn't DME: a retina with diabetic retinopathy may be without oedema.
_DISEASES = ("CNV", "DRUSEN", "AMD", "DME", "ERM", "RAO", "RVO", "VID", "CSR", "DR", "MH")
COARSER = {name: ("ABNORMAL",) for name in _DISEASES} | {
    "CNV": ("AMD", "ABNORMAL"),
    "DRUSEN": ("AMD", "ABNORMAL"),
    "NO": ("NORMAL",),
    "NORMAL": ("NO",),  # two words for one thing
}

# Signs, of which one B-scan may show several at once, in the order of a model's outputs; each with the lesion of the
# phantoms that it is. Phantoms draw neither epiretinal membranes nor pigment-epithelial detachments apart from MNV.
SIGNS = {"drusen": "drusen", "MNV": "cnv", "SRF": "subretinal_fluid", "IRF": "cyst", "exudates": "exudate"}
UNDETERMINED = "undetermined"
# The disease that signs stand for: the first rule of which a sign is there. Vessels decide first, since fluid and
# exudates come with them; fluid under the retina alone has many causes, of which a B-scan doesn't tell.
DISEASE_BY_SIGNS = (("CNV", ("MNV",)), ("DME", ("IRF", "exudates")), (UNDETERMINED, ("SRF",)), ("DRUSEN", ("drusen",)))
# What a label of other sets says of a sign.
SIGN_OF_LABEL = {"SRF": ("SRF", True), "NoSRF": ("SRF", False)}

NORMAL_LABELS = ("NORMAL", "NO")  # NoSRF isn't one of them: no fluid isn't no disease

# How soon an eye with a finding should be seen, most urgent first, and who says so. A label that spans two levels has
# none. AMD is drusen and CNV alike. RVO: a central occlusion is seen within 7 days, a branch that spares vision isn't
# (Western Australia's referral criteria). ERM and CSR are watched or referred by what the patient sees, which no B-scan
# shows (College of Optometrists; NHS Scotland). For MH, VID, DR and SRF no source was read that fits all they span.
REFERRAL_LEVELS = ("urgent", "routine", "observation")
_KERMANY = "Kermany et al., Cell 172 (2018)"
REFERRAL = {
    "CNV": ("urgent", _KERMANY),
    "DME": ("urgent", _KERMANY),
    "DRUSEN": ("routine", _KERMANY),
    "NORMAL": ("observation", _KERMANY),
    "NO": ("observation", _KERMANY),
    "RAO": ("urgent", "an ocular emergency: StatPearls, Central Retinal Artery Occlusion (2024)"),
}

# What sending an eye to the wrong level costs: 2 for each level too late, 1 for each too early. Kermany et al. (2018)
# weigh errors by urgency too; these weights are this package's choice, not theirs.
REFERRAL_COST = {
    "urgent": {"urgent": 0, "routine": 2, "observation": 4},
    "routine": {"urgent": 1, "routine": 0, "observation": 2},
    "observation": {"urgent": 2, "routine": 1, "observation": 0},
}


def describe(label: str) -> str:
    """What `label` means in words; the label itself where no description is known."""
    return DESCRIPTIONS.get(label, label)


def disease_of(signs: Collection[str]) -> str:
    """The disease of a B-scan that shows these of `SIGNS`, by `DISEASE_BY_SIGNS`; `NORMAL` for none of them."""
    return next((disease for disease, any_of in DISEASE_BY_SIGNS if not {*any_of}.isdisjoint(signs)), "NORMAL")


def label_map(source: Sequence[str], target: Sequence[str]) -> dict[str, str]:
    """Reads labels of one set as labels of another (`CNV`, `DRUSEN` -> `AMD`).

    Args:
        source: the labels that images carry.
        target: the labels that a model knows.

    Returns:
        One target label for each source label.

    Raises:
        DataError: a source label has no counterpart in `target`.
    """
    mapped, lost = {}, []
    for label in source:
        found = next((name for name in (label, *COARSER.get(label, ())) if name in target), None)
        if found is None:
            lost.append(label)
        else:
            mapped[label] = found
    if lost:
        raise DataError(
            f"label(s) {', '.join(lost)} have no counterpart among {', '.join(target)}; "
            "leave these images out or use a model that knows the label"
        )
    return mapped
