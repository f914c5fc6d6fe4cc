"""Publishes a run: one atomic commit, a version tag, and the branch with the custom class's code.

A reader sees the old model or the new one and never a mix: everything goes into one commit whose parent is what was
there when publishing began. Only what `repository.ALLOWED` names is uploaded; what the Hub has is not sent again. Each
step can be made twice, so a fault that passes is answered by trying again (`patience.py`), and any other one by running
the same command again. Nothing is written on this machine.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from oct_hf import model
from oct_hf.hub.allowed import CODE, CODE_BRANCH, check_allowed
from oct_hf.hub.card import render_card
from oct_hf.hub.commit import commit, head_of, listing
from oct_hf.hub.files import file_faults
from oct_hf.hub.kinds import kind_of
from oct_hf.hub.patience import Patience
from oct_hf.hub.plain_errors import PublishError
from oct_hf.hub.talking import talking_to, usable_token
from oct_hf.model.folder import model_folder

AUTO_MAP = {
    "AutoConfig": "configuration_oct.OCTConfig",
    "AutoModelForImageClassification": "modeling_oct.OCTForImageClassification",
}


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
    gated: str | None = None,
    patience: Patience | None = None,
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
        gated: who wants to download must ask: `auto` grants it, `manual` leaves it to you. As it was, where not given.
        patience: with a Hub that fails, stalls or asks to wait.

    Returns:
        what was done; publishing the same run again changes nothing.

    Raises:
        PublishError: refused, or not to be reached for longer than the patience lasts, in one line.
        OCTError: no finished run, or something in it that may not be published.
    """
    folder = repository_folder(run)
    if gated not in (None, "auto", "manual"):
        raise PublishError(f'gated: found "{gated}", expected auto or manual')
    token, patience = usable_token(token), patience or Patience()
    api = HfApi(endpoint=endpoint, token=token)
    again = f"run it again, it goes on where it stopped: {_command(run, repo, private, revision, create_pr, gated)}"
    with talking_to(api, repo, again, patience):
        patience(lambda: api.create_repo(repo, private=private, exist_ok=True))
        if revision != "main":
            patience(lambda: api.create_branch(repo, branch=revision, exist_ok=True))
        before = patience(lambda: api.model_info(repo, revision=revision))
        if private and not before.private:
            raise PublishError(f"{repo} is public already, and --private doesn't change that; choose another name")
        head = head_of(repo, before.sha)
        there = patience(lambda: listing(api, repo, head))
        refuse_foreign(repo, there)
        if gated and before.gated != gated:  # before there is anything to download
            patience(lambda: api.update_repo_settings(repo, gated=gated))
        files = contents(folder, repo)
        title = _title(folder)
        done = commit(api, repo, files, revision, head, title, patience, there=there, create_pr=create_pr)
        sent = tuple(files) if done.changed else ()
        new = done.commit if done.changed else None
        if create_pr or revision != "main":
            return Published(repo, done.url, new, None, sent)
        refs = patience(lambda: api.list_repo_refs(repo))
        tag = _tag(api, repo, done.commit, refs.tags, patience)
        code = {branch.name: branch.target_commit for branch in refs.branches}.get(CODE_BRANCH)
        _publish_code(api, repo, files, done.commit, code, patience)
        return Published(repo, done.url, new, tag, sent)


def repository_folder(run: str | Path) -> Path:
    """The folder `model` of a finished run.

    Raises:
        PublishError: there is none, a file in it isn't what its name says, or its split leaks on purpose.
        RunError: it holds a kind of file that may not be published.
    """
    folder = model_folder(run)
    for name in ("config.json", "model.safetensors", "run.json", "README.md"):
        if not (folder / name).is_file():
            raise PublishError(f"{run}: no {name} in it, so this is no finished run; finish it with oct-hf finetune")
    if json.loads((folder / "run.json").read_text(encoding="utf-8")).get("split", {}).get("by") == "image":
        raise PublishError(
            f"{run}: split by image, so one patient's B-scans are on both sides; it is for comparison only"
        )
    check_allowed(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for fault in file_faults(folder, names):  # a pickle may be called weights.bin
        raise PublishError(f"{fault}; take it out of {folder}")
    return folder


def contents(folder: Path, repo: str) -> dict[str, Path | bytes]:
    """What goes onto the branch, by path: the folder's files, and the card with the repository's id in its examples."""
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    files["README.md"] = render_card(run, repo).encode()
    return files


def with_code(files: dict[str, Path | bytes]) -> dict[str, Path | bytes]:
    """What goes onto the code branch: the same model, its class, and the `auto_map` that names it."""
    stored = files["config.json"]
    config = json.loads(stored.read_bytes() if isinstance(stored, Path) else stored) | {"auto_map": AUTO_MAP}
    code = {name: Path(model.__file__).with_name(name) for name in CODE}
    return {**files, **code, "config.json": (json.dumps(config, indent=2) + "\n").encode()}


def _publish_code(
    api: HfApi, repo: str, files: dict[str, Path | bytes], main: str, head: str | None, patience: Patience
) -> None:
    """The branch for `trust_remote_code=True`.

    Args:
        main: the commit on `main` that it starts from where there is none yet.
        head: the commit that it is at.
    """
    if head is None:
        patience(lambda: api.create_branch(repo, branch=CODE_BRANCH, revision=main, exist_ok=True))
    title = "The custom class, for trust_remote_code"
    commit(api, repo, with_code(files), CODE_BRANCH, head or main, title, patience)


def _tag(api: HfApi, repo: str, commit: str, tags: list, patience: Patience) -> str | None:
    """Tags a commit as the next version (v1, v2, …) of `tags`; None where it has its version already."""
    if _version(tags, commit):
        return None

    tried = False

    def step() -> str:
        nonlocal tried
        known = api.list_repo_refs(repo).tags if tried else tags
        if tried and (made := _version(known, commit)):
            return made  # by the try before this one, whose answer was lost
        tried = True
        numbers = [int(tag.name[1:]) for tag in known if re.fullmatch(r"v\d+", tag.name)]
        tag = f"v{max(numbers, default=0) + 1}"
        api.create_tag(repo, tag=tag, revision=commit)
        return tag

    return patience(step)


def _version(tags: list, commit: str) -> str | None:
    return next((tag.name for tag in tags if tag.target_commit == commit and re.fullmatch(r"v\d+", tag.name)), None)


def refuse_foreign(repo: str, there: dict[str, str]) -> None:
    """A repository with somebody's other content is not overwritten."""
    files = set(there) - {"README.md"}
    if files and "run.json" not in files:
        raise PublishError(f"{repo} holds something else ({', '.join(sorted(files)[:3])} …); choose another name")


def _title(folder: Path) -> str:
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return f"{run['name']}: {kind_of(run).headline(run)}"


def _command(run: str | Path, repo: str, private: bool, revision: str, create_pr: bool, gated: str | None) -> str:
    options = ["--private"] * private + ["--revision", revision] * (revision != "main") + ["--create-pr"] * create_pr
    return shlex.join(["oct-hf", "publish", str(run), "--repo", repo, *options, *(["--gated", gated] if gated else [])])
