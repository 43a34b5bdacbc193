"""LLMModel: prompts in, tokens out, without async code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from anyio.from_thread import start_blocking_portal
from torch.nn.utils.rnn import pad_sequence

from kani_lite.engines.huggingface import loading
from kani_lite.engines.limits import memory_bytes
from kani_lite.engines.request import Streamer
from kani_lite.engines.runtime.generator import RuntimeOptions
from kani_lite.engines.runtime.sampler import AllLogprobs, Sampler
from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.text import StopStrings
from kani_lite.engines.text_generation import Generation, TokenLogprobs
from kani_lite.engines.worker import Job, WaitingQueue, in_passing_thread

from .config import GREEDY_BELOW, KVCacheType, SamplingConfig, cache_name
from .loading import TextEngine, find_model, load_tokenizer

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class GeneratorOutput:
    """What `LLMModel.generate` returns.

    `output_token_ids`: (batch, prompt + new), the prompts as they were given, and shorter replies padded on the right.
    `decoded_text`: prompt and reply of each, without special tokens and what `stop_strings` ended.
    `input_logprobs`: (batch, prompt, vocabulary), at each token the model's log probabilities of the next one.
    `probs`, `logprobs`: (batch, new, vocabulary), those that each token was chosen from, after penalties, temperature
    and cuts. Where there is padding they are NaN. All are None unless asked for; tensors are on the CPU.
    `generations`: for each prompt why its reply ended, and how long it took.
    """

    output_token_ids: torch.Tensor
    generations: list[Generation]
    decoded_text: list[str] | None = None
    input_logprobs: torch.Tensor | None = None
    probs: torch.Tensor | None = None
    logprobs: torch.Tensor | None = None
    speculative_stats: None = None


class LLMModel:
    """A causal language model of a folder or of the hub (.safetensors or .bin), run as PACE does. It blocks: async code
    uses HuggingEngine.

    `dtype`: torch.float32, bfloat16 or float16, or "auto" for the one it was saved in. `kv_cache_type`: a KVCacheType
    or its name. `disable_tqdm` is accepted; no bars are shown. `tokenizer_path` is another name of
    `tokenizer_name_or_path`. The rest are HuggingEngine's.

    Raises FileNotFoundError if there is no such model or tokenizer or no config, TypeError for a wrong `dtype`,
    NotImplementedError for `spec_config` and `opconfig`, EngineError if it can't be loaded otherwise.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        tokenizer_name_or_path: str | os.PathLike[str] | None = None,
        dtype: torch.dtype | str = torch.bfloat16,
        kv_cache_type: KVCacheType | str = KVCacheType.DYNAMIC,
        spec_config: Any = None,
        opconfig: Any = None,
        disable_tqdm: bool = False,
        *,
        tokenizer_path: str | os.PathLike[str] | None = None,
        device: str | None = None,
        max_batch_size: int = 64,
        kv_cache_memory_gb: float | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        # arguments first: a typo must not cost the loading of a model
        if dtype not in _DTYPES and dtype != "auto":
            names = ", ".join(map(str, _DTYPES))
            raise TypeError(f"dtype={dtype!r} is not supported: give one of {names}, or 'auto'.")
        if spec_config is not None or opconfig is not None:
            raise NotImplementedError(
                "spec_config and opconfig aren't supported: torch's operators run; leave them out."
            )
        memory = memory_bytes(kv_cache_memory_gb)
        options = RuntimeOptions(cache_name(kv_cache_type), memory, max_batch_size=max_batch_size)
        source = find_model(model_name_or_path, trust_remote_code)
        tokenizer = load_tokenizer(source, tokenizer_name_or_path or tokenizer_path)
        load = loading.model_options({"dtype": dtype}, None, device)

        def start() -> TextEngine:
            return TextEngine(source, loading.load_model(source, None, load, device), tokenizer, options)

        self.engine = in_passing_thread(start)
        self._config, self._generation_config = self.engine.model.config, self.engine.model.generation_config

    def get_tokenizer(self) -> Any:
        """The tokenizer, which pads on the left."""
        return self.engine.tokenizer

    def get_config(self) -> Any:
        """The model's config."""
        return self._config

    def close(self) -> None:
        """Ends what runs and frees the model. May be called again."""
        with start_blocking_portal() as portal:  # there may be a loop in this thread, as in a notebook
            portal.call(self.engine.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompt: torch.Tensor | Mapping[str, Any],
        sampling_config: SamplingConfig | None = None,
        text_streamer: Streamer | None = None,
    ) -> GeneratorOutput:
        """Continues prompts, all of a batch together. `prompt`: ids of (batch, tokens) or (tokens,), or a BatchEncoding
        of tensors; padded on the left, as the attention mask says, or without one the pad token.

        Raises NotImplementedError for prompts and configs of other types, TypeError for ids that aren't whole numbers,
        ValueError for a wrong shape, mask or id, or a streamer with several prompts, PromptTooLong, EngineError.
        """
        if sampling_config is not None and not isinstance(sampling_config, SamplingConfig):
            raise NotImplementedError(f"sampling_config is a SamplingConfig, not {type(sampling_config).__name__}.")
        ids, mask = _ids_and_mask(prompt)
        config = (sampling_config or SamplingConfig()).over(self._generation_config)
        pad = self._pad_id(config)
        rows = _rows(ids, self._mask_of_padding(ids, pad) if mask is None else mask)
        if text_streamer is not None and len(rows) > 1:
            raise ValueError(f"A streamer follows one reply, and there are {len(rows)} prompts: give one at a time.")
        self._check(rows)
        params = config.params(self.engine.ends)
        done = self._run(rows, params, text_streamer)
        return self._output(ids, rows, done, config, params, pad)

    def _pad_id(self, config: SamplingConfig) -> int:
        for pad in (config.pad_token_id, self.engine.tokenizer.pad_token_id, *self.engine.ends):
            if pad is not None:
                return int(pad)
        return 0

    def _mask_of_padding(self, ids: torch.Tensor, pad: int) -> torch.Tensor:
        if pad in self.engine.ends or pad == self.engine.tokenizer.bos_token_id:
            return torch.ones_like(ids)  # a text may begin with such a token
        return (ids != pad).long().cummax(-1).values

    def _check(self, rows: list[list[int]]) -> None:
        for row in rows:
            self.engine.check(row)

    def _run(self, rows: list[list[int]], params: SamplingParams, streamer: Streamer | None) -> list[Generation]:
        jobs: list[Job] = []
        try:
            for place, row in enumerate(rows):
                seed = None if params.seed is None else params.seed + place
                own = params.merged(SamplingParams(seed=seed))
                jobs.append(self.engine.submit(row, own, WaitingQueue(), streamer=streamer))
            return [_result(job) for job in jobs]
        finally:
            for job in jobs:
                job.cancel()

    def _output(
        self,
        ids: torch.Tensor,
        rows: list[list[int]],
        done: list[Generation],
        config: SamplingConfig,
        params: SamplingParams,
        pad: int,
    ) -> GeneratorOutput:
        new = pad_sequence([torch.tensor(one.ids) for one in done], batch_first=True, padding_value=pad)
        drawn = params
        if config.temperature >= GREEDY_BELOW:  # PACE's probabilities have it although the likeliest token is taken
            drawn = params.merged(SamplingParams(temperature=config.temperature))
        logprobs = None
        if config.return_probs or config.return_logprobs:
            chosen = [_chosen_from(one, row, drawn) for row, one in zip(rows, done, strict=True)]
            logprobs = pad_sequence(chosen, batch_first=True, padding_value=torch.nan)
        return GeneratorOutput(
            output_token_ids=torch.cat([ids, new], -1),
            generations=[replace(one, logprobs=None, prompt_logprobs=None) for one in done],
            decoded_text=self._texts(rows, done, params) if config.return_text else None,
            input_logprobs=_input_logprobs(done, ids.shape[1]) if config.return_input_logprobs else None,
            probs=logprobs.exp() if config.return_probs and logprobs is not None else None,
            logprobs=logprobs if config.return_logprobs else None,
        )

    def _texts(self, rows: list[list[int]], done: list[Generation], params: SamplingParams) -> list[str]:
        texts = []
        for row, one in zip(rows, done, strict=True):
            ids = [*row, *one.ids]
            whole, first = (
                self.engine.tokenizer.decode(some, skip_special_tokens=True)
                for some in (ids, ids[: len(row) + params.min_tokens])  # stop strings count after these
            )
            stops = StopStrings(params.stop)
            texts.append(whole[: len(first)] + stops.add(whole[len(first) :]) + stops.finish())
        return texts


def _ids_and_mask(prompt: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(batch, tokens) of each, on the CPU."""
    mask = None
    if isinstance(prompt, Mapping):
        prompt, mask = prompt.get("input_ids"), prompt.get("attention_mask")
    if not isinstance(prompt, torch.Tensor):
        raise NotImplementedError(
            "A prompt is a tensor of ids, or what a tokenizer gives with return_tensors='pt', "
            f"not {type(prompt).__name__}."
        )
    if prompt.is_floating_point() or prompt.dtype is torch.bool:
        raise TypeError(f"Token ids are whole numbers, and these are {prompt.dtype}.")
    ids = prompt.reshape(1, -1) if prompt.ndim == 1 else prompt
    if ids.ndim != 2 or not ids.shape[0]:
        raise ValueError(f"Prompts are a tensor of (batch, tokens), not {tuple(prompt.shape)}.")
    if mask is not None and mask.numel() != ids.numel():
        raise ValueError(f"The attention mask is {tuple(mask.shape)} and the ids are {tuple(prompt.shape)}.")
    return ids.long().cpu(), None if mask is None else mask.reshape(ids.shape).long().cpu()


def _rows(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """The prompts without their padding. Raises ValueError if it isn't on the left."""
    if (mask.diff(dim=-1) < 0).any():
        raise ValueError("Prompts are padded on the left only: set tokenizer.padding_side = 'left'.")
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def _result(job: Job) -> Generation:
    while not isinstance(item := job.wait(), Generation):
        pass
    return item


def _all(entry: TokenLogprobs | None) -> AllLogprobs:
    assert entry is not None
    assert isinstance(entry.top, AllLogprobs)
    return entry.top


def _chosen_from(one: Generation, prompt: list[int], drawn: SamplingParams) -> torch.Tensor:
    """(new, vocabulary): the log probabilities that each token of a reply was chosen from, by the same steps again."""
    sampler = Sampler(drawn, prompt, drawn.eos_token_ids or [], [], torch.device("cpu"))
    rows = []
    for entry in one.logprobs or []:
        rows.append(torch.log_softmax(sampler.scores(_all(entry).logits), -1))
        sampler.note(entry.token)
    return torch.stack(rows)


def _input_logprobs(done: list[Generation], length: int) -> torch.Tensor:
    """(batch, length, vocabulary); NaN on the left."""
    rows = []
    for one in done:
        entries = [*(one.prompt_logprobs or [])[1:], *(one.logprobs or [])[:1]]  # the first new token follows the last
        found = torch.stack([_all(entry).logprobs for entry in entries])
        padding = found.new_full((length - len(found), found.shape[1]), torch.nan)
        rows.append(torch.cat([padding, found]))
    return torch.stack(rows)
