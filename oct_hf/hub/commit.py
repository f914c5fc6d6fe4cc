"""One commit that leaves exactly the given files on a branch, and that is made once even if its answer gets lost.

The Hub moves a branch only from the parent that a commit names; so after a lost answer the branch tells what happened:
it is where it was, it holds our files, or somebody else has moved it.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from oct_hf.hub.patience import Patience
from oct_hf.hub.plain_errors import ADVICE, PublishError


@dataclass(frozen=True)
class Committed:
    """Where a branch or a pull request stands, and whether that is new."""

    commit: str
    url: str
    changed: bool


def commit(
    api: HfApi,
    repo: str,
    files: Mapping[str, Path | bytes],
    revision: str,
    parent: str,
    title: str,
    patience: Patience,
    *,
    there: dict[str, str] | None = None,
    create_pr: bool = False,
    repo_type: str = "model",
) -> Committed:
    """Makes `files` (and .gitattributes) all that a branch holds, in one commit; to be used in `one_try_a_request`.

    A commit whose answer was lost is found by what the branch holds and not made again.

    Args:
        api: of the Hub.
        repo: `you/name`.
        files: content by path.
        revision: the branch.
        parent: the commit that it is at.
        title: of the new commit.
        patience: with the Hub.
        there: `listing` of the parent, where it is known already.
        create_pr: leaves the branch as it is and opens a pull request with the commit.
        repo_type: `model` or `dataset`.

    Raises:
        PublishError: the branch was moved by somebody else.
        PassingFault: the Hub failed for longer than the patience lasts.
    """
    home = f"{api.endpoint}/{'' if repo_type == 'model' else f'{repo_type}s/'}{repo}"
    additions = [CommitOperationAdd(path, str(c) if isinstance(c, Path) else c) for path, c in files.items()]
    there = patience(lambda: listing(api, repo, parent, repo_type)) if there is None else there
    if _same(there, additions):
        return Committed(parent, f"{home}/commit/{parent}", False)
    operations = additions + [CommitOperationDelete(path) for path in sorted(set(there) - set(files))]
    asked_before = patience(lambda: _pull_requests(api, repo, repo_type)) if create_pr else {}
    tried = False

    def arrived() -> Committed | None:
        """What an earlier try has done, if anything."""
        if create_pr:
            asked = _pull_requests(api, repo, repo_type)
            new = {number: oid for number, oid in asked.items() if number not in asked_before}
            mine = (n for n, oid in new.items() if _same(listing(api, repo, oid, repo_type), additions))
            return next((Committed(new[n], f"{home}/discussions/{n}", True) for n in mine), None)
        head = head_of(repo, api.repo_info(repo, revision=revision, repo_type=repo_type).sha)
        if head == parent:
            return None
        if not _same(listing(api, repo, head, repo_type), additions):
            raise PublishError(f"{repo} on {api.endpoint}: {ADVICE[412]}")
        return Committed(head, f"{home}/commit/{head}", True)

    def step() -> Committed:
        nonlocal tried
        if tried and (found := arrived()):
            return found
        tried = True
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
                made = api.create_commit(
                    repo,
                    operations,
                    commit_message=title,
                    revision=revision,
                    parent_commit=parent,
                    create_pr=create_pr,
                    repo_type=repo_type,
                )
        except HfHubHTTPError as error:
            # The one that was lost may have come through after this try had looked.
            if error.response.status_code == 412 and not create_pr and (found := arrived()):
                return found
            raise
        return Committed(made.oid, made.pr_url or made.commit_url, made.oid != parent)

    return patience(step)


def head_of(repo: str, sha: str | None) -> str:
    """The commit that a branch is at, if the Hub told it.

    Raises:
        PublishError: it didn't, and without it a commit in between would be lost.
    """
    if not sha:
        raise PublishError(f"{repo}: the Hub doesn't say at which commit it is; without that nothing is published")
    return sha


def listing(api: HfApi, repo: str, revision: str, repo_type: str = "model") -> dict[str, str]:
    """Every file but .gitattributes: of a large one its SHA-256, of others git's blob id."""
    entries = api.list_repo_tree(repo, revision=revision, recursive=True, repo_type=repo_type)
    found = {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if isinstance(e, RepoFile)}
    found.pop(".gitattributes", None)
    return found


def _same(there: dict[str, str], additions: list[CommitOperationAdd]) -> bool:
    """Whether a listing holds just these files with just this content."""
    return set(there) == {a.path_in_repo for a in additions} and all(
        there[a.path_in_repo] == _id(a, len(there[a.path_in_repo])) for a in additions
    )


def _id(addition: CommitOperationAdd, length: int) -> str:
    """Of a file's content, in hexadecimal: SHA-256 (64 digits) or git's blob id (40)."""
    if length == 64:
        return addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _pull_requests(api: HfApi, repo: str, repo_type: str) -> dict[str, str]:
    """Their commits by number."""
    refs = api.list_repo_refs(repo, repo_type=repo_type, include_pull_requests=True)
    return {ref.ref.rpartition("/")[2]: ref.target_commit for ref in refs.pull_requests or ()}
