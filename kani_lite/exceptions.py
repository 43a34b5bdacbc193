"""Every exception that kani_lite raises on purpose."""

from __future__ import annotations


class KaniException(Exception):
    """Base of all exceptions of this package."""


class PromptTooLong(KaniException):
    """The always-included messages and the functions alone leave no room in the context."""


class MessageTooLong(KaniException):
    """The newest message alone doesn't fit the context beside the always-included ones."""


class PromptError(KaniException):
    """These messages can't be written in the model's prompt format."""


class EngineError(KaniException):
    """An engine can't be built, can't run here, or is closed; the text says why and what to do. `temporary`: whether
    the same request may succeed later."""

    temporary: bool = False


class MissingModelDependencies(EngineError):
    """A package that this engine needs isn't installed; the text names the extra to install."""


class FunctionSpecError(KaniException):
    """A function's signature can't be described to a model."""


class FunctionCallException(KaniException):
    """A call that the model made went wrong. `retry`: whether the model may try again."""

    def __init__(self, retry: bool) -> None:
        super().__init__()
        self.retry = retry


class WrappedCallException(FunctionCallException):
    """A function raised, or its arguments were not valid: `original` is the exception."""

    def __init__(self, retry: bool, original: BaseException) -> None:
        super().__init__(retry)
        self.original = original

    def __str__(self) -> str:
        return str(self.original) or type(self.original).__name__


class NoSuchFunction(FunctionCallException):
    """The model called a function that was not offered to it."""

    def __init__(self, name: str) -> None:
        super().__init__(True)
        self.name = name

    def __str__(self) -> str:
        return f"The function {self.name!r} is not defined. Only use the provided functions."


class RoundEnded(KaniException):
    """This round was suspended while another one began on the same chat, which ended it."""


class MissingMessagePartType(KaniException):
    """A saved message has a part whose class isn't defined; import the module that defines it, then load again."""

    def __init__(self, fqn: str, msg: str) -> None:
        super().__init__(msg)
        self.fqn = fqn
        self.msg = msg
