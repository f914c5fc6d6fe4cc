"""A published repository on this machine: only the kinds of files that may be published are fetched, all others named.

Nothing is executed or loaded here; what the files say is for others to judge.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from oct_hf.errors import ModelError
from oct_hf.hub.allowed import ALLOWED
from oct_hf.model.folder import model_folder


@dataclass(frozen=True)
class Downloaded:
    """A repository's files here.

    Attributes:
        name: as it was asked for, for messages.
        folder: where the files lie.
        repo: id on the Hub; None for a local folder.
        revision: branch, tag or commit; None for a local folder.
        commit: its hash; None for a local folder.
        files: every path that the repository has, fetched or not.
    """

    name: str
    folder: Path
    repo: str | None
    revision: str | None
    commit: str | None
    files: tuple[str, ...]


def download(name: str) -> Downloaded:
    """A run, a model folder or `you/name[@revision]` on the Hub.

    Raises:
        ModelError: there is none, or the Hub can't be reached.
    """
    folder = model_folder(name)
    if folder.is_dir():
        found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() or p.is_symlink())
        return Downloaded(name, folder, None, None, None, tuple(found))
    repo, _, revision = name.partition("@")
    revision = revision or "main"
    try:
        about = HfApi().model_info(repo, revision=revision)
        files = tuple(sorted(entry.rfilename for entry in about.siblings or ()))
        # By commit: a branch that moves meanwhile can't give a mix.
        where = snapshot_download(repo, revision=about.sha, allow_patterns=[f"*{kind}" for kind in (*ALLOWED, ".py")])
    except HFValidationError:
        raise ModelError(f"{name}: no such folder, and no repository id (you/name or you/name@revision)") from None
    except (HfHubHTTPError, OSError) as error:
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"{name}: can't be had from {HfApi().endpoint} ({why})") from None
    except Exception as error:
        # huggingface_hub changes its HTTP library between versions
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise ModelError(f"{name}: {HfApi().endpoint} can't be reached ({error or type(error).__name__})") from None
    files = tuple(path for path in files if path != ".gitattributes")
    return Downloaded(name, Path(where), repo, revision, about.sha, files)
