"""Makes a quantised model: from a model's own weights, or from what hqq saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from transformers.utils import logging as hf_logging

from kani_lite.engines.quantization.memory import Trimmer
from kani_lite.exceptions import EngineError

from . import files, safetensors_files
from .backends import Layer, choose, is_hqqs_own, make_layer
from .config import LayerSettings
from .embedding import HqqEmbedding
from .layers import HqqLinear
from .plan import Plan, ends, is_tied, linear_layers
from .quantizer import WhileLoading
from .weight import HqqWeight

_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")
_CONFIG_OPTIONS = (*_HUB_OPTIONS, "trust_remote_code")


@dataclass
class HqqLoader:
    """Stands where a transformers class does: `from_pretrained` gives the quantised model. `settings`: None if the user
    gave none. `progress`: show how far it is. `backends` says afterwards what computes each layer."""

    settings: LayerSettings | None
    quantize_on_fly: bool | None
    backend: str
    dtype: torch.dtype | None
    device: str
    compile: bool
    model_cls: Any
    quantize_embeddings: bool = False
    progress: bool = False
    backends: dict[str, str] = field(default_factory=dict)

    def from_pretrained(self, name: str, *, output_loading_info: bool, **options: Any) -> tuple[Any, dict[str, Any]]:
        """The model, and what transformers says of the loading. `options`: as for a transformers class.

        Raises EngineError before any weight is loaded if layers can't be quantised or computed as asked.
        """
        with _bars(self.progress):
            read = self._quantized(name, options)
            model, info = self._quantize(name, options) if read is None else (self._load(name, read, options), {})
        model.is_quantized = model.hqq_quantized = True
        if self.compile and self.device != "cpu":  # there, tile by tile is faster than what torch compiles
            for module in model.modules():
                if isinstance(module, HqqLinear):
                    module.compile_forward()
        return model, info

    def _quantized(self, name: str, options: dict[str, Any]) -> Callable[[], files.Weights] | None:
        """Reads what hqq saved of this model; None if it is to be quantised now."""
        local = Path(name).is_dir()
        if not local and self.quantize_on_fly:
            return None
        hub = _chosen(options, _HUB_OPTIONS)

        def fetch(file: str) -> Path | None:
            if local:
                return path if (path := Path(name, file)).is_file() else None
            try:
                return Path(hf_hub_download(name, file, **hub))
            except EntryNotFoundError:
                return None

        read: Callable[[], files.Weights] | None = None
        if (found := fetch(files.WEIGHTS)) is not None:
            read = partial(files.read_weights, found)
        elif safetensors_files.is_written_by_transformers(name, hub):
            read = partial(safetensors_files.read, safetensors_files.shards(fetch))
        if read is not None and self.quantize_on_fly:
            raise EngineError(f"The model in {name!r} is quantised already: leave quantize_on_fly out.")
        if read is None and self.quantize_on_fly is False:
            raise EngineError(
                f"The model {name!r} isn't quantised by hqq (it has no {files.WEIGHTS}): pass quantize_on_fly=True."
            )
        return read

    # ==== quantising now ====

    def _quantize(self, name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        settings = self.settings or LayerSettings.read(None)
        skeleton = self._skeleton(name, options)
        plan = Plan.make(skeleton, settings, self.backend, self.dtype, self.device, self.quantize_embeddings)
        self.backends, way = plan.backends, WhileLoading(plan)
        cls = self.model_cls or transformers.AutoModelForCausalLM
        try:
            model, info = cls.from_pretrained(
                name, output_loading_info=True, quantization_config=way, **(options | {"dtype": plan.dtype})
            )
        except Exception as error:
            raise way.error or error from error
        model.hf_quantizer.remove_quantization_config(model)
        if not info.get("missing_keys"):
            model.to(self.device)
            self._hand_over(model, plan)
        return model, info

    def _hand_over(self, model: Any, plan: Plan) -> None:
        """Lets a GPU's kernels have their weights, now that all is in its place."""
        for name, backend in self.backends.items():
            if is_hqqs_own(backend):
                layer = model.get_submodule(name)
                model.set_submodule(name, make_layer(backend, layer.hqq, self.device))
                if plan.shares and name == plan.head:  # the kernels give no rows
                    model.set_submodule(str(plan.embedding), HqqEmbedding(layer, plan.dtype, shared=False))

    # ==== quantised before ====

    def _load(self, name: str, read: Callable[[], files.Weights], options: dict[str, Any]) -> Any:
        states, model = read(), self._skeleton(name, options)
        weights = {key: HqqWeight.from_state(states.pop(key)) for key in list(states) if "W_q" in states[key]}
        head, embedding = ends(model)
        tied = is_tied(model, head) and head in weights
        shared = tied and embedding not in states and embedding not in weights
        self._check(name, model, weights, embedding, shared)
        layers = [
            Layer(key, one.shape, one.meta["nbits"], one.meta["group_size"], one.meta["axis"])
            for key, one in weights.items()
            if key != embedding
        ]
        self.backends, dtype = choose(self.backend, layers, self.device, self.dtype)
        if tied:  # the output layer has a weight of its own
            model.all_tied_weights_keys.pop(f"{head}.weight")
        if shared and is_hqqs_own(self.backends[str(head)]):  # the kernels give no rows
            weights[str(embedding)], shared = weights[str(head)], False
        self._put_layers(model, weights, embedding, dtype)
        if shared:
            layer = model.get_submodule(head)
            model.set_submodule(str(embedding), HqqEmbedding(layer, dtype, shared=True))
        files.put_states(model, states, self.device, dtype)
        if (generation := files.generation_config(name, _chosen(options, _HUB_OPTIONS))) is not None:
            model.generation_config = generation
        return model

    def _put_layers(
        self, model: nn.Module, weights: dict[str, HqqWeight], embedding: str | None, dtype: torch.dtype
    ) -> None:
        """Makes the layers one by one, and lets go of what each was made from."""
        trimmer = Trimmer()
        for name in hf_logging.tqdm(list(weights), desc="Loading quantised layers"):
            weight = weights.pop(name).to(self.device, dtype)
            if name == embedding:
                layer: nn.Module = HqqEmbedding(HqqLinear(weight), dtype, shared=False)
            else:
                layer = make_layer(self.backends[name], weight, self.device)
            model.set_submodule(name, layer)
            # what it was made from, and on the way a byte for each code and more
            trimmer.freed(weight.packed.nbytes + 8 * weight.shape[0] * weight.shape[1])
            del weight

    def _check(
        self, name: str, model: nn.Module, weights: dict[str, HqqWeight], embedding: str | None, shared: bool
    ) -> None:
        """Raises EngineError if the weights are another model's, or quantised in another way than asked for."""
        shapes = {key: (one.out_features, one.in_features) for key, one in linear_layers(model).items()}
        if embedding is not None and embedding in weights:
            rows: Any = model.get_submodule(embedding)
            shapes[embedding] = (rows.num_embeddings, rows.embedding_dim)
        elif self.quantize_embeddings and not shared:
            raise EngineError(
                f"The model in {name!r} is quantised already and its embedding isn't: leave quantize_embeddings out."
            )
        for key, weight in weights.items():
            if key not in shapes or weight.shape != shapes[key]:
                raise EngineError(f"The quantised layer {key!r} in {name!r} is none of the model in its config.json.")
            wanted = self.settings.of(key) if self.settings and key != embedding else None
            if wanted is not None and not weight.has(wanted):
                raise EngineError(
                    f"The model in {name!r} is quantised already, {key!r} to {weight.described}, and "
                    "quantization_config asks for something else: leave it out."
                )

    def _skeleton(self, name: str, options: dict[str, Any]) -> Any:
        """The model without its weights."""
        config = transformers.AutoConfig.from_pretrained(name, **_chosen(options, _CONFIG_OPTIONS))
        cls: Any = self.model_cls or transformers.AutoModelForCausalLM
        how = _chosen(options, ("attn_implementation",))
        if hasattr(cls, "from_config"):
            make, how = cls.from_config, how | _chosen(options, ("trust_remote_code",))
        else:
            make = cls._from_config
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # what is saved says it in hqq's own way
        with init_empty_weights():
            return make(config, **how)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """transformers' progress bars, which are off while a plain model loads."""
    switch = shown and not hf_logging.is_progress_bar_enabled()
    if switch:
        hf_logging.enable_progress_bar()
    try:
        yield
    finally:
        if switch:
            hf_logging.disable_progress_bar()


def _chosen(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}
