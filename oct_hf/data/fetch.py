"""The files of a public set on this machine: found, or downloaded where their owner lets a program do so.

A download goes to NAME.partial, goes on where it stopped, and gets its name when size and checksum are right. Where an
owner wants a click or refuses programs, one line says which page, which file and where to put it.
"""

import hashlib
import os
import time
from pathlib import Path

from tqdm import tqdm

from oct_hf.data.catalog import File, PublicSet, files_of
from oct_hf.errors import DataError

TRIES = 5
TIMEOUT = (10, 60)  # seconds to connect, and without a byte
_BLOCK = 1 << 16  # bytes; what of a block has come when a connection breaks is lost


def data_folder() -> Path:
    """Where downloads are kept: `OCT_HF_DATA`, or `~/.cache/oct-hf/data`."""
    return Path(os.environ.get("OCT_HF_DATA", Path.home() / ".cache" / "oct-hf" / "data")).expanduser()


def locate(row: PublicSet, given: str | Path | None = None, size: int = 224) -> Path:
    """The folder or archive of a public set.

    Args:
        row: of the catalogue.
        given: a folder or archive that the user names; downloads are looked for and made where there is none.
        size: of OCTMNIST's images, in pixels.

    Raises:
        DataError: it isn't here and can't be fetched; how to get it is said.
    """
    files = files_of(row, size)
    if given is not None:
        given = Path(given).expanduser()
        inside = [given / file.name for file in files if file.name.endswith(".npz")] if given.is_dir() else []
        return next((path for path in inside if path.is_file()), given)
    folder = data_folder() / row.name
    for file in files:
        if not (folder / file.name).is_file():
            download(row, file, folder)
    if not files:
        raise DataError(_by_hand(row, [], folder))
    return folder / files[0].name if len(files) == 1 else folder


def download(row: PublicSet, file: File, folder: Path, tries: int = TRIES) -> Path:
    """Fetches one file; a stopped download goes on.

    Raises:
        DataError: the owner doesn't let programs fetch it, it can't be reached, or what came isn't the file.
    """
    if file.url is None:
        raise DataError(_by_hand(row, [file], folder))
    target = folder / file.name
    partial = target.with_name(target.name + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(tries):
            why = _fetch(file.url, file, partial)
            if why is None:
                break
            if not why.passing or attempt == tries - 1:
                raise DataError(f"{file.url}: {why.text}. {_by_hand(row, [file], folder)}")
            time.sleep(min(2**attempt, 10))
        _check(row, file, partial, folder)
        partial.replace(target)
    except OSError as error:
        what = "has no room" if error.errno in (28, 122) else f"can't be written ({error.strerror or error})"
        raise DataError(f"{folder} {what} for {file.name}; set OCT_HF_DATA to another folder") from None
    return target


class _Failure:
    """Why a try came to nothing, and whether another may do better."""

    def __init__(self, text: str, passing: bool):
        self.text, self.passing = text, passing


def _fetch(url: str, file: File, partial: Path) -> _Failure | None:
    import requests

    have, total = partial.stat().st_size if partial.exists() else 0, file.size
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:  # nothing is left to fetch
                return None
            if answer.status_code not in (200, 206):
                return _Failure(f"answers {answer.status_code}", answer.status_code in (429, 500, 502, 503, 504))
            if "text/html" in answer.headers.get("Content-Type", ""):
                return _Failure("answers with a page instead of the file", False)
            if answer.status_code == 200:
                have = 0  # the whole file comes again
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length and length.isdigit() else total
            bar = tqdm(total=total, initial=have, desc=file.name, unit="B", unit_scale=True, disable=None, leave=False)
            with open(partial, "ab" if have else "wb") as out, bar:
                for block in answer.iter_content(_BLOCK):
                    out.write(block)
                    bar.update(len(block))
        now = partial.stat().st_size
        if total is not None and now < total:
            return _Failure(f"stopped at {now:,} of {total:,} bytes", True)
    except requests.RequestException as error:
        now = partial.stat().st_size if partial.exists() else 0
        if now > have:
            return _Failure(f"stopped at {now:,} of {total:,} bytes" if total else f"stopped at {now:,} bytes", True)
        return _Failure(f"can't be reached ({type(error).__name__})", True)
    return None


def _check(row: PublicSet, file: File, partial: Path, folder: Path) -> None:
    size = partial.stat().st_size
    wrong = None
    if file.size is not None and size != file.size:
        wrong = f"has {size:,} bytes, its owner says {file.size:,}"
    elif file.md5 is not None:
        with open(partial, "rb") as content:
            found = hashlib.file_digest(content, "md5").hexdigest()
        wrong = f"has MD5 {found}, its owner says {file.md5}" if found != file.md5 else None
    if wrong is None and file.name.endswith((".zip", ".npz")):
        with open(partial, "rb") as content:
            begins = content.read(4)
        wrong = None if begins in (b"PK\x03\x04", b"PK\x05\x06") else "is no zip"
    if wrong:
        partial.unlink()
        raise DataError(f"{file.url}: what came {wrong}; it was thrown away. {_by_hand(row, [file], folder)}")


def _by_hand(row: PublicSet, files: list[File], folder: Path) -> str:
    names = " and ".join(file.name for file in files) or "its files"
    return (
        f"To get {row.title} by hand: open {row.homepage}, download {names}, put it into {folder} or give --data PATH"
    )
