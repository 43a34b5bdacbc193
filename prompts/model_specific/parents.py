"""Which model a model was made from, as its card says."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_SECONDS = 15.0  # for the hub to answer
_KEYS = ("base_model", "base_model_name_or_path", "_name_or_path")  # of a card, of an adapter, of older configs


def family(model_id: str) -> Iterator[str]:
    """The model, the one that it was made from, and so on. Ends at a model that was made from several, or none.

    The network is asked only if this very model isn't on the disk and HF_HUB_OFFLINE doesn't forbid it.
    """
    yield model_id
    online = not (_is_path(model_id) or _offline() or _in_cache(model_id, "config.json"))
    seen = {model_id}
    while len(parents := base_models(model_id, online)) == 1 and parents[0] not in seen:
        model_id = parents[0]
        seen.add(model_id)
        yield model_id


def base_models(model_id: str, online: bool) -> list[str]:
    """The models that this one was made from: of a folder by its README.md and its configs, of a model of the hub by
    its card, which is fetched if `online`."""
    if _is_path(model_id):
        return _of_folder(Path(model_id))
    return list(_of_hub(model_id, online))


def _is_path(model_id: str) -> bool:
    return Path(model_id).expanduser().is_dir() or model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _of_folder(folder: Path) -> list[str]:
    folder = folder.expanduser()
    if found := _names(_card(folder / "README.md").get("base_model")):
        return found
    for file in ("adapter_config.json", "config.json"):
        data = _json(folder / file)
        for key in _KEYS:
            # what a model was loaded from may be this very folder
            if found := [name for name in _names(data.get(key)) if name not in (str(folder), folder.name)]:
                return found
    return []


@lru_cache(maxsize=256)
def _of_hub(model_id: str, online: bool) -> tuple[str, ...]:
    path = _in_cache(model_id, "README.md")
    if path is None and online:
        path = _fetched_card(model_id)
    return tuple(_names(_card(Path(path)).get("base_model"))) if path else ()


def _in_cache(model_id: str, file: str) -> str | None:
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(model_id, file)
    except HFValidationError:
        return None
    return found if isinstance(found, str) else None


def _fetched_card(model_id: str) -> str | None:
    try:
        from huggingface_hub import hf_hub_download

        return hf_hub_download(model_id, "README.md", etag_timeout=_SECONDS)
    except Exception as error:  # a card only helps to guess: whatever keeps it away, the search ends here
        _log.info("The model card of %r can't be had: %s", model_id, error)
        return None


def _card(path: Path) -> dict[str, Any]:
    """The data at the head of a model card."""
    try:
        from huggingface_hub.repocard import metadata_load

        return metadata_load(path) or {} if path.is_file() else {}
    except Exception as error:  # as above: it may be no YAML, not UTF-8, or there may be no package that reads it
        _log.info("The model card %s can't be read: %s", path, error)
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _names(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [name for name in values if isinstance(name, str) and name]
