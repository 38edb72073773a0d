"""The command line. Commands import what they need when they run, so that --help is quick."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

import selfloop
from selfloop.commands import (
    after,
    auditing,
    before,
    evaluating,
    proving,
    running,
    serving,
    start,
    studying,
)
from selfloop.commands.output import AsJson, one_line, put_json, say, tell
from selfloop.engines.launching import follows, launched

WELCOME = """\
selfloop: vision-language models that improve themselves, and prove it.

Your first half hour, on your own pictures:
  selfloop init IMAGES --labels LABELS.jsonl   splits, verifier and a run.yaml
  selfloop probe                               twenty answers: what there is to build on
  selfloop plan                                which method fits and why; time, memory, gain
  selfloop run                                 collect, verify, learn, decide; goes on after a kill
  selfloop show RUN                            what came of it, down to one sample

Before:  selfloop demo (the whole loop, no download)   selfloop doctor [MODEL]
Beside:  selfloop check    selfloop prove    selfloop export RUN    selfloop report RUN
         selfloop eval MODEL [OTHER] --on SET    selfloop serve MODEL    selfloop study labels
         selfloop audit VERIFIER (attack it before it teaches anything)
`selfloop COMMAND --help` says more.
"""


class OneLine(TyperGroup):
    """Whatever goes wrong is one line on stderr: misuse, bad input, interruption, our own bugs."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None,
             complete_var: str | None = None, standalone_mode: bool = True,
             windows_expand_args: bool = True, **extra: Any) -> Any:
        """Run the command line; exits with 0, 1, 2 or 130 unless standalone_mode is False."""
        words = [str(word) for word in (sys.argv[1:] if args is None else args)]
        try:
            with one_line(lambda: shlex.join(["selfloop", *words])):
                code = super().main(args, prog_name, complete_var, False, windows_expand_args,
                                    **extra)
        except typer.Exit as done:
            code = done.exit_code
        except Exception as error:
            # Typer may carry a Click of its own, so usage errors are known by what they can do.
            if not hasattr(error, "format_message"):
                raise
            tell("error: " + " ".join(error.format_message().split())
                 + _help_for(words, self.commands))
            code = 2
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Here because Typer swallows interruptions further out."""
        words = [str(word) for word in (*getattr(ctx, "_protected_args", ()), *ctx.args)]
        with one_line(lambda: shlex.join(["selfloop", *words])):
            return super().invoke(ctx)


def _help_for(words: Sequence[str], commands: Iterable[str]) -> str:
    """Where to read on: the command's own help, where there is such a command."""
    command = f" {words[0]}" if words and words[0] in commands else ""
    return f" (see `selfloop{command} --help`)"


main = typer.Typer(
    cls=OneLine, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Vision-language models that improve themselves, and prove it.")


@main.callback(invoke_without_command=True)
def _start(ctx: typer.Context) -> None:
    """Vision-language models that improve themselves, and prove it."""
    if launched() > 1:
        from selfloop.engines.starting import crew_of, follow

        if follows():  # every process runs the command line; the first one does what it says
            follow()
            raise typer.Exit()
        crew_of(1)
    if ctx.invoked_subcommand is None:
        say(WELCOME.rstrip())


@main.command()
def version(json: AsJson = False) -> None:
    """The installed version."""
    put_json({"selfloop": selfloop.__version__}) if json else say(selfloop.__version__)


for command in (start.demo, start.doctor, start.init, before.probe, before.plan, before.check,
                running.run, proving.prove, after.show, after.export, after.report, serving.serve,
                auditing.audit):
    main.command()(command)
main.command("eval")(evaluating.evaluate)
main.add_typer(studying.study, name="study")
