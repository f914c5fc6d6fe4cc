"""git LFS's pointers: what git holds in a large file's place, and which files are large ones."""

import re

LARGE = (".safetensors", ".onnx", ".bin", ".parquet", ".png", ".jpg", ".jpeg")
REGULAR_BYTES = 10 * 2**20  # larger files go to the store of large files whatever their kind
POINTER_BYTES = 400  # a pointer is smaller
ATTRIBUTES = "".join(f"*{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in LARGE).encode()
_POINTER = re.compile(rb"version https://git-lfs[^\n]*\noid sha256:([0-9a-f]{64})\nsize (\d+)")


def is_large(path: str, size: int) -> bool:
    """Whether a file of so many bytes goes to the store of large files."""
    return size > REGULAR_BYTES or path.endswith(LARGE)


def pointer(oid: str, size: int) -> bytes:
    """The pointer to a large file of this SHA-256 and so many bytes."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


def pointed_at(content: bytes) -> dict | None:
    """Of a pointer, what the tree endpoint lists as `lfs`: hash and size of the large file; None for other content."""
    match = _POINTER.match(content)
    return match and {"oid": match[1].decode(), "size": int(match[2]), "pointerSize": len(content)}
