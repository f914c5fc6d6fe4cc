"""Every kind of file that is read, small, by name: what a test does to one of them it does to all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.uid import JPEGLSLossless, RLELossless

from tests.data.volumes.write import bscans, write_dicom, write_vol
from tests.data.volumes.write_binary import (
    write_bioptigen,
    write_e2e,
    write_img,
    write_optovue,
    write_topcon,
    write_xml,
)
from tests.data.volumes.write_dicom_kinds import write_jpeg_2000, write_per_frame, write_zeiss


def small(count: int = 3) -> np.ndarray:
    """uint8 `(count, 64, 64)`."""
    return bscans(count, 64, 64)


def cube(count: int = 3, width: int = 64) -> np.ndarray:
    """A Cirrus cube's B-scans of 1,024 rows."""
    return np.stack([np.resize(image, (1024, width)) for image in bscans(count, 96, width)])


def _noisy() -> np.ndarray:
    """So that a .jp2 is large enough for Zeiss to scramble it."""
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)


KINDS: dict[str, Callable[[Path], Path]] = {
    "dicom": lambda d: write_dicom(d / "a.dcm", small(), en_face=np.full((40, 40), 70, np.uint8)),
    "dicom 16 bits": lambda d: write_dicom(d / "a.dcm", small().astype(np.uint16) * 257),
    "dicom per frame": lambda d: write_per_frame(d / "a.dcm", small()),
    "dicom rle": lambda d: write_dicom(d / "a.dcm", small(), compress=RLELossless),
    "dicom jpeg-ls": lambda d: write_dicom(d / "a.dcm", small(), compress=JPEGLSLossless),
    "dicom jpeg 2000": lambda d: write_jpeg_2000(d / "a.dcm", small()),
    "dicom zeiss": lambda d: write_zeiss(d / "a.dcm", _noisy()),
    "vol": lambda d: write_vol(d / "a.vol", small()),
    "e2e": lambda d: write_e2e(d / "a.e2e", {"R": small(), "L": small(2)}),
    "xml": lambda d: write_xml(d / "a.xml", small()),
    "fda": lambda d: write_topcon(d / "a.fda", small()),
    "fda raw": lambda d: write_topcon(d / "a.fda", small(), "@IMG_MOT_COMP_03"),
    "fds": lambda d: write_topcon(d / "a.fds", small(), "@IMG_SCAN_03"),
    "img": lambda d: write_img(d / "P1_Cube 64x3_OD_cube_z.img", cube()),
    "optovue": lambda d: write_optovue(d / "a.OCT", [small(), small(2)]),
    "bioptigen": lambda d: write_bioptigen(d / "a_OS.OCT", small()),
}
# Where the bytes that matter stand in another file beside.
BESIDE = {"xml": "b1.png", "optovue": "a.txt"}
