"""Files of the hub: those on this disk without the network, and what there is when a name doesn't fit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from kani_lite.engines.llamacpp.hub import fetch_gguf, fetch_model, first_part, parts_missing, whole_files
from kani_lite.exceptions import EngineError

REPO = "someone/model-GGUF"


class Hub:
    """A hub of these files, in place of the real one; `here`: those that are on this disk already."""

    constants = SimpleNamespace(HF_HUB_OFFLINE=False)

    def __init__(self, folder: Path, files: list[str], here: list[str]) -> None:
        self.folder, self.files, self.fetched = folder, files, list[str]()
        for name in here:
            self._put(name)

    def _put(self, name: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF")
        return str(path)

    def snapshot_download(self, name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert local_files_only
        if not self.folder.exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return str(self.folder)

    def hf_hub_download(self, repo_id: str, name: str, *, token: Any) -> str:
        self.fetched.append(name)
        return self._put(name)

    def HfApi(self, token: Any = None) -> Any:  # noqa: N802  # the package's name
        def model_info(repo_id: str, timeout: float) -> Any:
            if repo_id != REPO:
                raise huggingface_hub.errors.HfHubHTTPError("404", response=SimpleNamespace(headers={}, request=None))
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.files])

        return SimpleNamespace(model_info=model_info)


FILES = ["README.md", "m-q4_0.gguf", "m-q8_0.gguf", "big/m-f16-00001-of-00002.gguf", "big/m-f16-00002-of-00002.gguf"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def made(here: list[str], offline: bool = False) -> Hub:
        found = Hub(tmp_path / "snapshot", FILES, here)
        found.constants = SimpleNamespace(HF_HUB_OFFLINE=offline)
        monkeypatch.setitem(sys.modules, "huggingface_hub", found)  # type: ignore[arg-type]  # as good as a module
        return found

    return made


@pytest.mark.parametrize("pattern", ["*q4_0.gguf", "m-q4_0.gguf", "*Q4_0*", None])
def test_what_is_here_is_taken_without_the_network(hub: Any, pattern: str | None) -> None:
    found = hub(["m-q4_0.gguf"], offline=True)
    if pattern == "*Q4_0*":  # names are told apart by case, as on the hub
        with pytest.raises(EngineError, match="isn't on this disk and HF_HUB_OFFLINE switches the hub off"):
            fetch_gguf(REPO, pattern, None)
        return
    assert fetch_gguf(REPO, pattern, None) == found.folder / "m-q4_0.gguf"
    assert not found.fetched


def test_what_is_not_here_is_fetched(hub: Any) -> None:
    found = hub(["m-q4_0.gguf"])
    assert fetch_gguf(REPO, "*q8_0.gguf", None) == found.folder / "m-q8_0.gguf"
    assert found.fetched == ["m-q8_0.gguf"]


@pytest.mark.parametrize("here", [[], ["big/m-f16-00001-of-00002.gguf"]])
def test_all_parts_are_fetched(hub: Any, here: list[str]) -> None:
    found = hub(here)
    assert fetch_gguf(REPO, "m-f16*", None) == found.folder / FILES[3]
    assert found.fetched == FILES[3:]
    found.fetched.clear()
    assert fetch_gguf(REPO, "m-f16*", None) == found.folder / FILES[3]
    assert not found.fetched


def test_names_that_do_not_fit(hub: Any) -> None:
    hub([])
    listed = r"it has big/m-f16-00001-of-00002\.gguf, m-q4_0\.gguf, m-q8_0\.gguf; give one of them"
    with pytest.raises(EngineError, match=f"no file that fits filename='x': {listed}"):
        fetch_gguf(REPO, "x", None)
    with pytest.raises(EngineError, match="3 files that fit filename=None"):
        fetch_gguf(REPO, None, None)
    with pytest.raises(EngineError, match="'nobody/nothing' can't be fetched from the hub"):
        fetch_gguf("nobody/nothing", None, None)
    with pytest.raises(EngineError, match=r"There is no folder or file '\./m'"):
        fetch_model("./m", None)


def test_parts_of_a_file() -> None:
    assert first_part("a/m-00003-of-00010.gguf") == "a/m-00001-of-00010.gguf"
    assert first_part("m-of-00010.gguf") == "m-of-00010.gguf"
    assert whole_files(["m-00002-of-00002.gguf", "m-00001-of-00002.gguf", "n.gguf"]) == [
        "m-00001-of-00002.gguf",
        "n.gguf",
    ]
    assert parts_missing("m-00001-of-00002.gguf", ["m-00001-of-00002.gguf"]) == ["m-00002-of-00002.gguf"]
    assert not parts_missing("n.gguf", ["n.gguf"])
