"""A clinic's files in which a patient is named wherever a file can name one, and a search for it in all that came out.

Two kinds of secrets. What stands inside the files (a name, an id, a birth date, an institution: `INSIDE`) never comes
out again, neither to others nor to the user. What stands in the user's own file and folder names (`OUTSIDE`) may be
told to the user, whose tables name the user's files, and is never published.
"""

import base64
import binascii
import gzip
import io
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, PngImagePlugin
from pyarrow import parquet

from oct_hf.data.phantom import draw
from tests.data.volumes.write import write_dicom, write_vol
from tests.data.volumes.write_binary import write_e2e, write_img, write_topcon

NAME, ID, BORN, OTHER = "Mustermann^Erika", "MRN-4711-88", "19550317", "Planted4711"
UID = "1.2.4711.4711"
INSIDE = ("Mustermann", "Erika", "MRN-4711", BORN, "1955-03-17", OTHER, UID)
OUTSIDE = ("Zitterbacke", "PID0815", "19330102", "SecretClinic")
_TEXTS = (
    "AccessionNumber StudyID StudyDescription SeriesDescription InstitutionName InstitutionAddress "
    "ReferringPhysicianName PerformingPhysicianName OperatorsName PatientAddress PatientComments OtherPatientNames "
    "PatientMotherBirthName StationName DeviceSerialNumber ProtocolName ImageComments RequestingPhysician"
)


def _dicom(path: Path, scans: np.ndarray, patient: int) -> None:
    """Every text field that may name someone, private ones too, and the UIDs."""
    write_dicom(path, scans, laterality="L" if patient % 2 else "R")
    file = pydicom.dcmread(path)
    file.PatientName, file.PatientID, file.PatientBirthDate = NAME, f"{ID}-{patient}", BORN
    for name in _TEXTS.split():
        setattr(file, name, OTHER)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(file, name, UID)
    file.add_new((0x0019, 0x0010), "LO", OTHER)
    file.add_new((0x0019, 0x1001), "LO", NAME)
    file.save_as(path)


def _exif() -> Image.Exif:
    found = Image.Exif()
    for field in (0x010E, 0x013B, 0x8298, 0x9286):  # description, artist, copyright, the user's comment
        found[field] = f"{NAME} {ID} {BORN}"
    return found


def _picture(path: Path, pixels: np.ndarray) -> None:
    picture, options = Image.fromarray(pixels), {}
    if path.suffix == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Patient", NAME)
        options["pnginfo"].add_text("Comment", ID, zip=True)
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", BORN, zip=True)
    if path.suffix == ".jpg":
        options |= {"quality": 95, "comment": NAME}
    picture.save(path, exif=_exif(), **options)


def _write(kind: str, place: Path, scans: np.ndarray, patient: int) -> None:
    if kind == "dcm":
        _dicom(place / "PID0815.dcm", scans, patient)
    elif kind == "vol":
        write_vol(place / "PID0815.vol", scans)
    elif kind == "e2e":
        write_e2e(place / "PID0815.e2e", {"R": scans})
    elif kind == "fda":
        write_topcon(place / "PID0815.fda", scans)
    elif kind == "img":
        tall = [np.asarray(Image.fromarray(scan).resize((64, 1024))) for scan in scans]
        write_img(place / "PPID0815_Cube 64x2_OD.img", np.stack(tall))
    else:
        for number, pixels in enumerate(scans):
            _picture(place / f"PID0815_{number}.{('png', 'tif')[number] if kind == 'png' else kind}", pixels)


def clinic(folder: Path) -> Path:
    """CLASS/PATIENT/file: a kind of file a patient, and two B-scans of each, in two classes."""
    home = folder / "SecretClinic"
    for label in ("DME", "NORMAL"):
        for number, kind in enumerate(("jpg", "dcm", "png", "vol", "e2e", "fda", "img")):
            patient = number + 50 * (label == "NORMAL")
            place = home / label / f"Zitterbacke_19330102_{patient}"
            place.mkdir(parents=True)
            _write(kind, place, np.stack([draw(label, 7, patient, scan, 96, 96).image for scan in range(2)]), patient)
    return home


def spoilt(folder: Path) -> Path:
    """Files that can't be read, and say whose they are where an error message might quote them."""
    folder.mkdir()
    whole = folder / "PID0815.dcm"
    _dicom(whole, np.zeros((1, 32, 32), np.uint8), 3)
    for number, share in enumerate((0.3, 0.6, 0.9)):
        (folder / f"cut{number}.dcm").write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    whole.unlink()
    for name in ("words.png", "words.dcm", "words.e2e", "words.vol"):
        (folder / name).write_text(f"{NAME} {ID} {BORN}\n" * 50)
    _picture(folder / "a.png", np.zeros((64, 64), np.uint8))
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-60])
    (folder / "a.png").unlink()
    return folder


def contents(path: Path, top: Path, but: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """Every file in or below a path, and what is inside it, with where it stands below `top`; git's folders as their
    objects. `but` are files and folders below `top` to leave out."""
    for one in [path, *sorted(path.rglob("*"))]:
        where = one.relative_to(top).as_posix()
        if where in but or any(where.startswith(f"{name}/") for name in but):
            continue
        if (one / "objects").is_dir() and (one / "HEAD").is_file():
            yield f"{where}: git", _objects(one)
        yield f"{where}: its name", one.name.encode()
        if one.is_file():
            yield from inside(where, one.read_bytes())


def _objects(repository: Path) -> bytes:
    """All that was ever committed: files, trees with their names, commits, tags."""
    command = ["git", "-C", str(repository), "cat-file", "--batch-all-objects", "--batch", "--buffer"]
    found = subprocess.run(command, capture_output=True, check=True).stdout
    refs = subprocess.run(["git", "-C", str(repository), "show-ref"], capture_output=True).stdout
    return found + refs


def inside(where: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file's bytes, and those of what it holds: members of archives, cells of tables, texts of pictures, pages'."""
    yield where, data
    if data[:2] == b"PK" and zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield f"{where}: comment", archive.comment
            for name in archive.namelist():
                yield from inside(f"{where}/{name}", archive.read(name))
    elif data[:2] == b"\x1f\x8b":
        yield from inside(f"{where}: unpacked", gzip.decompress(data))
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                if member.isfile():
                    yield from inside(f"{where}/{member.name}", archive.extractfile(member).read())
    elif data[:4] == data[-4:] == b"PAR1":
        table = parquet.read_table(io.BytesIO(data))
        yield (
            f"{where}: schema",
            str(table.schema.to_string(show_schema_metadata=True, truncate_metadata=False)).encode(),
        )
        for name in table.column_names:
            for row, value in enumerate(table[name].to_pylist()):
                yield from _cell(f"{where}: {name}[{row}]", value)
    elif data[:4] in (b"\x89PNG", b"II*\0", b"MM\0*") or data[:2] == b"\xff\xd8":
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            yield f"{where}: texts", repr([picture.info, dict(picture.getexif())]).encode()
    else:
        for number, found in enumerate(re.finditer(rb"base64,([A-Za-z0-9+/=]{24,})", data)):
            try:
                yield from inside(f"{where}: picture {number}", base64.b64decode(found[1], validate=True))
            except binascii.Error:
                continue


def _cell(where: str, value) -> Iterator[tuple[str, bytes]]:
    if isinstance(value, bytes):
        yield from inside(where, value)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _cell(f"{where}.{name}", one)
    elif isinstance(value, list) and value and isinstance(value[0], (bytes, dict, str)):
        for number, one in enumerate(value):
            yield from _cell(f"{where}.{number}", one)
    elif isinstance(value, str):
        yield where, value.encode()


def found(secrets: tuple[str, ...], path: Path, top: Path, but: tuple[str, ...] = ()) -> list[str]:
    """Where one of them stands in or below a path, in any case, as UTF-8 or UTF-16; empty where none does."""
    wanted = [(one, form) for one in secrets for form in (one.lower().encode(), one.lower().encode("utf-16-le"))]
    hits = []
    for where, data in contents(path, top, but):
        low = data.lower()
        hits += [f"{one} in {where}" for one, form in wanted if form in low]
    return hits
