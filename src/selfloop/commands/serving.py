"""serve: a model behind an OpenAI-compatible address, for evaluation tools and other clients."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from selfloop.commands.output import AsJson, put_json, say, tell


def serve(
    model: Annotated[str, typer.Argument(
        help="embedded, a run (its best model), or a model folder.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(
        help="What clients call the model; by default MODEL.")] = None,
    token: Annotated[str | None, typer.Option(
        envvar="SELFLOOP_SERVE_TOKEN", help="What clients must send as their API key.")] = None,
    allow_remote: Annotated[bool, typer.Option(
        "--allow-remote", help="Listen where other machines can reach it.")] = False,
    max_tokens: Annotated[int, typer.Option(
        min=1, help="Longest answer, also where a request names none.")] = 2048,
    max_pictures: Annotated[int, typer.Option(min=1, help="In one request.")] = 16,
    max_request_mb: Annotated[int, typer.Option(min=1, help="Size of one request.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Requests answered together.")] = 64,
    timeout: Annotated[float, typer.Option(
        min=1, help="Seconds for one request, waiting included.")] = 300.0,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(
        help="float32, bfloat16, float16 or auto.")] = None,
    json: AsJson = False,
) -> None:
    """Serve a model to OpenAI clients: lmms-eval, inspect_ai, VLMEvalKit, your own."""
    from selfloop.egress import only
    from selfloop.evaluating import engine_of
    from selfloop.roles import SelfloopError
    from selfloop.serving.server import Limits, check_host
    from selfloop.serving.server import serve as run

    check_host(host, allow_remote)
    options = {key: value for key, value in (("device", device), ("dtype", dtype)) if value}
    if options and model == "embedded":
        raise SelfloopError(f"--{next(iter(options))}: the embedded model runs on the CPU in "
                            "float32; leave it out")
    limits = Limits(
        tokens=max_tokens, pictures=max_pictures, body_bytes=max_request_mb * 2**20,
        held_bytes=max(8 * max_request_mb * 2**20, Limits.held_bytes), queue=queue, batch=batch,
        seconds=timeout)
    engine = engine_of(model, **options)
    called = name or (Path(model).name if Path(model).is_dir() else model)
    # From here on nothing leaves but replies.
    with only("none"), run(engine, host=host, port=port, name=called, token=token or None,
                           limits=limits, allow_remote=allow_remote) as server:
        if allow_remote and not token:
            tell(f"warning: whoever reaches {host} can use this model: give a --token")
        if json:
            put_json({"url": server.url, "model": server.desk.model})
        else:
            say(f"serving {server.desk.model} at {server.url} (Ctrl-C stops)")
        sys.stdout.flush()  # a program that started this one reads the address from a pipe
        try:
            server.wait()
        except KeyboardInterrupt:
            tell("stopped")

