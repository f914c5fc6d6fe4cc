"""Which kinds of files may be published; apart, so that publishing a folder needn't load what writes one."""

from pathlib import Path

from oct_hf.errors import RunError

CODE_BRANCH = "remote-code"
# Of the custom class, on that branch alone.
CODE = ("architectures.py", "combined.py", "configuration_oct.py", "denoised.py", "modeling_oct.py", "stated.py")
# What may be published on `main`: nothing that executes when it is read, no pickle.
ALLOWED = (".safetensors", ".json", ".yaml", ".md", ".png", ".csv", ".parquet", ".onnx", ".xml", ".bin")


def check_allowed(folder: Path) -> None:
    """Raises RunError where the folder holds a kind of file that is not on the list."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or (path.is_file() and path.suffix not in ALLOWED):
            name = path.relative_to(folder).as_posix()
            raise RunError(f"{name} may not be published; only {', '.join(ALLOWED)} files may")
