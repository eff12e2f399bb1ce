"""`stillmotion`: the commands and their options.

Each command imports what it needs when it runs, so that `stillmotion --help` answers at once; torch is
never imported in this process.
"""

import sys
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from stillmotion import __version__
from stillmotion.errors import StillmotionError

app = typer.Typer(
    name="stillmotion",
    help="Stable Video Diffusion on your own machine, behind fal.ai's HTTP contract.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(
    help="Make, list, rotate and revoke API keys, also beside a running server.", no_args_is_help=True
)
app.add_typer(keys_app, name="keys")
webhooks_app = typer.Typer(
    help="See deliveries, send one again, rotate the signing key; also beside a running server.",
    no_args_is_help=True,
)
app.add_typer(webhooks_app, name="webhooks")
models_app = typer.Typer(help="Fetch, import, check and remove weights.", no_args_is_help=True)
app.add_typer(models_app, name="models")


class Scope(StrEnum):
    """What a key is for."""

    API = "api"
    ADMIN = "admin"


DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where state, media and keys live.", show_default=False)
]
ProfileName = Annotated[
    str | None, typer.Option("--profile", help="Weights to run: auto, pocket or svd.", show_default=False)
]
Devices = Annotated[
    str | None, typer.Option("--devices", help="cpu, cpu,cpu, cuda:0,cuda:1,… or auto.", show_default=False)
]
#: Highest limit a key can have; the database's numbers end somewhere.
MOST = 1_000_000_000
#: For tests: a runner that makes films on a timetable.
Engine = Annotated[str | None, typer.Option("--engine", hidden=True)]


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks one.", show_default="8000")] = None,
    data_dir: DataDir = None,
    tls_port: Annotated[int | None, typer.Option(help="Port for HTTPS with our own CA.")] = None,
    tls_name: Annotated[list[str] | None, typer.Option(help="Further name in the certificate.")] = None,
    profile: ProfileName = None,
    devices: Devices = None,
    engine: Engine = None,
) -> None:
    """Run the server: HTTP, queue and runners in one go. SIGTERM drains it, a second one stops it.

    All other settings are environment variables; `stillmotion settings` lists them.
    """
    from stillmotion.cli.devices import ENGINE
    from stillmotion.cli.serve import serve
    from stillmotion.settings import load_settings

    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "tls_port": tls_port,
        "tls_name": tls_name or None,
        "profile": profile,
        "devices": devices,
    }
    raise typer.Exit(serve(load_settings(flags), engine or ENGINE))


@app.command()
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What the film should show.", show_default=False)
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Set this picture in motion instead.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The MP4 to write.")] = Path("out.mp4"),
    turbo: Annotated[bool, typer.Option(help="With --image: few steps instead of full quality.")] = False,
    motion_bucket_id: Annotated[int | None, typer.Option(help="Amount of motion, 1 to 255.")] = None,
    cond_aug: Annotated[float | None, typer.Option(help="Noise on the first picture, 0 to 10.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same film.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 20 (turbo and prompt).")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second of the film.")] = None,
    video_size: Annotated[
        str | None, typer.Option(help="Named size or WIDTHxHEIGHT (prompt).", show_default="landscape_16_9")
    ] = None,
    data_dir: DataDir = None,
    profile: ProfileName = None,
    devices: Devices = None,
    engine: Engine = None,
) -> None:
    """Make one film from a prompt or a picture, without a server."""
    from stillmotion.cli.devices import ENGINE
    from stillmotion.cli.generate import generate
    from stillmotion.settings import load_settings

    parameters = {
        "motion_bucket_id": motion_bucket_id,
        "cond_aug": cond_aug,
        "seed": seed,
        "steps": steps,
        "fps": fps,
        "video_size": video_size,
    }
    settings = load_settings({"data_dir": data_dir, "profile": profile, "devices": devices})
    raise typer.Exit(generate(settings, prompt, image, turbo, parameters, output, engine or ENGINE))


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What the key is for; shown in lists.")],
    data_dir: DataDir = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Most requests of this key at once; more wait their turn."),
    ] = None,
    submits_per_minute: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Most requests it may submit in a minute.")
    ] = None,
    upload_bytes_per_day: Annotated[
        int | None, typer.Option(min=1, max=MOST * MOST, help="Most bytes it may upload in a day.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 12h, 30d, 2027-01-01.", show_default="never")
    ] = None,
    scope: Annotated[
        Scope, typer.Option(help="api: what clients do; admin: the operator's routes too.")
    ] = Scope.API,
) -> None:
    """Make a key; the last line printed is the key, `id:secret`, shown this once."""
    from stillmotion.cli.keys import create

    limits = {
        "concurrency": concurrency,
        "submits_per_minute": submits_per_minute,
        "upload_bytes_per_day": upload_bytes_per_day,
    }
    create(_settings(data_dir), name, limits, expires, scope)


@keys_app.command("rotate")
def keys_rotate(
    key_id: Annotated[str, typer.Argument(help="The part of the key before the colon.")],
    data_dir: DataDir = None,
    overlap: Annotated[
        str, typer.Option(help="How long the old secret still works: 30m, 12h, 1d, or 0.")
    ] = "1d",
) -> None:
    """Give a key a new secret; its id, requests and limits stay. The last line printed is the new key."""
    from stillmotion.cli.keys import rotate

    rotate(_settings(data_dir), key_id, overlap)


@keys_app.command("list")
def keys_list(data_dir: DataDir = None) -> None:
    """List the keys, without their secrets."""
    from stillmotion.cli.keys import show

    show(_settings(data_dir))


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The part of the key before the colon.")],
    data_dir: DataDir = None,
) -> None:
    """Refuse a key from now on; a running server follows within seconds."""
    from stillmotion.cli.keys import revoke

    revoke(_settings(data_dir), key_id)


@webhooks_app.command("list")
def webhooks_list(
    data_dir: DataDir = None,
    delivered: Annotated[bool, typer.Option("--all", help="Also those delivered.")] = False,
) -> None:
    """List the newest webhooks that are waiting or parked."""
    from stillmotion.cli.webhooks import show

    show(_settings(data_dir), delivered)


@webhooks_app.command("redeliver")
def webhooks_redeliver(
    request_id: Annotated[str, typer.Argument(help="The request whose webhook to send.")],
    data_dir: DataDir = None,
) -> None:
    """Send a webhook again, parked or delivered: the same body under a fresh signature."""
    from stillmotion.cli.webhooks import redeliver

    redeliver(_settings(data_dir), request_id)


@webhooks_app.command("rotate-key")
def webhooks_rotate_key(
    data_dir: DataDir = None,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="Drop the old keys now: one may be known to strangers.")
    ] = False,
) -> None:
    """Publish a new signing key; it signs a day later, when receivers know it."""
    from stillmotion.cli.webhooks import rotate_key

    rotate_key(_settings(data_dir), at_once)


@models_app.command("list")
def models_list(data_dir: DataDir = None) -> None:
    """List the profiles, whether their weights are here, and their licences."""
    from stillmotion.cli.models import show

    show(_settings(data_dir))


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="The profile, such as svd.")],
    data_dir: DataDir = None,
    token: Annotated[
        str | None, typer.Option(envvar="HF_TOKEN", help="Token of your hub account, for gated weights.")
    ] = None,
    accept_licences: Annotated[
        bool, typer.Option("--accept-licences", help="You have read and accept them; asks nothing.")
    ] = False,
) -> None:
    """Fetch weights from the Hugging Face hub: shows licence and size first, resumes, verifies, locks."""
    from stillmotion.cli.models import pull

    pull(_settings(data_dir), name, token, accept_licences)


@models_app.command("import")
def models_import(
    name: Annotated[str, typer.Argument(help="The profile, such as svd.")],
    origin: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the weights.")],
    data_dir: DataDir = None,
) -> None:
    """Copy weights that are on disk: a weights folder, repositories side by side, or a hub cache."""
    from stillmotion.cli.models import bring

    bring(_settings(data_dir), name, origin)


@models_app.command("verify")
def models_verify(
    name: Annotated[str, typer.Argument(help="The profile, such as svd.")], data_dir: DataDir = None
) -> None:
    """Hash every file against models.lock; exit status 1 if one is missing or differs."""
    from stillmotion.cli.models import verify

    raise typer.Exit(verify(_settings(data_dir), name))


@models_app.command("remove")
def models_remove(
    name: Annotated[str, typer.Argument(help="The profile, such as svd.")], data_dir: DataDir = None
) -> None:
    """Delete a profile's weights from the data directory."""
    from stillmotion.cli.models import remove

    remove(_settings(data_dir), name)


@app.command()
def doctor(data_dir: DataDir = None, profile: ProfileName = None) -> None:
    """Check what the server needs: each line says ok or what to do; exit status 1 if something is wrong."""
    from stillmotion.cli.doctor import doctor
    from stillmotion.settings import load_settings

    raise typer.Exit(doctor(load_settings({"data_dir": data_dir, "profile": profile})))


@app.command()
def settings(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print every setting with its value, default, unit and where the value came from."""
    from stillmotion.cli.settings import show

    show(json)


@app.command()
def env(data_dir: DataDir = None) -> None:
    """Print the shell lines that lead fal's clients to the running server, and what they do not reach."""
    from stillmotion.cli.env import show
    from stillmotion.settings import shell_environment

    show(_settings(data_dir), shell_environment())


@app.command()
def run(
    command: Annotated[list[str], typer.Argument(help="The program and its words, after --.")],
    data_dir: DataDir = None,
) -> None:
    """Run a program whose every call to fal's hosts ends at the running server, uploads included."""
    from stillmotion.cli.run import run
    from stillmotion.settings import shell_environment

    raise typer.Exit(run(_settings(data_dir), command, shell_environment()))


@app.command()
def bench(
    data_dir: DataDir = None,
    endpoint: Annotated[str, typer.Option(help="The endpoint to ask.")] = "fal-ai/fast-svd-lcm/text-to-video",
    duration: Annotated[float, typer.Option(min=1, help="Seconds to keep submitting.")] = 60,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in the queue at once.")] = 2,
    price: Annotated[
        float | None, typer.Option(min=0, help="What the machine costs an hour; adds the cost of a film.")
    ] = None,
) -> None:
    """Measure the running server: films per minute, seconds and cost of each, latencies."""
    from stillmotion.cli.bench import bench

    raise typer.Exit(bench(_settings(data_dir), endpoint, duration, concurrency, price))


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="Folder to write: a new or an empty one.")],
    data_dir: DataDir = None,
    media: Annotated[bool, typer.Option("--media", help="Copy films and uploads too.")] = False,
) -> None:
    """Copy the database, consistent also beside a running server; with --media the files too."""
    from stillmotion.cli.backup import backup

    backup(_settings(data_dir), target, media)


def _settings(data_dir: Path | None) -> Any:
    from stillmotion.settings import load_settings

    return load_settings({"data_dir": data_dir})


def main() -> None:
    """Run the command line; what is foreseen is one line on stderr, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Where a terminal has no dash or ellipsis, a question mark will do.
            stream.reconfigure(errors="replace")
    try:
        app()
    except StillmotionError as error:
        print(f"stillmotion: {error}", file=sys.stderr)
        sys.exit(1)
    except (PermissionError, NotADirectoryError) as error:
        print(
            f"stillmotion: {error.filename}: {error.strerror}. Run this as the user whose data directory it "
            "is, or choose another with --data-dir.",
            file=sys.stderr,
        )
        sys.exit(1)
