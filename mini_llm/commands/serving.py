"""A model for other programs and for the browser: `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_llm.commands.arguments import Backend, BackendName, Device, Dtype
from mini_llm.errors import UserError


def serve(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run folder, a checkpoint or any Llama folder; default: the newest run."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; others than this machine's need a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file with the key, its owner's alone; or set MINI_LLM_API_KEY.")
    ] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="Let everyone in, also from other machines.")] = False,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name besides localhost that browsers may use; may be repeated.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A page's origin that may call the API; may be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; default: the run's.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="An adapter (LoRA) of this model as a further model; may be repeated."),
    ] = None,
    slots: Annotated[int, typer.Option(help="Texts that are computed at once.", min=1, max=1024)] = 32,
    queue: Annotated[int, typer.Option(help="Texts that wait; more get 429.", min=0, max=10_000)] = 128,
    drain: Annotated[float, typer.Option(help="Seconds for running texts after SIGTERM.", min=0, max=600)] = 10.0,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Write prompts and answers into the log.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = BackendName.auto,
) -> None:
    """Serve a model over HTTP: OpenAI's API, and a page to talk with it and to look inside."""
    from mini_llm.runs import newest_run

    run = run or newest_run("latest")
    try:
        from mini_llm.serve.server import serve as run_server
    except ImportError as missing:
        raise UserError(f"serving needs {missing.name}", "pip install 'mini-llm[serve]'") from None
    from mini_llm.serve.catalog import default_name
    from mini_llm.serve.settings import ServeSettings, check_exposure, check_names, parse_adapters, read_key

    key = read_key(api_key_file)
    check_exposure(host, key, no_key=no_key)
    check_names(allowed_host or (), cors_origin or ())
    adapters = parse_adapters(adapter or (), run, name or default_name(run))
    settings = ServeSettings(
        host=host, port=port, key=key, allowed_hosts=tuple(allowed_host or ()), cors_origins=tuple(cors_origin or ()),
        name=name, max_slots=slots, max_queue=queue, drain_seconds=drain, log_texts=log_texts, device=device,
        dtype=dtype, backend=backend.value, adapters=adapters, max_models=ServeSettings.max_models + len(adapters),
    )  # fmt: skip
    run_server(run, settings)
