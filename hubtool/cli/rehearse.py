"""`hubtool rehearse`."""

import signal
from contextlib import suppress
from pathlib import Path

import click

from hubtool.cli.console import Console
from hubtool.cli.options import FOLDER, examples, with_console


@click.command("rehearse", epilog=examples("hubtool rehearse", "hubtool rehearse --data ./rehearsal --port 0"))
@click.option("--port", type=click.IntRange(0, 65535), default=8700, show_default=True, help="0 takes a free one.")
@click.option("--data", type=FOLDER, default=Path("rehearsal"), show_default=True, help="Where the repos are kept.")
@click.option("--discard", is_flag=True, help="Keep hashes and headers of large files, but not their bytes.")
@with_console
def command(console: Console, port: int, data: Path, *, discard: bool) -> None:
    """Serve the Hub's protocol on this machine.

    It listens on 127.0.0.1 only. Any Hub client can use it.
    """
    from hubtool.rehearsal import RehearsalHub

    with RehearsalHub(data, port, discard=discard) as hub:
        document = {"endpoint": hub.endpoint, "data": str(data), "discard": discard}
        console.answer(
            document,
            lambda: (
                f"{hub.endpoint}\nuse it with HF_ENDPOINT={hub.endpoint} "
                f'HF_TOKEN="$(cat {data}/token)"; Ctrl-C stops it'
            ),
        )
        # The way it is meant to end: nothing is cut off, so nothing needs the watch that ends an interrupted run.
        signal.set_wakeup_fd(-1)
        with suppress(KeyboardInterrupt):
            hub.wait()
