"""ONNX Runtime for browsers: 27 MB that no wheel should carry, taken from npm's package when a page is written.

Each file must have the SHA-256 given here, from wherever it comes, since it runs in the browsers of those who trust the
page. A closed network gives the package's archive or folder.
"""

import hashlib
import lzma
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from oct_hf.errors import OCTError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
ARCHIVE = f"{PACKAGE}-{VERSION}.tgz"
# The build that knows WebGPU and, in one thread, the processor.
SCRIPT, GLUE, WASM = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
SHA256 = {
    SCRIPT: "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    GLUE: "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    WASM: "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
LARGEST = 64 << 20  # bytes of a file; the largest has 27 MB
_BY_HAND = f"fetch it where there is a network, with: npm pack {PACKAGE}@{VERSION}, and give --runtime {ARCHIVE}"


def copy_runtime(given: Path | None, target: Path) -> None:
    """Writes the files of SHA256 into a folder.

    Args:
        given: npm's archive, or a folder with what is in it, such as node_modules/onnxruntime-web; npm is asked where
            none is given.
        target: the folder.

    Raises:
        OCTError: there is no npm, it can't fetch the package, or a file is missing or another one.
    """
    with TemporaryDirectory() as scratch:
        if given is None:
            given = _packed(Path(scratch))
        target.mkdir(parents=True, exist_ok=True)
        with _contents(given) as folder:
            for name, expected in SHA256.items():
                found = next((path for path in (folder / "dist" / name, folder / name) if path.is_file()), None)
                if found is None:
                    raise OCTError(f"{given}: no {name} in it; it should be {PACKAGE} {VERSION}")
                content = found.read_bytes()
                if hashlib.sha256(content).hexdigest() != expected:
                    raise OCTError(f"{given}: {name} isn't that of {PACKAGE} {VERSION}; {_BY_HAND}")
                (target / name).write_bytes(content)


def _packed(scratch: Path) -> Path:
    """npm's archive of the package, fetched by npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise OCTError(f"the page needs {PACKAGE} {VERSION}, and there is no npm here: {_BY_HAND}")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--loglevel=error", "--no-update-notifier"]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
    if done.returncode or not (scratch / ARCHIVE).is_file():
        said = [line.removeprefix("npm error ").removeprefix("code ") for line in done.stderr.splitlines()]
        why = next((line for line in said if line.strip()), "no word why")
        raise OCTError(f"npm can't fetch {PACKAGE} {VERSION} ({why}): {_BY_HAND}")
    return scratch / ARCHIVE


@contextmanager
def _contents(given: Path) -> Iterator[Path]:
    """A folder of the package's files."""
    if given.is_dir():
        yield given
        return
    with TemporaryDirectory() as scratch:
        try:
            with tarfile.open(given) as archive:
                for name in SHA256:
                    entry = archive.getmember(f"package/dist/{name}")
                    if not entry.isfile() or entry.size > LARGEST:
                        raise OSError(f"{name} is no file of at most {LARGEST >> 20} MB")
                    archive.extract(entry, scratch, filter="data")
        except (OSError, KeyError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
            why = str(error).splitlines()[0]
            raise OCTError(f"{given}: no archive of {PACKAGE} {VERSION} ({why}); {_BY_HAND}") from None
        yield Path(scratch) / "package"
