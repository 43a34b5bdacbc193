"""Loads a tokenizer and a model from a folder or from the hub, and says plainly why that can't be done."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as hf_logging

from kani_lite.engines.quantization import (
    Int4Config,
    Int8Config,
    PackedConfig,
    quantization_of,
    reading_files_piecewise,
)
from kani_lite.exceptions import EngineError, MissingModelDependencies

from .hub import check_hub, is_fetched

_HQQ = "qmodel.pt"  # what hqq saves
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", _HQQ)
_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")
_NO_LENGTH = 10**9  # tokenizers without a length say 1e30
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_CONFIG_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "trust_remote_code", "subfolder")
_EXTRAS = {  # what transformers calls a package that it misses: what to install
    "bitsandbytes": "kani-lite[bitsandbytes]",
    "compressed-tensors": "kani-lite[compressed-tensors]",
    "compressed_tensors": "kani-lite[compressed-tensors]",
    "gptqmodel": "kani-lite[gptq]",
    "optimum": "kani-lite[gptq]",
    "gguf": "kani-lite[gguf]",
}


@dataclass
class Source:
    """Where a model comes from. `local`: a folder, so the network is never asked."""

    name: str
    local: bool
    options: dict[str, Any]

    @property
    def described(self) -> str:
        return f"the folder {self.name!r}" if self.local else f"the model {self.name!r}"


def find_source(
    model_id: str | os.PathLike[str], token: Any, trust_remote_code: bool, load_kwargs: dict[str, Any]
) -> Source:
    """A folder, a model that was fetched before, or one that the hub has; only the last needs the network.

    Raises EngineError if it is none of them, or a folder without a usable config.
    """
    name = os.path.expanduser(os.fspath(model_id))
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if not name:
        raise EngineError("The model's name is empty: give a folder, or a name on the Hugging Face hub.")
    gguf = load_kwargs.get("gguf_file")
    if gguf is None and name.endswith(".gguf") and os.path.isfile(name):
        name, gguf = os.path.split(os.path.abspath(name))
    options |= {} if gguf is None else {"gguf_file": gguf}
    if os.path.isdir(name):
        if gguf is None:
            _check_folder(Path(name), trust_remote_code)
        else:
            _check_gguf(Path(name), gguf)
        return Source(name, True, options | {"local_files_only": True})
    if os.path.isfile(name):
        raise EngineError(f"{name!r} is a file: give the folder that holds the model's config.json and weights.")
    meant_path = (
        isinstance(model_id, os.PathLike) or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    )
    if meant_path:
        raise EngineError(f"There is no folder {name!r} (looked in {os.getcwd()!r}): check the path of the model.")
    if is_fetched(name, options | load_kwargs):
        return Source(name, False, options | {"local_files_only": True})
    options |= {} if token is None else {"token": token}
    where = options | load_kwargs
    if not where.get("local_files_only"):
        check_hub(name, where)
    return Source(name, False, options)


def _check_gguf(folder: Path, file: str) -> None:
    if not (folder / file).is_file():
        there = ", ".join(repr(path.name) for path in sorted(folder.glob("*.gguf"))[:5]) or "no GGUF file"
        raise EngineError(f"The folder {str(folder)!r} has no file {file!r} (it has {there}): check gguf_file.")


def _check_folder(folder: Path, trust_remote_code: bool) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise EngineError(f"The folder {str(folder)!r} has no config.json: give the folder that a model was saved to.")
    try:
        config = json.loads(path.read_text("utf-8"))
        kind = config["model_type"] if isinstance(config, dict) else None
    except KeyError:
        kind = None
    except (OSError, ValueError) as error:
        raise EngineError(f"{str(path)!r} can't be read ({_short(error)}): fetch or save the model again.") from error
    if not isinstance(kind, str):
        raise EngineError(f"{str(path)!r} names no model_type: it isn't the config of a transformers model.")
    if kind not in transformers.CONFIG_MAPPING and not (trust_remote_code and "auto_map" in config):
        way = (
            "pass model_load_kwargs={'trust_remote_code': True} if you trust its own code"
            if "auto_map" in config
            else ""
        )
        way = way or f"a newer transformers than {transformers.__version__} may know it"
        raise EngineError(f"The model in {str(folder)!r} is of the unknown type {kind!r}: {way}.")
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise EngineError(
            f"The folder {str(folder)!r} has no weights (*.safetensors or *.bin): fetch or save them again."
        )


def load_tokenizer(source: Source, tokenizer_cls: Any, kwargs: dict[str, Any]) -> Any:
    """Raises EngineError with the reason in one sentence."""
    loader = tokenizer_cls or transformers.AutoTokenizer
    options = source.options | kwargs
    if source.local and "gguf_file" not in kwargs and any(Path(source.name, file).is_file() for file in _TOKENIZERS):
        options.pop("gguf_file", None)  # a tokenizer of its own says more than what a GGUF file keeps of one
    with _quiet(), _explained(source, "tokenizer"):
        return loader.from_pretrained(source.name, **options)


def load_model(source: Source, model_cls: Any, kwargs: dict[str, Any], device: str | None) -> Any:
    """The model in evaluation mode, on `device` unless `device_map` or a quantisation says where its parts are.

    A model that was quantised beforehand is run as it is; where that isn't possible on this device a warning says how
    it runs instead. Raises EngineError with the reason in one sentence, also if the checkpoint lacks weights.
    """
    loader = model_cls or transformers.AutoModelForCausalLM
    if model_cls is None and Path(source.name, _HQQ).is_file():
        raise EngineError(f"The model in {source.described} was quantised by HQQ: load it with HqqEngine.")
    options = source.options | kwargs
    if isinstance(loader, type):  # of transformers, which reads config.json; others have files of their own
        options = _as_it_is_quantized(source, options, device)
    quantizing = kwargs.get("quantization_config") is not None  # that takes a while: progress shows
    with _quiet(bars=quantizing), reading_files_piecewise(), _explained(source, "weights"):
        model, info = loader.from_pretrained(source.name, output_loading_info=True, **options)
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise EngineError(
            f"The weights in {source.described} lack {len(missing)} tensors, the first is {missing[0]!r}: "
            "they are not those of a complete causal language model."
        )
    for note in getattr(getattr(model, "hf_quantizer", None), "notes", ()):
        warnings.warn(f"In {source.described} {note}", stacklevel=4)
    placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
    if not placed:
        model.to(device or default_device())
    return model.eval()


def _as_it_is_quantized(source: Source, options: dict[str, Any], device: str | None) -> dict[str, Any]:
    """What transformers is to be told so that a model that was quantised beforehand loads on this device."""
    config = None if options.get("gguf_file") else _config_of(source, options)
    found = {"quant_method": "gguf"} if config is None else quantization_of(config)
    if not found:
        return options
    method = str(found.get("quant_method", "bitsandbytes"))
    also = options.get("quantization_config")
    if also is not None and str(getattr(also.quant_method, "value", also.quant_method)) != method:
        raise EngineError(f"The model in {source.described} is quantised already ({method}): leave quantize out.")
    if method == "hqq":
        raise EngineError(
            f"The model in {source.described} was saved by transformers 4 with HQQ's layers, which transformers 5 "
            "doesn't read: load it with HqqEngine."
        )
    place = options.get("device_map")
    if config is not None and PackedConfig.reads(found) and _is_cpu(place, device):
        config.quantization_config = PackedConfig(found).to_dict()
        own = {"config": config}
        if options.get("dtype") == "auto" and getattr(config, "dtype", None) is torch.float16:
            own["dtype"] = torch.bfloat16  # what the layers compute in, and CPUs are slow in float16
        return {key: value for key, value in options.items() if key != "device_map"} | own
    if place is None and method != "gguf" and not method.startswith("kani_"):
        return options | {"device_map": {"": device or default_device()}}  # it can't be moved afterwards
    return options


def _config_of(source: Source, options: dict[str, Any]) -> Any:
    if options.get("config") is not None:
        return options["config"]
    asked = {key: options[key] for key in _CONFIG_OPTIONS if key in options}
    with _quiet(), _explained(source, "config"):
        return transformers.AutoConfig.from_pretrained(source.name, **asked)


def _is_cpu(device_map: Any, device: str | None) -> bool:
    if device_map in (None, "auto"):
        return (device or default_device()) == "cpu"
    return device_map in ("cpu", {"": "cpu"})


def default_device() -> str:
    """The accelerator that works here, not merely one that torch was built for."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def model_options(load_kwargs: dict[str, Any], quantize: Any, device: str | None) -> dict[str, Any]:
    """`model_load_kwargs` as transformers 5 takes them: weights in the dtype they were saved in unless asked otherwise,
    `load_in_4bit`/`load_in_8bit` as bitsandbytes' config. `quantize` is "4bit" or "8bit" for the best way that the
    device has (on a CPU torch's own kernels, else bitsandbytes), or a quantisation config. Raises EngineError where
    they contradict each other."""
    kwargs = dict(load_kwargs)
    if "torch_dtype" in kwargs:
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    kwargs.setdefault("dtype", "auto")
    wanted = [(bits, _bitsandbytes) for bits in ("4bit", "8bit") if kwargs.pop(f"load_in_{bits}", False)]
    if quantize in ("4bit", "8bit"):
        on_cpu = (device or default_device()) == "cpu"
        wanted.append((quantize, _for_cpu if on_cpu else _bitsandbytes))
    elif isinstance(quantize, str):
        raise EngineError(f"quantize={quantize!r} is unknown: give '4bit', '8bit', a quantisation config or None.")
    asked = len(wanted) + ("quantization_config" in kwargs) + (quantize is not None and not isinstance(quantize, str))
    if asked > 1:
        raise EngineError(
            "Several quantisations are asked for: give one of quantize, load_in_4bit, load_in_8bit and "
            "quantization_config."
        )
    if wanted:
        bits, way = wanted[0]
        kwargs["quantization_config"] = way(bits)
        if way is _bitsandbytes:  # weights are quantised while they are loaded, where they will stay
            kwargs.setdefault("device_map", {"": device or default_device()})
        elif kwargs.get("device_map") in ("auto", "cpu", {"": "cpu"}):
            del kwargs["device_map"]
    elif asked and quantize is not None:
        kwargs["quantization_config"] = quantize
    return kwargs


def _for_cpu(bits: str) -> Any:
    return Int4Config() if bits == "4bit" else Int8Config()


def _bitsandbytes(bits: str) -> Any:
    for package in ("bitsandbytes", "accelerate"):
        if find_spec(package) is None:
            raise MissingModelDependencies(
                f"Loading in {bits} needs the package {package!r}, which isn't installed: "
                "pip install 'kani-lite[bitsandbytes]'"
            )
    if bits == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    # nf4: better than fp4 at the same size, and the only one with a fast kernel on CPUs
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def context_length(config: Any, tokenizer: Any, source: Source) -> int:
    """How many tokens the model was made for. Raises EngineError if neither config nor tokenizer says so."""
    for part in (config.get_text_config(decoder=True), config):
        for name in _LENGTH_NAMES:
            length = getattr(part, name, None)
            if isinstance(length, int) and 0 < length < _NO_LENGTH:
                return length
    length = getattr(tokenizer, "model_max_length", None)
    if isinstance(length, int) and 0 < length < _NO_LENGTH:
        return length
    raise EngineError(f"The context length of {source.described} isn't known: pass max_context_size=.")


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a reply, by the generation config, the config or the tokenizer."""
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or ())
    return sorted(found)


@contextmanager
def _quiet(bars: bool = False) -> Iterator[None]:
    """No progress bars (but with `bars`) and no advice of transformers while a model loads; then all as it was."""
    level, shown = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    if not bars:
        hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        if shown:
            hf_logging.enable_progress_bar()


@contextmanager
def _explained(source: Source, what: str) -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except ImportError as error:
        named = (extra for package, extra in _EXTRAS.items() if package in str(error).lower())
        raise MissingModelDependencies(
            f"The {what} of {source.described} can't be loaded, a package is missing ({_short(error)}): "
            f"pip install '{next(named, 'kani-lite[huggingface]')}'"
        ) from error
    except Exception as error:  # transformers and the formats below it raise about everything
        raise EngineError(_reason(source, what, error)) from error


def _reason(source: Source, what: str, error: Exception) -> str:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"The {what} of {source.described} don't fit into memory: try quantize='4bit' or a smaller model."
    if source.local:
        return f"The {what} in {source.described} can't be loaded ({_short(error)}): fetch or save the model again."
    if "gated" in text or "401" in text or "403" in text:
        return f"The hub doesn't give out {source.name!r} to you: check the name, ask for access, and pass token=."
    return f"The {what} of {source.described} can't be loaded ({_short(error)})."


def _short(error: BaseException) -> str:
    """An error's first line, without its end."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.rstrip(".") if len(line) <= 160 else line[:157] + "..."
