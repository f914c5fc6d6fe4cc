"""Publishes a run: one atomic commit, a version tag, and the branch with the custom class's code.

A reader sees the old model or the new one and never a mix: everything goes into one commit whose parent is what was
there when publishing began. Only what `repository.ALLOWED` names is uploaded; what the Hub has is not sent again.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from oct_hf.errors import OCTError
from oct_hf.hub.card import render_card
from oct_hf.hub.repository import check_allowed
from oct_hf.inference.predictor import model_folder
from oct_hf.model import configuration_oct, modeling_oct

CODE_BRANCH = "remote-code"
AUTO_MAP = {
    "AutoConfig": "configuration_oct.OCTConfig",
    "AutoModelForImageClassification": "modeling_oct.OCTForImageClassification",
}


class PublishError(OCTError):
    """The Hub refused or couldn't be reached; the run's folder is as it was."""


@dataclass(frozen=True)
class Published:
    """What publishing did.

    Attributes:
        repo: id on the Hub.
        url: of the commit or pull request.
        commit: hash on the branch, or None where nothing had changed.
        tag: the version's name where one was made now.
        files: paths that were sent or changed, in the commit on the branch.
    """

    repo: str
    url: str
    commit: str | None
    tag: str | None
    files: tuple[str, ...]


def publish(
    run: str | Path,
    repo: str,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    private: bool = False,
    revision: str = "main",
    create_pr: bool = False,
) -> Published:
    """Uploads a run's repository folder.

    Args:
        run: a finished run, or its folder `model`.
        repo: `you/name`.
        token: the one that `hf auth login` stored, where not given.
        endpoint: of another Hub than huggingface.co.
        private: for a new repository.
        revision: the branch.
        create_pr: opens a pull request instead; it carries the branch's files, but no tag and no code branch.

    Returns:
        what was done; publishing the same run again changes nothing.

    Raises:
        PublishError: refused or unreachable, in one line.
        OCTError: no finished run, or something in it that may not be published.
    """
    folder = repository_folder(run)
    api = HfApi(endpoint=endpoint, token=token)
    with _plain_errors(repo, api.endpoint):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True)
        before = api.model_info(repo, revision=revision).sha
        _refuse_foreign(api, repo, before)
        files = contents(folder, repo)
        done = _commit(api, repo, files, revision, before, _title(folder), create_pr)
        if create_pr:
            return Published(repo, done.pr_url, done.oid, None, tuple(files))
        changed = done.oid != before
        tag = _tag(api, repo, done.oid) if revision == "main" else None
        if revision == "main":
            _publish_code(api, repo, files, done.oid)
        sent = tuple(files) if changed else ()
        return Published(repo, done.commit_url, done.oid if changed else None, tag, sent)


def repository_folder(run: str | Path) -> Path:
    """The folder `model` of a finished run.

    Raises:
        PublishError: there is none.
        RunError: it holds a kind of file that may not be published.
    """
    folder = model_folder(run)
    for name in ("config.json", "model.safetensors", "run.json", "README.md"):
        if not (folder / name).is_file():
            raise PublishError(f"{run}: no {name} in it, so this is no finished run; finish it with oct-hf finetune")
    check_allowed(folder)
    return folder


def contents(folder: Path, repo: str) -> dict[str, Path | bytes]:
    """What goes onto the branch, by path: the folder's files, and the card with the repository's id in its examples."""
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    files["README.md"] = render_card(run, repo).encode()
    return files


def _commit(api: HfApi, repo: str, files: dict, revision: str, parent: str, title: str, create_pr: bool = False):
    """One commit that leaves exactly `files` (and .gitattributes) on the branch."""
    there = set(api.list_repo_files(repo, revision=parent)) - {".gitattributes"}
    operations = [CommitOperationAdd(path, str(c) if isinstance(c, Path) else c) for path, c in files.items()]
    operations += [CommitOperationDelete(path) for path in sorted(there - set(files))]
    return api.create_commit(
        repo, operations, commit_message=title, revision=revision, parent_commit=parent, create_pr=create_pr
    )


def _publish_code(api: HfApi, repo: str, files: dict[str, Path | bytes], main: str) -> None:
    """The branch for `trust_remote_code=True`: the same model, its class, and the `auto_map` that names it."""
    api.create_branch(repo, branch=CODE_BRANCH, revision=main, exist_ok=True)
    config = json.loads(Path(files["config.json"]).read_text()) | {"auto_map": AUTO_MAP}
    code = {Path(module.__file__).name: Path(module.__file__) for module in (configuration_oct, modeling_oct)}
    files = {**files, **code, "config.json": (json.dumps(config, indent=2) + "\n").encode()}
    parent = api.model_info(repo, revision=CODE_BRANCH).sha
    _commit(api, repo, files, CODE_BRANCH, parent, "The custom class, for trust_remote_code")


def _tag(api: HfApi, repo: str, commit: str) -> str | None:
    """Tags a commit as the next version (v1, v2, …); None where it has its version already."""
    tags = api.list_repo_refs(repo).tags
    numbers = {int(match[1]): tag for tag in tags if (match := re.fullmatch(r"v(\d+)", tag.name))}
    if any(tag.target_commit == commit for tag in numbers.values()):
        return None
    tag = f"v{max(numbers, default=0) + 1}"
    api.create_tag(repo, tag=tag, revision=commit)
    return tag


def _refuse_foreign(api: HfApi, repo: str, commit: str) -> None:
    """A repository with somebody's other content is not overwritten."""
    files = set(api.list_repo_files(repo, revision=commit)) - {".gitattributes", "README.md"}
    if files and "run.json" not in files:
        raise PublishError(f"{repo} holds something else ({', '.join(sorted(files)[:3])} …); choose another name")


def _title(folder: Path) -> str:
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return f"{run['name']}: balanced accuracy {run['results']['test']['balanced_accuracy']:.3f} on the test side"


@contextmanager
def _plain_errors(repo: str, endpoint: str) -> Iterator[None]:
    """One line for what the Hub or the network says; no token is ever part of it."""
    try:
        with _causes_of_failed_uploads():
            yield
    except LocalTokenNotFoundError:
        raise PublishError("no token: run `hf auth login`, or set HF_TOKEN") from None
    except HFValidationError as error:
        raise PublishError(f"{repo} is no repository id (you/name): {str(error).splitlines()[0]}") from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PublishError(f"{repo} on {endpoint}: {_first_line(error)}; is the token allowed to see it?") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise PublishError(f"{repo} on {endpoint}: {_ADVICE.get(status, _first_line(error))}") from None
    except OCTError:
        raise
    except Exception as error:
        # huggingface_hub changes its HTTP library between versions (requests, httpx, httpx2)
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        why = _first_line(error) or type(error).__name__
        raise PublishError(f"{endpoint} can't be reached ({why}); the run is whole, publish again later") from None


@contextmanager
def _causes_of_failed_uploads() -> Iterator[None]:
    """huggingface_hub wraps what went wrong with an upload in a RuntimeError; the cause is what helps."""
    try:
        yield
    except RuntimeError as error:
        raise (error.__cause__ or error) from None


_ADVICE = {
    400: "refused as invalid (400); is the name made of letters, digits, -, _ and . alone?",
    401: "not allowed (401); run `hf auth login` with a valid token",
    403: "not allowed (403); the token needs write access to this repository",
    409: "conflict (409); somebody else writes there now, publish again",
    412: "somebody else committed meanwhile (412); look at it, then publish again",
    413: "a file is too large for this Hub (413)",
}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else ""
