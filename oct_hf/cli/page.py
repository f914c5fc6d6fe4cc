"""`oct-hf page`: a model as a page that runs in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import AsJson, prepare_for_other_hubs, quiet_libraries
from oct_hf.cli.printing import print_json, say, tell


def page(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a Hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the page; an older page there is replaced.")] = Path("page"),
    runtime: Annotated[
        Path | None, typer.Option(help="npm's archive of onnxruntime-web, or its folder, where npm can't fetch it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a web page that classifies B-scans in the browser: no image leaves the machine that opens it.

    The folder is a static Space, and any web server can serve it. Once loaded it works without a network.
    ONNX Runtime for browsers (27 MB) is fetched by npm; a closed network gives it with --runtime.

    Example: oct-hf page runs/demo --out page/
    """
    prepare_for_other_hubs()
    from oct_hf.hub.page import write_page

    quiet_libraries()
    folder = write_page(model, out, runtime)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*.*"))}
    if as_json:
        print_json({"folder": str(folder), "files": sizes})
        return
    tell(f"{folder}  {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")
    say(f"open it: python -m http.server --bind 127.0.0.1 --directory {folder}, then http://localhost:8000")
    say("publish it: hf repos create you/oct-page --type space --sdk static")
    say(f"            hf upload you/oct-page {folder} --type space")
