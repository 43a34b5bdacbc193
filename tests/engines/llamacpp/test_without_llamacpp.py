"""What is said before llama.cpp is needed, and what is said without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kani_lite.engines.llamacpp import LlamaCppEngine
from kani_lite.engines.llamacpp.files import find_file
from kani_lite.engines.llamacpp.slots import SlotPool
from kani_lite.exceptions import EngineError, MissingModelDependencies


def test_importing_needs_none_of_its_packages() -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['llama_cpp', 'gguf', 'numpy', 'torch', 'transformers']))\n"
        "from kani_lite.engines.llamacpp import LlamaCppEngine\n"
        "import kani_lite.engines.llamacpp.convert"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kani_lite.engines.llamacpp.convert import convert

    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingModelDependencies, match=r"'llama_cpp', .*: pip install 'kani-lite\[llamacpp\]'"):
        LlamaCppEngine(model_path="model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingModelDependencies, match=r"'gguf', .*: pip install 'kani-lite\[gguf\]'"):
        convert("nano", tmp_path / "out.gguf")


@pytest.mark.parametrize(("given", "says"), [
    ({"max_context_size": -1}, "max_context_size=-1 is too small: give at least 0"),
    ({"threads": 0}, "threads=0 is too small"),
    ({"max_batch_size": 0}, "max_batch_size=0 is too small"),
    ({"kv_cache_memory_gb": 0}, "kv_cache_memory_gb=0 is no amount of memory"),
])  # fmt: skip
def test_numbers_that_cannot_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        LlamaCppEngine(model_path="model.gguf", **given)


def test_unknown_hyperparameters_are_refused() -> None:
    with pytest.raises(TypeError, match="Unknown sampling parameter temprature"):
        LlamaCppEngine(model_path="model.gguf", temprature=1)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 and more")
    part = tmp_path / "m-00002-of-00003.gguf"
    part.write_bytes(b"GGUF")
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(b"GGUF")
    cases: list[tuple[tuple[Any, Any, Any], str]] = [
        ((None, None, None), "give exactly one of them"),
        (("a/b", None, "c.gguf"), "give exactly one of them"),
        ((None, "x.gguf", other), "filename='x.gguf' is that of a file on the hub"),
        ((None, None, tmp_path / "none.gguf"), r"There is no file '.*none\.gguf'"),
        ((None, None, tmp_path), "is a folder: give a .gguf file"),
        ((None, None, other), "is no GGUF file, it begins with b'PK"),
        ((None, None, part), r"in several parts, and 'm-00003-of-00003\.gguf' isn't there"),
    ]
    for arguments, says in cases:
        with pytest.raises(EngineError, match=says):
            find_file(*arguments, None)
    (tmp_path / "m-00003-of-00003.gguf").write_bytes(b"GGUF")
    assert find_file(None, None, part, None) == tmp_path / "m-00001-of-00003.gguf"


class Cells:
    """What the pool asks of the memory: the ids that each sequence has."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}

    def forget(self, sequence: int, start: int) -> bool:
        self.held[sequence] = self.held.get(sequence, [])[:start]
        return True

    def share(self, source: int, target: int, length: int) -> None:
        assert not self.held.get(target)
        self.held[target] = self.held[source][:length]


class Chats:
    """Requests on a pool; each reads its ids and ends."""

    def __init__(self, **options: Any) -> None:
        self.cells = Cells()
        given = {"count": 4, "room": 1000, "most_idle": 2, "divisible": True} | options
        self.pool = SlotPool(self.cells, **given)

    def begin(self, ids: list[int]) -> tuple[Any, int]:
        slot = self.pool.take(ids, len(ids))
        assert slot is not None
        known = len(slot.ids)
        assert self.cells.held.get(slot.sequence, []) == slot.ids == ids[:known]
        slot.ids += ids[known:]
        self.cells.held[slot.sequence] = list(slot.ids)
        return slot, known

    def run(self, ids: list[int]) -> int:
        slot, known = self.begin(ids)
        self.pool.put(slot)
        return known


def test_slots_share_what_prompts_share() -> None:
    chats = Chats()
    system = list(range(100))
    one = [*system, *range(500, 540)]
    assert chats.run(one) == 0
    assert chats.run([*one, 4]) == 140  # the same chat goes on in its slot
    other = [*system, *range(200, 260)]
    assert chats.run(other) == 100
    assert chats.run([*other, 9]) == 160
    assert chats.run([*one, 4, 5]) == 141
    assert chats.run([*one, 6, 7]) == 140  # a reply that was written anew takes the slot of the old one
    running, known = chats.begin([*system, *range(300, 380)])
    assert known == 100
    assert chats.run([*system, *range(300, 400)]) == 180  # of one that is still running
    chats.pool.put(running)
    assert chats.run([*system]) == 99  # the last token's logits are needed


def test_slots_that_cannot_be_cut_are_reused_whole_or_not_at_all() -> None:
    chats = Chats(divisible=False)
    assert chats.run([1, 2, 3]) == 0
    assert chats.run([1, 2, 3, 4]) == 3
    assert chats.run([1, 2, 3, 5]) == 0
    assert chats.run([1, 2, 3, 5]) == 0


def test_old_slots_make_room_and_running_ones_do_not() -> None:
    chats = Chats(room=100, count=3)
    running, _ = chats.begin(list(range(60)))
    assert chats.run(list(range(100, 130))) == 0
    assert chats.run(list(range(200, 230))) == 0  # the one before is dropped
    assert chats.pool.take(list(range(300, 350)), 50) is None
    assert chats.run(list(range(200, 230))) == 0
    chats.pool.put(running)
    chats.begin(list(range(300, 390)))


def test_room_is_kept_for_what_running_requests_will_read() -> None:
    chats = Chats(room=100)
    first = chats.pool.take(list(range(40)), 60)  # it has read nothing yet
    assert first is not None
    assert chats.pool.take(list(range(100, 140)), 60) is None
    assert chats.pool.take(list(range(100, 130)), 40) is not None
    chats.pool.put(first)
    assert chats.pool.take(list(range(200, 240)), 60) is not None


def test_there_are_only_so_many_idle_slots() -> None:
    chats = Chats(most_idle=1)
    first, second = list(range(50)), list(range(100, 150))
    chats.run(first)
    chats.run(second)
    assert chats.run(second) == 49
    assert chats.run(first) == 0
    none = Chats(most_idle=0)
    none.run(first)
    assert none.run(first) == 0
