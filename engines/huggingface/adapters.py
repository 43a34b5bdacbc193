"""LoRA adapters (Hu et al. 2021, section 4.1) in the folders that peft saves, on plain and on quantised layers alike.

peft puts adapters only on layers that it knows, which those of a quantised model on a CPU are not. Here a layer of any
kind is wrapped, so that nothing but its output changes, and no further package is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from math import sqrt
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file
from torch import nn

from kani_lite.engines.quantization.modules import find_module
from kani_lite.engines.runtime.generator import Generator
from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.worker import Job
from kani_lite.exceptions import EngineError

from .hub import check_hub

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.(?P<what>weight|bias)")
# what peft can do besides, by the setting that asks for it: left out, the model would say something else
_UNKNOWN = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "megatron_config": "Megatron's layers",
    "modules_to_save": "modules trained in full (modules_to_save)",
    "target_parameters": "parameters that are no layers (target_parameters)",
    "trainable_token_indices": "trained tokens",
}
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # the others change the model's own weights too

Folder = str | PathLike[str]


class LowRank(nn.Module):
    """B(A(x)), with the adapter's scale in B. `a`: (r, in_features), `b`: (out_features, r)."""

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        for name, value in (("a", a), ("b", b), ("bias", bias)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features), in x's dtype."""
        low = nn.functional.linear(x.to(self.a.dtype), self.a)
        return nn.functional.linear(low, self.b, self.bias).to(x.dtype)


class LoraLinear(nn.Module):
    """A linear layer of any kind, and what the active adapter adds to its output. `adapters` by name."""

    holds_adapters = True  # for those who save a model and must not import this

    def __init__(self, base: Any, in_features: int, out_features: int) -> None:
        super().__init__()
        self.base, self.in_features, self.out_features = base, in_features, out_features
        self.adapters: dict[str, LowRank] = {}
        self.active: LowRank | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The layer's own, without the adapter; for those who ask for its dtype or device."""
        weight: torch.Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        return getattr(self.base, "bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        out: torch.Tensor = self.base(x)
        return out if self.active is None else out + self.active(x).to(out.dtype)


class Adapters:
    """The LoRA adapters of a model by name, of which one is active or none.

    `folders`: of each adapter, its folder or its name on the hub, as peft saves them. An adapter's base_model_name is
    not compared with the model's, since folders move; the shapes of its weights are. `active`: its name; by default
    the first one is.

    Raises EngineError if a folder holds no such adapter, holds more than LoRA, or is for another model.
    """

    def __init__(
        self, folders: Mapping[str, Folder], active: str | None = None, token: str | bool | None = None
    ) -> None:
        self.names = tuple(folders)
        self._active = active or next(iter(folders), None)
        self._check(self._active)
        self._read = {name: _Adapter.read(name, folder, token) for name, folder in folders.items()}
        self._layers: dict[str, LoraLinear] = {}

    def put_on(self, model: Any) -> None:
        """Wraps the model's layers that have adapters, in place. Raises EngineError before any if one doesn't fit."""
        targets = {name: adapter.targets(model) for name, adapter in self._read.items()}
        for name, adapter in self._read.items():
            for key, module in targets[name].items():
                layer = self._layers.get(module) or self._wrap(model, module)
                layer.adapters[name] = adapter.low_rank(key, model.dtype, _device(layer.base, model))
        self._read.clear()
        self.activate(self._active)

    @property
    def active(self) -> str | None:
        return self._active

    def activate(self, name: str | None) -> None:
        """Makes another adapter the active one, or none. What a cache holds of prompts was computed with the one
        before. Raises EngineError for a name that is unknown."""
        self._check(name)
        self._active = name
        for layer in self._layers.values():
            layer.active = None if name is None else layer.adapters.get(name)

    def _check(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            there = ", ".join(map(repr, self.names)) or "none"
            raise EngineError(f"There is no adapter {name!r} (there is {there}): give one of them in adapters=.")

    def _wrap(self, model: Any, name: str) -> LoraLinear:
        base = model.get_submodule(name)
        layer = self._layers[name] = LoraLinear(base, *_features(base)).eval()
        model.set_submodule(name, layer)
        return layer


class Switch(Job):
    """Changes the active adapter on the model's thread, where no request can begin meanwhile. Fails with EngineError if
    one runs."""

    def __init__(self, generator: Generator, adapters: Adapters, name: str | None) -> None:
        super().__init__(generator, [], SamplingParams())
        self._adapters, self._name = adapters, name

    def begin(self) -> Generator:
        generator = self._generator
        self._generator = self._request = None
        assert isinstance(generator, Generator)
        if generator.busy:
            generator.step()  # those that were cancelled go with it
        if generator.busy:
            raise EngineError("The adapter can't change while a request runs: wait for its reply, or cancel it.")
        self._adapters.activate(self._name)
        generator.cache.clear()
        self.emit(self._name)
        return generator


class _Adapter:
    """What an adapter's folder holds. `pairs`: A, B and B's bias by the module's name."""

    def __init__(self, name: str, config: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        self._name, self._config = name, config
        self._refuse_more_than_lora()
        self._parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            match = _KEY.fullmatch(key.removeprefix(_PREFIX))
            if match is None or match["part"] + match["what"] == "Abias":
                raise self._error(f"has the tensor {key!r}, which is no linear layer's LoRA")
            self._parts.setdefault(match["module"], {})[match["part"] + match["what"]] = value
        if not self._parts:
            raise self._error(f"is empty: {_WEIGHTS} has no tensors")

    @classmethod
    def read(cls, name: str, where: Folder, token: str | bool | None) -> _Adapter:
        folder = _find(name, where, token)
        path = folder / _CONFIG
        if not path.is_file():
            raise EngineError(
                f"The adapter {name!r} has no {_CONFIG} in {str(folder)!r}: give the folder that peft saved."
            )
        if not (folder / _WEIGHTS).is_file():
            pickled = " as safetensors" if (folder / "adapter_model.bin").is_file() else ""
            raise EngineError(f"The adapter {name!r} has no {_WEIGHTS} in {str(folder)!r}: save it again{pickled}.")
        try:
            config = json.loads(path.read_text("utf-8"))
            tensors = load_file(folder / _WEIGHTS)
        except Exception as error:  # safetensors has an exception of its own for each of its parts
            raise EngineError(
                f"The adapter {name!r} in {str(folder)!r} can't be read ({error}): save it again."
            ) from error
        if not isinstance(config, dict):
            raise EngineError(f"The adapter {name!r} has a {_CONFIG} that isn't an object: save it again.")
        return cls(name, config, tensors)

    def _refuse_more_than_lora(self) -> None:
        kind = self._config.get("peft_type")
        if kind != "LORA":
            raise self._error(f"is of the kind {kind!r}", "only LoRA can be put on a model here")
        used = [what for setting, what in _UNKNOWN.items() if self._config.get(setting)]
        if self._config.get("bias", "none") != "none":
            used.append("trained biases")
        start = self._config.get("init_lora_weights", True)
        if start not in _PLAIN_STARTS:
            used.append(f"the start {start!r}, which changes the model's own weights")
        if used:
            raise self._error(f"uses {used[0]}", "merge it into its model with peft's merge_and_unload, and load that")

    def _error(self, what: str, way: str = "save it again with peft") -> EngineError:
        return EngineError(f"The adapter {self._name!r} {what}: {way}.")

    def targets(self, model: Any) -> dict[str, str]:
        """The names of the model's layers by the adapter's. Raises EngineError if they or their shapes differ."""
        found = {}
        for key, parts in self._parts.items():
            if missing := {"Aweight", "Bweight"} - parts.keys():
                raise self._error(f"lacks the half {missing.pop()[0]} of {key!r}")
            module = find_module(model, key, _takes_adapters)
            if module is None:
                raise self._error(f"is for another model: this one has no linear layer {key!r}", "give the model's own")
            width, out = _features(model.get_submodule(module))
            a, b = parts["Aweight"], parts["Bweight"]
            rank = self._of("rank_pattern", key, "r")
            if tuple(a.shape) != (rank, width) or tuple(b.shape) != (out, rank):
                raise self._error(
                    f"has {key!r} as {tuple(a.shape)} and {tuple(b.shape)}, and rank {rank} on this model's layer is "
                    f"{(rank, width)} and {(out, rank)}",
                    "give the adapter of this model",
                )
            found[key] = module
        return found

    def low_rank(self, key: str, dtype: torch.dtype, device: torch.device) -> LowRank:
        parts, rank = self._parts[key], self._of("rank_pattern", key, "r")
        scale = self._of("alpha_pattern", key, "lora_alpha") / (sqrt(rank) if self._config.get("use_rslora") else rank)
        a, b = parts["Aweight"].to(device, dtype), (parts["Bweight"].float() * scale).to(device, dtype)
        bias = parts.get("Bbias")
        return LowRank(a, b, None if bias is None else (bias.float() * scale).to(device, dtype))

    def _of(self, patterns: str, key: str, default: str) -> Any:
        """A layer's own value if one of the patterns, in their order, ends its name; else that of all layers."""
        for pattern, value in (self._config.get(patterns) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", key):
                return value
        value = self._config.get(default)
        if not isinstance(value, int | float) or value <= 0:
            raise self._error(f"says {default}={value!r} in its {_CONFIG}")
        return value


def _find(name: str, where: Folder, token: str | bool | None) -> Path:
    """The adapter's folder, fetched if it is on the hub and was not before."""
    path = Path(where).expanduser()
    if path.is_dir():
        return path
    if not isinstance(where, str) or path.exists() or where.count("/") != 1 or where.startswith((".", "~")):
        raise EngineError(f"The adapter {name!r} has no folder {str(path)!r}: give the folder that peft saved.")
    try:
        known = try_to_load_from_cache(where, _WEIGHTS)
    except HFValidationError:
        raise EngineError(f"The adapter {name!r}: {where!r} is neither a folder nor a name on the hub.") from None
    if isinstance(known, str):
        return Path(known).parent
    check_hub(where, {"token": token})
    try:
        return Path(snapshot_download(where, allow_patterns=[_CONFIG, _WEIGHTS], token=token))
    except Exception as error:  # the hub's client raises what its HTTP library does
        raise EngineError(
            f"The adapter {name!r} can't be fetched from {where!r}: check the name, or give a folder."
        ) from error


def _takes_adapters(module: Any) -> bool:
    has_features = hasattr(module, "in_features") or (hasattr(module, "nf") and hasattr(module, "nx"))
    return has_features and not isinstance(module, nn.Embedding)  # the second are those of GPT-2's Conv1D


def _features(module: Any) -> tuple[int, int]:
    """in_features and out_features."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    return int(module.nx), int(module.nf)


def _device(base: nn.Module, model: Any) -> torch.device:
    def tensors() -> Iterator[torch.Tensor]:
        yield from base.parameters()
        yield from base.buffers()

    found: torch.device = next((tensor.device for tensor in tensors()), model.device)
    return found
