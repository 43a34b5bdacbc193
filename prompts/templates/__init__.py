"""Chat templates by name, by file or as they are. The named ones are ours, written from the published formats."""

from __future__ import annotations

from functools import cache
from os import PathLike
from pathlib import Path

from kani_lite.exceptions import PromptError

_HERE = Path(__file__).parent
_SUFFIX = ".jinja"


def template_names() -> list[str]:
    """The names that `chat_template=` takes."""
    return sorted(path.stem for path in _HERE.glob(f"*{_SUFFIX}"))


@cache
def named_template(name: str) -> str:
    """The text of a template of ours. Raises PromptError, which lists the names, for an unknown one."""
    if name not in template_names():
        raise PromptError(
            f"There is no chat template {name!r}: give one of {', '.join(template_names())}, the path of a "
            f"{_SUFFIX} file, or a template's text."
        )
    return (_HERE / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def find_template(template: str | PathLike[str]) -> str:
    """The text of a template given by its name, by the path of its file, or as it is.

    Raises PromptError if it is none of these, or if the file can't be read.
    """
    if isinstance(template, str) and ("{{" in template or "{%" in template or "\n" in template):
        return template
    path = Path(template)
    if isinstance(template, PathLike) or path.suffix == _SUFFIX or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise PromptError(f"The chat template {str(path)!r} can't be read: {e}") from e
    return named_template(template)
