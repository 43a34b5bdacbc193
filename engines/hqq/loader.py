"""Makes a quantised model: from a model's own weights, or from what hqq saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from kani_lite.exceptions import EngineError

from . import files
from .backends import Layer, choose, make_layer
from .config import HqqConfig, LayerSettings
from .layers import HqqLinear
from .weight import HqqWeight

_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")
_CONFIG_OPTIONS = (*_HUB_OPTIONS, "trust_remote_code")


@dataclass
class HqqLoader:
    """Stands where a transformers class does: `from_pretrained` gives the quantised model. `settings`: None if the user
    gave none. `backends` says afterwards what computes each layer."""

    settings: LayerSettings | None
    quantize_on_fly: bool | None
    backend: str
    dtype: torch.dtype | None
    device: str
    compile: bool
    model_cls: Any
    backends: dict[str, str] = field(default_factory=dict)

    def from_pretrained(self, name: str, *, output_loading_info: bool, **options: Any) -> tuple[Any, dict[str, Any]]:
        """The model, and what transformers says of the loading. `options`: as for a transformers class.

        Raises EngineError before any weight is loaded if layers can't be quantised or computed as asked.
        """
        path = self._quantized_file(name, options)
        if path is None:
            model, info = self._quantize(name, options)
        else:
            model, info = self._load(name, path, options), {}
        model.is_quantized = model.hqq_quantized = True
        if self.compile and self.device != "cpu":  # there, tile by tile is faster than what torch compiles
            for module in model.modules():
                if isinstance(module, HqqLinear):
                    module.compile_forward()
        return model, info

    def _quantized_file(self, name: str, options: dict[str, Any]) -> Path | None:
        """Where hqq's weights of this model are; None if it is to be quantised now."""
        if Path(name).is_dir():
            file = Path(name, files.WEIGHTS)
            found = file if file.is_file() else None
            if found and self.quantize_on_fly:
                raise EngineError(f"The model in {name!r} is quantised already: leave quantize_on_fly out.")
        elif self.quantize_on_fly:
            return None
        else:
            try:
                found = Path(hf_hub_download(name, files.WEIGHTS, **_picked(options, _HUB_OPTIONS)))
            except EntryNotFoundError:
                found = None
        if found is None and self.quantize_on_fly is False:
            raise EngineError(
                f"The model {name!r} isn't quantised by hqq (it has no {files.WEIGHTS}): pass quantize_on_fly=True."
            )
        return found

    # ==== quantising now ====

    def _quantize(self, name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        skeleton = self._skeleton(name, options)
        shapes = {key: (one.out_features, one.in_features) for key, one in _linears(skeleton).items()}
        plan = (self.settings or LayerSettings.read(None)).plan(shapes)
        layers = [
            Layer(key, shapes[key], setting.nbits, setting.group(shapes[key]), setting.axis)
            for key, setting in plan.items()
        ]
        self.backends, dtype = choose(self.backend, layers, self.device, self.dtype)
        loader = self.model_cls or transformers.AutoModelForCausalLM
        model, info = loader.from_pretrained(name, output_loading_info=True, **(options | {"dtype": dtype}))
        if not info.get("missing_keys"):
            with _one_thread():
                for key, setting in plan.items():
                    self._quantize_layer(model, key, setting, dtype)
            model.to(self.device)
        return model, info

    def _quantize_layer(self, model: nn.Module, name: str, setting: HqqConfig, dtype: torch.dtype) -> None:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        own = linear._parameters.get("bias")
        bias = None if own is None else own.detach().to(self.device)
        weight = HqqWeight.quantized(linear.weight.detach().to(self.device), bias, setting, dtype)
        _replace(model, name, make_layer(self.backends[name], weight, self.device))

    # ==== quantised before ====

    def _load(self, name: str, path: Path, options: dict[str, Any]) -> Any:
        states = files.read_weights(path)
        model = self._skeleton(name, options)
        weights = {key: HqqWeight.from_state(state) for key, state in states.items() if "W_q" in state}
        self._check(name, model, weights)
        layers = [
            Layer(key, one.shape, one.meta["nbits"], one.meta["group_size"], one.meta["axis"])
            for key, one in weights.items()
        ]
        self.backends, dtype = choose(self.backend, layers, self.device, self.dtype)
        for key, weight in weights.items():
            _replace(model, key, make_layer(self.backends[key], weight.to(self.device, dtype), self.device))
        files.put_states(model, states, self.device, dtype)
        if (generation := files.generation_config(name, _picked(options, _HUB_OPTIONS))) is not None:
            model.generation_config = generation
        return model

    def _check(self, name: str, model: nn.Module, weights: dict[str, HqqWeight]) -> None:
        linears = _linears(model)
        for key, weight in weights.items():
            if key not in linears or weight.shape != (linears[key].out_features, linears[key].in_features):
                raise EngineError(f"The quantised layer {key!r} in {name!r} is none of the model in its config.json.")
            wanted = self.settings.of(key) if self.settings else None
            if wanted is not None and not weight.has(wanted):
                raise EngineError(
                    f"The model in {name!r} is quantised already, {key!r} to {weight.described}, and "
                    "quantization_config asks for something else: leave it out."
                )

    def _skeleton(self, name: str, options: dict[str, Any]) -> Any:
        """The model without its weights."""
        config = transformers.AutoConfig.from_pretrained(name, **_picked(options, _CONFIG_OPTIONS))
        cls: Any = self.model_cls or transformers.AutoModelForCausalLM
        how = _picked(options, ("attn_implementation",))
        if hasattr(cls, "from_config"):
            make, how = cls.from_config, how | _picked(options, ("trust_remote_code",))
        else:
            make = cls._from_config
        with init_empty_weights():
            return make(config, **how)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The solver works in short steps on small tiles, where threads mostly wait for each other: one takes 13 s for
    360 M weights where two took 50 to 600 s, by what else ran on the machine's two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _picked(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}
