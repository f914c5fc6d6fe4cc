"""Publishes a data set's folder: one atomic commit of type dataset, into a repository that holds nothing else.

A reader sees the old data or the new and never a mix. What the Hub has is not sent again. A file that isn't of this
package's making is never deleted or overwritten: the repository is refused instead.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets.config
from huggingface_hub import HfApi

from oct_hf.errors import OCTError
from oct_hf.hub.commit import commit, head_of, listing
from oct_hf.hub.patience import Patience
from oct_hf.hub.plain_errors import PublishError
from oct_hf.hub.publish import Published
from oct_hf.hub.talking import talking_to, usable_token

FACTS_FILE = "oct-hf.json"
CROISSANT_FILE = "croissant.json"
ALLOWED = (".parquet", ".md", ".json", ".csv")
_OURS = re.compile(rf"README\.md|{re.escape(FACTS_FILE)}|{re.escape(CROISSANT_FILE)}|data/[\w-]+\.parquet")
_NOT_CONTENT = {".gitattributes", "README.md"}  # what a new repository may have


def publish_data_folder(
    build: Callable[[Path, str, dict | None], str],
    repo: str,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    private: bool = False,
    patience: Patience | None = None,
) -> Published:
    """Has the folder built, and uploads it.

    Args:
        build: writes the data set into a folder; gets the folder, the address that it will be published under, and the
            croissant.json that is there now; gives the commit's title.
        repo: `you/name`.
        token: the one that `hf auth login` stored, where not given.
        endpoint: of another Hub than huggingface.co.
        private: for a new repository.
        patience: with a Hub that fails, stalls or asks to wait.

    Returns:
        what was done; publishing the same data again changes nothing.

    Raises:
        PublishError: refused, unreachable, or the repository holds something else; in one line.
    """
    token, patience = usable_token(token), patience or Patience()
    api = HfApi(endpoint=endpoint, token=token)
    with talking_to(api, repo, "give the same command again", patience):
        patience(lambda: api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True))
        about = patience(lambda: api.dataset_info(repo))
        if private and not about.private:
            raise PublishError(f"{repo} is public already, and --private doesn't change that; choose another name")
        head = head_of(repo, about.sha)
        there = set(patience(lambda: listing(api, repo, head, "dataset")))
        _refuse_foreign(repo, there)
        previous = patience(lambda: _published_croissant(api, repo, head)) if CROISSANT_FILE in there else None
    with building_folder() as folder:
        title = build(folder, f"{api.endpoint}/datasets/{repo}", previous)
        files = contents(folder)
        with talking_to(api, repo, "give the same command again", patience):
            done = commit(api, repo, files, "main", head, title, patience, repo_type="dataset")
    changed = done.changed
    return Published(repo, done.url, done.commit if changed else None, None, tuple(files) if changed else ())


@contextmanager
def building_folder() -> Iterator[Path]:
    """An empty folder that is gone at the end, beside the prepared pictures: that disk can hold a data set."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="publish-") as folder:
        yield Path(folder)


def contents(folder: Path) -> dict[str, Path]:
    """What goes up, by path.

    Raises:
        OCTError: something in the folder is of a kind that may not be published.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    for name, path in files.items():
        if path.is_symlink() or path.suffix not in ALLOWED:
            raise OCTError(f"{name} may not be published; only {', '.join(ALLOWED)} files may")
    return files


def _refuse_foreign(repo: str, there: set[str]) -> None:
    """A repository with somebody's other content is neither overwritten nor mixed with."""
    content = there - _NOT_CONTENT
    foreign = sorted(path for path in content if not _OURS.fullmatch(path))
    if content and FACTS_FILE not in there:
        foreign = sorted(content)
    if foreign:
        raise PublishError(f"{repo} holds something else ({', '.join(foreign[:3])} …); choose another name")


def _published_croissant(api: HfApi, repo: str, commit: str) -> dict | None:
    path = api.hf_hub_download(repo, CROISSANT_FILE, repo_type="dataset", revision=commit)
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
