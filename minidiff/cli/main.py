"""The command line: its groups and commands. Try `minidiff --help`."""

from __future__ import annotations

import click

from minidiff.cli.clip import clip
from minidiff.cli.demo import demo
from minidiff.cli.edit import edit
from minidiff.cli.evaluate import evaluate, evaluate_classifier, evaluate_semantic
from minidiff.cli.guide import guide
from minidiff.cli.sample import models, sample
from minidiff.cli.score import score
from minidiff.cli.train import train, train_classifier, train_clip


class Group(click.Group):
    """Report errors that a user can fix in one sentence; others are bugs and show a traceback."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            click.echo(str(stop) or "stopped", err=True)
            ctx.exit(130)
        except BrokenPipeError:  # `minidiff models | head`: click ends quietly
            raise
        except (ValueError, OSError, FloatingPointError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="minidiff")
def main() -> None:
    """Image diffusion from scratch: train a model, sample from one, edit pictures with it."""
    from minidiff.device import keep_memory

    keep_memory()


COMMANDS = (clip, demo, edit, evaluate, evaluate_classifier, evaluate_semantic, guide, models)
for command in (*COMMANDS, sample, score, train, train_classifier, train_clip):
    main.add_command(command)
