"""A plug-in that a conf names, with its settings."""

from dataclasses import dataclass

from tasks.base import Config


@dataclass(frozen=True)
class Choice:
    """A plug-in by name and its settings: `lstm` and an LSTM.Config."""

    name: str
    config: Config
