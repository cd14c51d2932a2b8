"""The `m3-router` command.

Heavy parts (Ray, torch, the predictor's libraries) are imported inside the commands that need them,
so that `--help` and usage errors are immediate.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from contextlib import AbstractAsyncContextManager
from enum import IntEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console

from deploy.analyze import analyze
from deploy.feedback_command import feedback
from deploy.keys import app as keys
from deploy.label import label
from deploy.offline import evaluate, train_predictor
from deploy.options import ConfigFile, Settings, configuration
from deploy.predictor_commands import app as predictors
from deploy.printing import print_decision, print_report, print_timings
from deploy.replay import replay
from deploy.report import report
from deploy.retrain import retrain

if TYPE_CHECKING:
    import httpx
DEFAULT_URL = "http://127.0.0.1:8000"
DISTRIBUTION = "m3-router"
SHOWN_VERSIONS = ("ray", "torch", "transformers", "lightgbm", "redis")


PASSWORD = re.compile(r"://[^@/\s]*@")  # of a Redis, in its URL


class Exit(IntEnum):
    """What the command tells the shell."""

    OK = 0
    FAILED = 1
    USAGE = 2


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Answer image questions at the smallest number of visual tokens that is enough.\n\n"
    "`m3-router serve` starts the whole system on this machine; `m3-router ask photo.jpg 'What is "
    "this?'` asks it. Exit status: 0 done, 1 failed or disagreed, 2 wrong usage or request.",
)

ImageFile = Annotated[
    Path, typer.Argument(help="JPEG, PNG, WebP, GIF or BMP.", exists=True, dir_okay=False)
]
Question = Annotated[str, typer.Argument(help="The question about it, in quotes.")]
Url = Annotated[
    str | None,
    typer.Option(
        help=f"Ask this server. Without it: {DEFAULT_URL} if one is ready there, else the model is "
        "loaded here."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MaxRegret = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Largest tolerated share of answers lost against the finest scale."
    ),
]


def main() -> None:
    """Entry point: every expected failure is one line on standard error and an exit status."""
    from deploy.config import ConfigError  # noqa: PLC0415
    from deploy.local import StartError  # noqa: PLC0415
    from m3_backend.errors import ServiceError  # noqa: PLC0415

    try:
        app()
    except ConfigError as error:
        fail(str(error), Exit.USAGE)
    except ServiceError as error:
        fail(f"{error.message} ({error.code})", exit_status(error.status))
    except StartError as error:
        fail(str(error), Exit.FAILED)


def exit_status(http_status: int) -> Exit:
    """A request that would be refused again is wrong usage; anything else may pass next time."""
    return Exit.USAGE if 400 <= http_status < 500 and http_status != 429 else Exit.FAILED


def fail(message: str, status: Exit) -> None:
    print(f"m3-router: {message}", file=sys.stderr)
    sys.exit(status)


def note(message: str) -> None:
    """A line for the person at the terminal, kept out of what a pipe reads."""
    print(message, file=sys.stderr, flush=True)


@app.command()
def serve(
    config: ConfigFile = "local.yaml",
    port: Annotated[int | None, typer.Option(help="HTTP port [default: the file's].")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="`m3-tiny`, a folder or a Hugging Face name.")
    ] = None,
    predictor: Annotated[
        str | None,
        typer.Option(help="`auto`, `none`, or the folder of an artefact or of a registry."),
    ] = None,
    set_: Settings = None,
    verbose: Annotated[bool, typer.Option(help="Show the logs of Ray and the replicas.")] = False,
) -> None:
    """Run the service until Ctrl-C.

    With `ray.address: local` (the default) this starts Ray, a private Redis and the model on this
    machine and stops all of it again. Otherwise it deploys to the named Ray cluster.
    """
    from deploy.local import serve_until_stopped  # noqa: PLC0415

    settings = configuration(
        config,
        set_,
        serve__port=port,
        serve__host=host,
        model__checkpoint=checkpoint,
        predictor=predictor,
    )
    if settings.ray.address == "local":
        from deploy.predictors import check_predictor  # noqa: PLC0415 - loads LightGBM
        from router.auth import open_keys  # noqa: PLC0415
        from router.tracing import open_tracing  # noqa: PLC0415

        # Every ingress does all of it, but what is broken can be told at once.
        check_predictor(settings)
        open_keys(settings.router.access)
        if (tracing := open_tracing(settings.router.telemetry)) is not None:
            tracing.close()
    note(f"Starting m3-router with {settings.model.checkpoint} ...")
    serve_until_stopped(settings, say=lambda line: print(line, flush=True), verbose=verbose)


@app.command()
def ask(
    image: ImageFile,
    question: Question,
    scale: Annotated[
        int | None, typer.Option(help="Force this number of visual tokens (1, 9, 36, ...).")
    ] = None,
    max_regret: MaxRegret = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    url: Url = None,
    config: ConfigFile = "local.yaml",
    set_: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Ask about an image, and see which scale answered and why.

    Example: `m3-router ask photo.jpg "How many cats are there?" --scale 9`
    """
    from deploy.client import chat_body, post  # noqa: PLC0415

    body = chat_body(image, question, scale=scale, max_regret=max_regret, max_tokens=max_tokens)

    async def run() -> tuple[dict[str, Any], dict[str, Any]]:
        async with await service(url, config, set_) as client:
            decision = await post(client, "/v1/route", body)
            return decision, await post(client, "/v1/chat/completions", body)

    decision, answer = asyncio.run(run())
    if as_json:
        print(json.dumps({"answer": answer, "route": decision}, ensure_ascii=False))
        return
    console = Console()
    console.print(answer["choices"][0]["message"]["content"].strip(), style="bold", markup=False)
    console.print()
    print_decision(console, decision)
    print_timings(console, answer["m3"], answer["usage"])


@app.command()
def route(
    image: ImageFile,
    question: Question,
    max_regret: MaxRegret = None,
    url: Url = None,
    config: ConfigFile = "local.yaml",
    set_: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Explain which scale a question would get, without answering it."""
    from deploy.client import chat_body, post  # noqa: PLC0415

    body = chat_body(image, question, max_regret=max_regret)

    async def run() -> dict[str, Any]:
        async with await service(url, config, set_) as client:
            return await post(client, "/v1/route", body)

    decision = asyncio.run(run())
    if as_json:
        print(json.dumps(decision, ensure_ascii=False))
        return
    print_decision(Console(), decision)


async def service(
    url: str | None, config: str, set_: list[str] | None
) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    """The named server, the one that is ready on the default port, or the app in this process."""
    from deploy.client import connect, in_process, ready  # noqa: PLC0415

    if url is not None:
        return connect(url)
    if config == "local.yaml" and not set_ and await ready(DEFAULT_URL):
        return connect(DEFAULT_URL)
    settings = configuration(config, set_)
    note(f"Loading {settings.model.checkpoint} here; `m3-router serve` keeps it loaded.")
    return in_process(settings)


@app.command()
def verify(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint with image.png, expected.json and expected.safetensors beside it.",
            exists=True,
            file_okay=False,
        ),
    ],
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Compare a checkpoint with reference outputs, scale by scale.

    Prints the largest deviations of features and logits and whether the greedy tokens agree.
    Exit status 1 if anything disagrees.
    """
    from dataclasses import asdict  # noqa: PLC0415

    from m3_backend.verify import verify as compare  # noqa: PLC0415

    report = compare(folder, device=device)
    if as_json:
        print(json.dumps(asdict(report) | {"passed": report.passed}))
    else:
        print_report(Console(), report)
    raise typer.Exit(Exit.OK if report.passed else Exit.FAILED)


@app.command("config")
def show_config(config: ConfigFile = "local.yaml", set_: Settings = None) -> None:
    """Print every setting with the value that is in force, as YAML.

    `docs/operations.md` says what each one means. Secrets are masked.
    """
    settings = configuration(config, set_).model_dump(mode="json")
    shown = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    print(PASSWORD.sub("://***@", shown), end="")


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the versions of m3-router and of what it runs on."""
    versions = {"m3-router": metadata.version(DISTRIBUTION), "python": sys.version.split()[0]}
    versions |= {name: metadata.version(name) for name in SHOWN_VERSIONS}
    if as_json:
        print(json.dumps(versions))
        return
    for name, number in versions.items():
        print(f"{name} {number}")


for command in (
    label,
    analyze,
    train_predictor,
    evaluate,
    retrain,
    replay,
    feedback,
    report,
):
    app.command()(command)
app.add_typer(keys, name="keys")
app.add_typer(predictors, name="predictors")


if __name__ == "__main__":
    main()
