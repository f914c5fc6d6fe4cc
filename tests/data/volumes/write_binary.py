"""Device files other than DICOM and .vol, byte by byte from their published layouts, with SECRETS in their headers."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.volumes.write import reflectivity


def stored(levels: np.ndarray) -> np.ndarray:
    """The numbers of an .e2e that show as these gray levels: 6 bits of exponent, then 10 of mantissa."""
    mantissa, exponent = np.frexp(reflectivity(levels))
    return (((exponent + 62) << 10) + np.rint((2 * mantissa - 1) * 1024).astype(int)).astype("<u2")


def write_e2e(
    path: Path,
    eyes: dict[str, np.ndarray],
    preamble: dict[str, str] | None = None,
    shuffled: bool = False,
    left_out: int | None = None,
) -> Path:
    """One series for each eye ("R", "L"); containers one after the other behind one directory.

    Args:
        preamble: what container 3 says instead of container 11.
        shuffled: the B-scans' own numbers run backwards.
        left_out: this B-scan of every series is missing.
    """
    patient = struct.pack("<31s51s15sI1s25s4x", b"Erika", b"Mustermann", b"", 19550317, b"F", b"MRN-4711")
    parts = [((7, -1, -1), -1, 0xFFFF, 9, patient)]
    for series, (eye, bscans) in enumerate(eyes.items(), 1):
        own = (7, 1, series)
        count, height, width = bscans.shape
        slo = np.full((60, 60), 90, np.uint8)
        parts.append((own, -1, 0xFFFF, 11, bytes(14) + eye.encode() + bytes(12)))
        parts.append(
            (own, -1, 0xFFFF, 9007, struct.pack("<2I64s64s", 2, 64, "IR".encode("utf-16"), "IR".encode("utf-16")))
        )
        parts.append((own, -1, 0, 0x40000000, struct.pack("<5I", slo.size, 33620481, slo.size, 60, 60) + slo.tobytes()))
        for number, image in enumerate(bscans):
            if number == left_out:
                continue
            said = (preamble or {}).get(eye, eye).encode()
            meta = bytearray(428)
            y = -5.0 + number
            struct.pack_into("<3I4f", meta, 0, 0, height, width, -10.0, y, 10.0, y)
            struct.pack_into("<f", meta, 36, 0.00387)
            struct.pack_into("<4I", meta, 60, width, count, count - 1 - number if shuffled else number, 3)
            pixels = stored(image).tobytes()
            parts.append((own, 2 * number, 0xFFFF, 3, bytes(4) + said + bytes(91)))
            parts.append((own, 2 * number, 0xFFFF, 10004, bytes(meta)))
            head = struct.pack("<5I", len(pixels), 35652097, image.size, height, width)
            parts.append((own, 2 * number, 1, 0x40000000, head + pixels))
    version = struct.pack("<12sI20s", b"CMDb", 100, b"")
    directory = 36 + 52
    at = directory + 52 + 44 * len(parts)
    entries, containers = [], []
    for own, piece, ind, kind, content in parts:
        entries.append(struct.pack("<4I4i2H2I", 0, at, len(content), 0, *own, piece, ind, 0, kind, 0))
        head = struct.pack("<12s5I4i2H2I", b"MDbData", 0, 0, at, len(content), 0, *own, piece, ind, 0, kind, 0)
        containers.append(head + content)
        at += 60 + len(content)
    main = struct.pack("<12sI20s4I", b"MDbMDir", 100, b"", 512, directory, directory, 0)
    here = struct.pack("<12sI20s4I", b"MDbDir", 100, b"", len(parts), directory, 0, 0)
    path.write_bytes(version + main + here + b"".join(entries) + b"".join(containers))
    return path


def write_topcon(path: Path, bscans: np.ndarray, block: str = "@IMG_JPEG", eye: int | None = 1, mode: int = 2) -> Path:
    """A .fda (@IMG_JPEG or @IMG_MOT_COMP_03) or .fds (@IMG_SCAN_03)."""
    count, height, width = bscans.shape
    if block == "@IMG_JPEG":
        pixels = struct.pack("<B6I", mode, 0, 0, width, height, count, 0)
        for image in bscans:
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, "JPEG2000", irreversible=False)
            pixels += struct.pack("<I", len(encoded.getvalue())) + encoded.getvalue()
    else:
        raw = (bscans.astype("<u2") * 257).tobytes()
        pixels = struct.pack("<B4IBI", mode, width, height, 16, count, 0, len(raw)) + raw
    fundus = np.full((80, 90, 3), (10, 20, 200), np.uint8)  # stored blue first: red is 200
    encoded = io.BytesIO()
    Image.fromarray(fundus).save(encoded, "JPEG2000", irreversible=False)
    blocks = [
        (
            "@PATIENT_INFO_02",
            struct.pack("<32s32s32s8sB3H300x", b"MRN-4711", b"Erika", b"Mustermann", b"", 2, 1955, 3, 17),
        ),
        (block, pixels),
        ("@PARAM_SCAN_04", struct.pack("<3I5d2B", 0, 0, 0, 6.0, 4.0, 2.6, 0, 0, 0, 0)),
        ("@REGIST_INFO", struct.pack("<B2I4I32s4I", 0, 0, 0, 10, 20, 70, 60, b"", 0, 0, 0, 0)),
    ]
    if block == "@IMG_SCAN_03":
        blocks.append(("@IMG_OBS", struct.pack("<4IBI", 90, 80, 24, 1, 0, fundus.size) + fundus.tobytes()))
    else:
        jp2 = encoded.getvalue()
        blocks.append(("@IMG_FUNDUS", struct.pack("<4I4sI", 90, 80, 24, 1, b"", len(jp2)) + jp2))
    if eye is not None:
        blocks.append(("@CAPTURE_INFO_02", struct.pack("<2BI100s6H", eye, mode, 0, b"", 2020, 1, 2, 3, 4, 5)))
    parts = [struct.pack("<4s3s2I", b"FOCT", b"FDA", 2, 1)]
    for name, content in blocks:
        parts += [bytes([len(name)]), name.encode(), struct.pack("<I", len(content)), content]
    path.write_bytes(b"".join(parts) + b"\0")
    return path


_IMAGE = """<Image><ImageType><Type>{kind}</Type></ImageType><OphthalmicAcquisitionContext>
<Width>{width}</Width><Height>{height}</Height><ScaleX>{sx}</ScaleX><ScaleY>{sy}</ScaleY><Start><Coord><X>1.0</X>
<Y>{y}</Y></Coord></Start><End><Coord><X>2.0</X><Y>{y}</Y></Coord></End></OphthalmicAcquisitionContext>
<ImageData><ExamURL>{url}</ExamURL></ImageData></Image>"""


def write_xml(path: Path, bscans: np.ndarray, eye: str = "R", before: str = "", folder: str = "D:\\export\\") -> Path:
    """A Heidelberg XML export with its pictures beside it."""
    images = [_IMAGE.format(kind="LOCALIZER", width=64, height=64, sx=0.05, sy=0.05, y=0, url=folder + "slo.png")]
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(path.with_name("slo.png"))
    for number, image in enumerate(bscans):
        Image.fromarray(image).save(path.with_name(f"b{number}.png"))
        size = {"height": image.shape[0], "width": image.shape[1], "sx": 0.0115, "sy": 0.0039}
        images.append(_IMAGE.format(kind="OCT", y=1 + 0.12 * number, url=f"{folder}b{number}.png", **size))
    side = f"<Laterality>{eye}</Laterality>" if eye else ""
    path.write_text(
        f'<?xml version="1.0"?>{before}<HEDX><BODY><Patient><ID>1</ID><LastName>Mustermann</LastName>'
        "<FirstNames>Erika</FirstNames><Birthdate><Date><Year>1955</Year></Date></Birthdate><PatientID>MRN-4711</PatientID>"
        f"<Study><Series><ID>3</ID>{side}{''.join(images)}</Series></Study></Patient></BODY></HEDX>"
    )
    return path


def write_img(path: Path, bscans: np.ndarray) -> Path:
    """A Cirrus cube: B-scans of 1,024 rows, each turned by 180 degrees."""
    np.ascontiguousarray(bscans[:, ::-1, ::-1]).tofile(path)
    return path


def write_optovue(path: Path, volumes: list[np.ndarray]) -> Path:
    """float32 A-scans from the deepest point up, and the .txt that says their sizes."""
    lines = ["Patient Name=Mustermann, Erika", f"Window Height = {volumes[0].shape[1]}", "Eye Scanned = OS"]
    for bscans in volumes:
        lines += [f"Scan Length = {bscans.shape[2]}", f"Scan Usage = {bscans.shape[0]}"]
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    path.write_bytes(b"".join(np.rot90(image, -1).astype("<f4").tobytes() for bscans in volumes for image in bscans))
    return path


def write_bioptigen(path: Path, bscans: np.ndarray) -> Path:
    """A Bioptigen .OCT: tagged fields, then frames of A-scans."""

    def field(name: str, value: bytes) -> bytes:
        return struct.pack("<I", len(name)) + name.encode() + struct.pack("<I", len(value)) + value

    count, height, width = bscans.shape
    numbers = {"FRAMECOUNT": count, "LINECOUNT": width, "LINELENGTH": height, "SAMPLEFORMAT": 2}
    parts = [struct.pack("<IH", 1, 2), field("FRAMEHEADER", b"")]
    parts += [field(name, struct.pack("<I", value)) for name, value in numbers.items()]
    parts.append(field("DESCRIPTION", b"Mustermann"))
    for axis in "XY":
        parts += [field(f"{axis}{end}", struct.pack("<d", 1)) for end in ("MIN", "MAX")] + [
            field(f"{axis}CAPTION", b"mm")
        ]
    parts.append(field("SCANTYPE", struct.pack("<I", 1)))
    for name in ("SCANDEPTH", "SCANLENGTH", "AZSCANLENGTH", "ELSCANLENGTH", "OBJECTDISTANCE", "SCANANGLE"):
        parts.append(field(name, struct.pack("<d", 1)))
    parts += [
        field(name, struct.pack("<I", value)) for name, value in {"SCANS": count, "FRAMES": 1, "DOPPLERFLAG": 0}.items()
    ]
    parts += [field("CONFIG", b"x"), bytes(4)]
    for image in bscans:
        pixels = (image.T.astype("<u2") * 257).tobytes()
        parts += [
            field("FRAMEDATA", b""),
            field("FRAMEDATETIME", struct.pack("<8H", 2020, 1, 3, 2, 3, 4, 5, 6)),
            field("FRAMETIMESTAMP", struct.pack("<d", 1)),
            field("FRAMELINES", struct.pack("<I", width)),
            field("FRAMESAMPLES", pixels),
            bytes(4),
        ]
    path.write_bytes(b"".join(parts))
    return path
