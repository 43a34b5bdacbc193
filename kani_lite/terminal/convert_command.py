"""`kani-lite convert KIND MODEL [OUT]`: a model of transformers in another format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from .sanitize import sanitize

_DESCRIPTION = "Convert a model of transformers (a folder, a hub name, or 'nano') to the format of another engine."


class _Converter(NamedTuple):
    """A module with `add_arguments(parser)` and `convert(model, out, **options)`, and what it makes."""

    module: str
    about: str
    out: str


CONVERTERS = {
    "gguf": _Converter("kani_lite.engines.llamacpp.convert", "a GGUF file, for llama.cpp", "a new file"),
    "onnx": _Converter("kani_lite.engines.onnx.convert", "a folder in ONNX format, for onnxruntime", "a new folder"),
}


class _ConverterParser(argparse.ArgumentParser):
    """Asks its converter for the options when it is used: importing it takes longer than most commands."""

    converter: str | None = None

    def parse_known_args(  # type: ignore[override]  # its overloads, of which argparse itself calls this one
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        if self.converter is not None:
            import_module(self.converter).add_arguments(self)
            self.converter = None
        return super().parse_known_args(args, namespace)


def add_convert_parser(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "convert", allow_abbrev=False, help="convert a model for another engine", description=_DESCRIPTION
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=_ConverterParser)
    for kind, (module, about, out) in CONVERTERS.items():
        one = kinds.add_parser(kind, allow_abbrev=False, help=about, description=f"Make {about}.")
        one.converter = module
        one.add_argument("model", metavar="MODEL", help="a folder, a hub name, or 'nano' for the embedded model")
        one.add_argument(
            "out", metavar="OUT", nargs="?", help=f"{out} (default: the model's name, in the working folder)"
        )


def run_convert(arguments: argparse.Namespace) -> int:
    """Converts the model and prints where it is; the exit status. Raises KaniException if that can't be done."""
    options = {name: value for name, value in vars(arguments).items() if name not in _OURS}
    module = import_module(CONVERTERS[arguments.kind].module)
    print(sanitize(str(module.convert(arguments.model, arguments.out, **options))))
    return 0


_OURS = {"command", "kind", "model", "out"}
