"""`oct-hf serve` and `oct-hf hub`: what answers over HTTP until it is stopped."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import check_place, prepare_for_other_hubs, quiet_libraries
from oct_hf.cli.printing import say
from oct_hf.errors import OCTError


def serve(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a Hub id.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; leave it unless you mean to open it.")] = "127.0.0.1",
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a forward pass at most.")] = 8,
    runtime: Annotated[
        str,
        typer.Option(
            help="onnx, openvino, openvino-bf16: with the repository's own file; torch; auto: onnx if it can."
        ),
    ] = "auto",
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more get 429.")] = 128,
    queue_mb: Annotated[int, typer.Option(min=1, help="MiB of bodies that may wait; more get 429.")] = 128,
) -> None:
    """Answer the Hub's inference API over HTTP: POST an image, get labels and scores; /docs, /health, /metrics.

    One B-scan a request, raw or as base64 in JSON: 10 MiB, 16 megapixels.
    Addresses aren't fetched. 128 requests with bodies of 128 MiB wait at
    most (--queue, --queue-mb); more get 429, with the seconds until those
    will be answered in Retry-After.
    No authentication, no TLS. SIGTERM (exit code 143) or Ctrl-C (130)
    ends it after it has answered what it accepted. What ends the process
    otherwise costs the requests at hand: another one takes its place.

    Example: oct-hf serve runs/demo --port 8000
    """
    if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client")):
        raise OCTError('serving needs FastAPI, uvicorn and prometheus-client: pip install "oct-hf[serve]"')
    from oct_hf import serving, supervised

    taken = serving.take_port(port, host)
    place = f"http://{host}:{taken.getsockname()[1]}"
    raise typer.Exit(supervised.run_replaced(_serve, taken, place, model, runtime, batch_size, queue, queue_mb * 2**20))


def _serve(taken, place: str, model: str, runtime: str, batch_size: int, queue: int, queue_bytes: int) -> int:
    """In a process of its own."""
    from oct_hf import serving
    from oct_hf.inference.cores import share_cores
    from oct_hf.inference.runtime import serving_predictor
    from oct_hf.inference.server import create_app
    from oct_hf.model.folder import model_folder

    quiet_libraries()
    batches, threads = share_cores()
    predictor = serving_predictor(model_folder(model), runtime, batch_size, threads)
    name = Path(model).resolve().name if Path(model).exists() else model  # not where it lies on this machine
    served = create_app(predictor, name, model_threads=batches, queue=queue, queue_bytes=queue_bytes)
    ready = f"{model} answers at {place} ({place}/docs says how; /health, /metrics); Ctrl-C ends it"
    return 128 + serving.run_until_stopped(served, taken, lambda: say(ready))


def hub(
    root: Annotated[Path, typer.Option(help="Folder for everything the Hub keeps.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen on; leave it unless you mean to open it.")] = "127.0.0.1",
    address: Annotated[str | None, typer.Option(help="http://… that clients use, where a proxy is in front.")] = None,
    log: Annotated[bool, typer.Option("--log", help="A line a request: method, path and status; no tokens.")] = False,
) -> None:
    """Run a Hub for one site on this machine, for demonstrations and closed networks.

    Example: oct-hf hub --root hub/
    """
    import time

    check_place(root)
    prepare_for_other_hubs()
    if find_spec("uvicorn") is None or find_spec("fastapi") is None:
        raise OCTError('the loopback Hub needs FastAPI and uvicorn: pip install "oct-hf[hub]"')
    from oct_hf.hub.local import running
    from oct_hf.hub.local.accounts import read_tokens

    root.mkdir(parents=True, exist_ok=True)
    tokens = read_tokens(root / "tokens.json")
    with running(root, tokens, port, host, address, say=say if log else None) as served:
        first = next(iter(tokens))
        print(f"export HF_ENDPOINT={served.state.address} HF_HUB_DISABLE_XET=1 HF_TOKEN={first}", flush=True)
        say(f"the Hub of {tokens[first].name} is running; tokens are in {root / 'tokens.json'}; Ctrl-C ends it")
        while True:
            time.sleep(3600)
