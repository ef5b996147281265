"""What the commands of analysis are asked alike: which sweep, kept where, printed how."""

from typing import Annotated, Literal

import typer

NameArgument = Annotated[str, typer.Argument(help="Name of the sweep.")]
StoreOption = Annotated[
    str | None,
    typer.Option(help="Where the sweep is kept: folder:PATH or an MLflow tracking URI."),
]
FormatOption = Annotated[
    Literal["table", "csv", "json"], typer.Option("--format", help="How to print.")
]
