"""Models named as on the Hugging Face hub: on this disk already, there to be fetched, or why neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from kani_lite.exceptions import EngineError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_SECONDS = 15.0  # for the hub to say whether it has a model


def is_fetched(name: str, options: dict[str, Any]) -> bool:
    """Whether all of the model is on this disk, so that the network need not be asked at all."""
    where = {key: options[key] for key in ("revision", "cache_dir") if options.get(key) is not None}
    gguf = options.get("gguf_file")
    try:
        found = try_to_load_from_cache(name, gguf or "config.json", **where)
    except HFValidationError:
        return False
    if gguf:  # it holds tokenizer and config too
        return isinstance(found, str)
    if not isinstance(found, str):
        return False
    folder = Path(found).parent
    return any((folder / file).exists() for file in _TOKENIZERS) and _has_weights(folder)


def _has_weights(folder: Path) -> bool:
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            continue
        if all((folder / shard).exists() for shard in shards):
            return True
    return any((folder / file).exists() for file in ("model.safetensors", "pytorch_model.bin", "qmodel.pt"))


def check_hub(name: str, options: dict[str, Any]) -> None:
    """Raises EngineError if the hub can't give this model. One quick question, since a download that can't succeed
    is tried again for most of a minute."""
    if constants.HF_HUB_OFFLINE:
        raise EngineError(
            f"The model {name!r} isn't on this disk and HF_HUB_OFFLINE switches the hub off: fetch it first."
        )
    if options.get("token") is True and get_token() is None:
        raise EngineError(
            f"The model {name!r} isn't on this disk and token=True stands for that of your login to the hub, but there "
            "is none: log in with `hf auth login`, set HF_TOKEN, or pass the token itself."
        )
    revision = options.get("revision")
    try:
        HfApi(token=options.get("token")).model_info(name, revision=revision, timeout=_SECONDS)
    except HFValidationError:
        raise EngineError(f"There is no folder {name!r}, and it is no name that the hub could have.") from None
    except RepositoryNotFoundError:
        raise EngineError(
            f"There is no folder or hub model {name!r}: check the name, or pass token= if it is private."
        ) from None
    except RevisionNotFoundError:
        raise EngineError(f"The model {name!r} has no revision {revision!r}: check the revision.") from None
    except Exception as error:
        if _is_unreachable(error):
            raise EngineError(
                f"The model {name!r} isn't on this disk and the hub can't be reached: connect, or give a folder."
            ) from error
        # a hub that can't answer this may still give the files: let the download say


def _is_unreachable(error: BaseException | None) -> bool:
    # the hub's client has changed its HTTP library before; both name these errors alike
    while error is not None:
        if isinstance(error, ConnectionError) or type(error).__name__ in {
            "ConnectError",
            "ConnectTimeout",
            "ConnectionError",
            "NameResolutionError",
            "ProxyError",
        }:
            return True
        error = error.__cause__ or error.__context__
    return False
