"""Which licences let anyone pass a data set on, as the Hub names them.

A list of what is known to permit, not of what forbids: an unknown licence, "other" and each one without derivatives
(the shards are one) is refused until the owner says otherwise.
"""

from oct_hf.errors import DataError, did_you_mean

_CC = "https://creativecommons.org/"
# The Hub's name: what people call it, and where it stands.
REDISTRIBUTABLE = {
    "apache-2.0": ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    "bsd-2-clause": ("BSD 2-Clause", "https://opensource.org/license/bsd-2-clause"),
    "bsd-3-clause": ("BSD 3-Clause", "https://opensource.org/license/bsd-3-clause"),
    "c-uda": ("C-UDA 1.0", "https://cdla.dev/computational-use-of-data-agreement-v1-0/"),
    "cc0-1.0": ("CC0 1.0", f"{_CC}publicdomain/zero/1.0/"),
    **{
        f"cc-{kind}-{version}": (f"CC {kind.upper()} {version}", f"{_CC}licenses/{kind}/{version}/")
        for kind in ("by", "by-sa", "by-nc", "by-nc-sa")
        for version in ("2.0", "2.5", "3.0", "4.0")
    },
    "cdla-permissive-1.0": ("CDLA Permissive 1.0", "https://cdla.dev/permissive-1-0/"),
    "cdla-permissive-2.0": ("CDLA Permissive 2.0", "https://cdla.dev/permissive-2-0/"),
    "cdla-sharing-1.0": ("CDLA Sharing 1.0", "https://cdla.dev/sharing-1-0/"),
    "mit": ("MIT", "https://opensource.org/license/mit"),
    "odbl": ("ODbL 1.0", "https://opendatacommons.org/licenses/odbl/1-0/"),
    "odc-by": ("ODC-By 1.0", "https://opendatacommons.org/licenses/by/1-0/"),
    "pddl": ("PDDL 1.0", "https://opendatacommons.org/licenses/pddl/1-0/"),
    "unlicense": ("Unlicense", "https://unlicense.org/"),
}


def require_redistributable(licence: str | None) -> None:
    """Refuses a data set that may not be passed on, or of which nobody knows whether it may.

    Args:
        licence: `data.license` of a recipe.

    Raises:
        DataError: says what to do.
    """
    if licence in REDISTRIBUTABLE:
        return
    own = "if the data is yours, say under which licence you publish it, such as data.license=cc-by-4.0"
    if licence is None:
        raise DataError(f"the data set's licence isn't known, so it can't be published; {own}")
    why = "is not known to allow redistribution"
    if "-nd" in licence:
        why = "allows no derivatives, which the published form is"
    near = did_you_mean(licence, REDISTRIBUTABLE) if "-nd" not in licence else ""
    raise DataError(f'licence "{licence}" {why}{near}, so the data set can\'t be published; {own}')
