"""Damaged and hostile files of every kind: an error of one line or a volume, in little memory and time."""

import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from oct_hf.data.volumes import decoding_apart, read_volumes
from oct_hf.errors import DataError
from tests.data.volumes.kinds import BESIDE, KINDS


def outcome(path: Path):
    """The volumes, or None where the file is refused as it should be."""
    before = time.process_time()
    try:
        volumes = read_volumes(path)
        assert all(volume.bscans.ndim == 3 and volume.bscans.dtype == np.uint8 for volume in volumes)
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        volumes = None
    assert time.process_time() - before < 5  # seconds; a sound one takes milliseconds
    return volumes


def same(one: list, two: list) -> bool:
    return len(one) == len(two) and all(np.array_equal(a.bscans, b.bscans) for a, b in zip(one, two, strict=True))


@pytest.mark.promise("A changed or damaged file is read or refused: no crash, no hang, no more than 2 GB.")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_an_error_or_still_whole(kind, tmp_path):
    path = KINDS[kind](tmp_path)
    sound, refused = read_volumes(path), 0
    for victim in {path, path.with_name(BESIDE.get(kind, path.name))}:
        whole = victim.read_bytes()
        for at in np.linspace(0, len(whole) - 1, 100).astype(int):
            victim.write_bytes(whole[:at])
            found = outcome(path)
            refused += found is None
            # Without its last lines the .txt names fewer volumes; what is read is right.
            assert found is None or same(found, sound[: len(found)]), f"cut at {at} of {len(whole)}: other B-scans"
        victim.write_bytes(whole)
    assert refused >= 90


def mutated(whole: bytes, random: np.random.Generator) -> bytes:
    """One to four bytes are others; half of the times in the header, where lengths and counts stand."""
    data = bytearray(whole)
    end = min(len(data), 1500) if random.integers(2) else len(data)
    for at in random.integers(0, end, random.integers(1, 5)):
        data[at] = random.choice((0, 1, 57, 127, 255, random.integers(256)))
    return bytes(data)


@pytest.mark.promise("A changed or damaged file is read or refused: no crash, no hang, no more than 2 GB.")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_changed_anywhere_is_an_error_or_a_volume(kind, tmp_path):
    path, random = KINDS[kind](tmp_path), np.random.default_rng(0)
    for victim in {path, path.with_name(BESIDE.get(kind, path.name))}:
        whole = victim.read_bytes()
        for _ in range(100):
            victim.write_bytes(mutated(whole, random))
            outcome(path)
        victim.write_bytes(whole)


@pytest.mark.parametrize("name", ["a.e2e", "a.fda", "a.fds", "a.xml", "a.img", "a.oct", "a.vol", "a.dcm"])
def test_an_empty_or_renamed_file_is_one_line(name, tmp_path):
    for content in (b"", b"\x89PNG\r\n" + bytes(5000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            read_volumes(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def bomb(folder: Path) -> None:
    """Every number of 32 bits in every header in turn is as large as it can be; prints the megabytes this took."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    for kind in ("vol", "e2e", "fda", "fda raw", "fds", "bioptigen"):  # DICOM's bombs are in test_dicom
        write = KINDS[kind]
        place = folder / kind
        place.mkdir()
        path = write(place)
        whole = path.read_bytes()
        starts = {0, max(0, whole.find(struct.pack("<2I", 64, 64)) - 12)}  # sizes stand far behind in an .e2e
        for at in sorted({at for start in starts for at in range(start, min(start + 120, len(whole) - 4), 4)}):
            for value in (b"\xff\xff\xff\x7f", b"\xff\xff\0\0"):
                path.write_bytes(whole[:at] + value + whole[at + 4 :])
                outcome(path)
    # Not ru_maxrss: a child begins with that of its parent.
    print(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    bomb(Path(sys.argv[1]))


@pytest.mark.promise("A changed or damaged file is read or refused: no crash, no hang, no more than 2 GB.")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured by Linux alone")
def test_whatever_a_header_claims_memory_stays_small(tmp_path):
    command = [sys.executable, "-m", "tests.data.volumes.test_damage", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) / 1024 < 600  # megabytes, 2,000 are allowed; Python with numpy and pydicom has 330


@pytest.mark.promise("A changed or damaged file is read or refused: no crash, no hang, no more than 2 GB.")
def test_a_decoder_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(decoding_apart, "MOST_SECONDS", 0.2)
    with decoding_apart.Decoder() as decoder:
        os.kill(decoder.child.pid, signal.SIGSTOP)
        with pytest.raises(ValueError, match="gdcm can't decode"):
            decoder.decode(b"no picture", {"transfer_syntax_uid": "1.2.840.10008.1.2.4.70"})
        assert decoder.child.wait(5) == -signal.SIGKILL
