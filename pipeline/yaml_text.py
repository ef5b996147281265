"""YAML that a person wrote, looked through before anything is made of it.

Loaders resolve anchors and nest as deep as they are told: ten lines can stand for a billion values,
and a file of brackets ends in Python's own stack. So the events of the text are counted first, an
alias with all that it stands for, and whatever is beyond any conf is refused with a ConfigError.
Whole numbers that no column and no generator holds are refused once they are read: the longest of
them Python will compute with and yet not print, not even to say what is wrong with them.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline import plain_file
from pipeline.faults import ConfigError, clipped

MOST_BYTES = 2**18
MOST_VALUES = 20_000
MOST_LEVELS = 50
MOST_BITS = 63
"""Of whole numbers, their sign aside."""
UNREADABLE = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    AssertionError,
)
"""What loaders raise of text that is YAML and cannot be made values of: a key that no mapping can
have, a date that is none, an interpolation without an end."""
_MOST_DIGITS = 1_000
# In any base, any notation: whatever a loader might take for a number.
_LIKE_A_NUMBER = re.compile(r"[-+.0-9][-+.:_0-9A-Za-z]*")
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path) -> str:
    """The text of a file that `check` has nothing against. Raises ConfigError."""
    try:
        with plain_file.opened(path) as source:
            text = source.read(MOST_BYTES + 1).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    check(text, str(path))
    return text


def load(path: Path) -> Any:
    """What the YAML in a file stands for, plain values only. Raises ConfigError."""
    text = read(path)
    try:
        tree = yaml.safe_load(text)
    except UNREADABLE as error:
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path}: not valid YAML ({clipped(brief)})") from error
    check_numbers(tree, str(path))
    return tree


def check(text: str, where: str, said: str = "") -> None:
    """Raises ConfigError, which begins with `where`; `said` goes before `not valid YAML`."""
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{where}: must be smaller than {MOST_BYTES:,} bytes")
    try:
        _check_events(text, where)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: {said}not valid YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{where}: {said}not valid YAML ({str(error).splitlines()[0]})"
        ) from error


def check_numbers(tree: Any, where: str) -> None:
    """Raises ConfigError, which begins with `where`, for a whole number of too many bits."""
    left: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    while left:
        path, node = left.pop()
        if isinstance(node, int) and node.bit_length() > MOST_BITS:
            raise ConfigError(
                clipped(f"{where} {'.'.join(map(str, path))}".rstrip())
                + f": a whole number must lie between -2^{MOST_BITS} and 2^{MOST_BITS}, got one of "
                f"{node.bit_length():,} bits"
            )
        if isinstance(node, dict):
            # Keys first, as values of their mapping, so that a path can say them.
            left += [((*path, key), value) for key, value in node.items()]
            left += [(path, key) for key in node]
        elif isinstance(node, list | tuple | set):
            left += [((*path, place), value) for place, value in enumerate(node)]


def _may_be_a_number(event: yaml.ScalarEvent) -> bool:
    if event.tag in _NUMBER_TAGS:
        return True
    # The loader in C says "" of what stands without quotes, the one in Python None.
    return not event.style and _LIKE_A_NUMBER.fullmatch(event.value) is not None


def _check_events(text: str, where: str) -> None:
    sizes: dict[str, int | None] = {}
    """Values below an anchor; None while it is open."""
    open_: list[tuple[str | None, int]] = []
    count = 0
    event: Any
    for event in yaml.parse(text, Loader=_LOADER):
        line = f"{where} line {event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, count))
            count += 1
            if event.anchor:
                sizes[event.anchor] = None
            if len(open_) > MOST_LEVELS:
                raise ConfigError(f"{line}: must be nested no deeper than {MOST_LEVELS} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
            if len(event.value) > _MOST_DIGITS and _may_be_a_number(event):
                raise ConfigError(f"{line}: a number has at most {_MOST_DIGITS} digits")
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(str(event.anchor), 0)
            if size is None:
                raise ConfigError(
                    f"{line}: not valid YAML (*{event.anchor} must not stand within "
                    f"&{event.anchor})"
                )
            count += size
        if count > MOST_VALUES:
            raise ConfigError(
                f"{line}: must hold at most {MOST_VALUES:,} values, each alias counted with what "
                "it stands for"
            )
