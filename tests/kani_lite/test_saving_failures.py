"""What may go wrong: disks that are full, files that are damaged, foreign or hostile."""

from __future__ import annotations

import json
import os
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_chats import CHAT, FORMATS, PICTURE, Format, Picture, chat, zipped

from kani_lite import ChatMessage, MessagePart
from kani_lite.exceptions import KaniException, MissingMessagePartType
from kani_lite.messages import MESSAGEPART_TYPE_KEY
from kani_lite.saving import SavedKani, load


class Unwritable(MessagePart):
    """Fails after others have written."""

    @pydantic.model_serializer(mode="wrap")
    def _save(self, handler: Any) -> dict[str, Any]:
        raise OSError("the camera is gone")


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    before = os.umask(0o022)
    yield lambda mask: os.umask(mask) and None
    os.umask(before)


# === failing to save =================================================================================================


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("message", "error"),
    [
        (ChatMessage.user([Picture(data=PICTURE), Unwritable()]), "the camera is gone"),
        (ChatMessage.user("half an emoji: \ud83d"), "surrogates"),
        (ChatMessage.user("a", extra={"raw": b"\xff"}), "utf-8"),
    ],
)
def test_a_message_that_can_not_be_written(tmp_path: Path, format_: Format, message: ChatMessage, error: str) -> None:
    path = tmp_path / "a"
    for before in (None, b"the old file"):
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(KaniException, match=rf"/a' was not saved.*{error}"):
            chat(*CHAT, message).save(path, save_format=format_)
        assert os.listdir(tmp_path) == ([] if before is None else ["a"])
    assert path.read_bytes() == b"the old file"


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    (tmp_path / "a").write_bytes(b"the old file")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        chat(*CHAT).save(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"the old file"


def test_it_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(Path(a).parent.name), replace(a, b)))
    chat().save(tmp_path / "a")
    assert done == ["fsync", tmp_path.name], "the temporary file is in the same folder"


def test_places_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, error in (("folder", IsADirectoryError), ("pipe", OSError), ("missing/a", FileNotFoundError)):
        with pytest.raises(error):
            chat().save(tmp_path / path)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]
    assert os.listdir(tmp_path / "folder") == []


def test_a_write_protected_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"the old file")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write what is protected
    with pytest.raises(PermissionError, match="write-protected"):
        chat().save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"the old file"


# === modes and links =================================================================================================


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_follows_the_umask(tmp_path: Path, umask: Callable[[int], None], mask: int, mode: int) -> None:
    umask(mask)
    chat().save(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, umask: Callable[[int], None], mode: int) -> None:
    umask(0o022)
    (tmp_path / "a").touch()
    (tmp_path / "a").chmod(mode)
    chat().save(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert load(tmp_path / "a").version == 1


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to("real/a")
    for system in ("one", "two"):
        chat(system=system).save(tmp_path / "a")
        assert (tmp_path / "a").is_symlink()
        assert load(tmp_path / "real" / "a").always_included_messages[0].text == system


def test_a_long_name(tmp_path: Path) -> None:
    chat().save(tmp_path / ("n" * 255))
    assert load(tmp_path / ("n" * 255)).version == 1


# === failing to load =================================================================================================


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        chat().load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a.json", "a.kani"])
def test_later_versions_are_named(tmp_path: Path, name: str) -> None:
    body = '{"version": 2, "always_included_messages": "not even a list", "threads": []}'
    path = tmp_path / name
    if name == "a.json":
        path.write_text(body)
    else:
        zipped(path, {"index.json": body})
    with pytest.raises(KaniException, match=rf"{name}.*version 2.*reads version 1.*upgrade"):
        load(path)


@pytest.mark.parametrize("size", range(0, 2000, 37))
def test_a_truncated_file(tmp_path: Path, size: int) -> None:
    for name in ("a.json", "a.kani"):
        path = tmp_path / name
        chat(*CHAT).save(path)
        data = path.read_bytes()
        if size >= len(data):
            continue
        path.write_bytes(data[:size])
        ai = chat(ChatMessage.user("of before"))
        always, history = ai.always_included_messages, ai.chat_history
        with pytest.raises(KaniException, match=rf"{name}' is not a saved chat, or is damaged: "):
            ai.load(path)
        assert ai.always_included_messages is always
        assert ai.chat_history is history
        assert len(history) == 1


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 2000), byte=st.integers(1, 255), name=st.sampled_from(["a.json", "a.kani"]))
def test_a_damaged_file_loads_or_is_refused(tmp_path: Path, where: int, byte: int, name: str) -> None:
    path = tmp_path / name
    chat(*CHAT).save(path)
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= byte
    path.write_bytes(data)
    try:
        load(path)
    except KaniException as e:
        assert name in str(e) or isinstance(e, MissingMessagePartType)  # noqa: PT017  # it may also load


@pytest.mark.parametrize(
    "body",
    ["", "{}", "[]", "null", "7", "a text", "{'version': 1}", '{"version": 0}', '{"version": "x"}', "[" * 10_000],
)
def test_foreign_files(tmp_path: Path, body: str) -> None:
    (tmp_path / "a.json").write_text(body)
    with pytest.raises(KaniException, match=r"a\.json' is not a saved chat, or is damaged: "):
        load(tmp_path / "a.json")


def test_foreign_zips_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    zipped(tmp_path / "zip", {"word/document.xml": "<xml/>"})
    for name in ("bytes", "zip"):
        with pytest.raises(KaniException, match=rf"{name}' is not a saved chat"):
            load(tmp_path / name)


def test_errors_do_not_quote_the_chat(tmp_path: Path) -> None:
    body = json.loads(SavedKani(always_included_messages=[], chat_history=CHAT).model_dump_json())
    body["chat_history"][0] |= {"name": {"my secret": 1}}
    (tmp_path / "a.json").write_text(json.dumps(body))
    with pytest.raises(KaniException, match=r"chat_history\.0\.name: Input should be a valid string") as e:
        load(tmp_path / "a.json")
    assert "secret" not in str(e.value)


def picture_at(path: Any) -> str:
    body = json.loads(SavedKani(always_included_messages=[], chat_history=[ChatMessage.user("")]).model_dump_json())
    body["chat_history"][0]["content"] = [{"path": path, MESSAGEPART_TYPE_KEY: "saved_chats.Picture"}]
    return json.dumps(body)


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "index.json",
        "blobs/ab/../../index.json",
        "blobs/00/" + "0" * 64 + "/../x",
        "blobs/00/" + "1" * 64,
        "blobs/" + "0" * 64,
    ],
)
def test_paths_that_are_no_blobs(tmp_path: Path, path: str) -> None:
    zipped(tmp_path / "a", {path: b"x"} | {"index.json": picture_at(path)})
    with pytest.raises(KaniException, match=r"/a' can't be loaded.*not the path of a blob"):
        load(tmp_path / "a")


def test_missing_and_swapped_blobs(tmp_path: Path) -> None:
    path = f"blobs/00/{'0' * 64}.png"
    zipped(tmp_path / "missing", {"index.json": picture_at(path)})
    zipped(tmp_path / "swapped", {"index.json": picture_at(path), path: b"x"})
    for name, error in (("missing", "missing or damaged"), ("swapped", "another hash")):
        with pytest.raises(KaniException, match=rf"/{name}' can't be loaded.*{error}"):
            load(tmp_path / name)


@pytest.mark.parametrize("path", [7, None, ["x"], {}])
def test_paths_of_other_types(tmp_path: Path, path: Any) -> None:
    zipped(tmp_path / "a", {"index.json": picture_at(path)})
    with pytest.raises(KaniException, match=r"/a' is not a saved chat, or is damaged"):
        load(tmp_path / "a")


def test_bombs_are_refused_unread(tmp_path: Path) -> None:
    empty = SavedKani(always_included_messages=[], chat_history=[]).model_dump_json()
    path = zipped(tmp_path / "a", {"index.json": empty, "blobs/x": bytes(3_000_000)})
    assert path.stat().st_size < 10_000
    with pytest.raises(KaniException, match=r"/a' can't be loaded.*3,000,.*limit is 1,000,000.*max_bytes"):
        load(path, max_bytes=1_000_000)
    ai = chat(ChatMessage.user("of before"))
    ai.load(path, max_bytes=4_000_000)
    assert ai.chat_history == []
    (tmp_path / "a.json").write_text(empty + " " * 1000)
    with pytest.raises(KaniException, match="limit is 1,000"):
        load(tmp_path / "a.json", max_bytes=1000)


def test_a_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a", {"index.json": " " * 3_000_000})
    data = path.read_bytes()
    lie = data.replace((3_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lie != data
    path.write_bytes(lie)
    with pytest.raises(KaniException, match="damaged"):
        load(path, max_bytes=1000)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compressions(tmp_path: Path, method: int) -> None:
    zipped(tmp_path / "a", {"index.json": "{}"}, method)
    with pytest.raises(KaniException, match=r"'index\.json'.*compressed"):
        load(tmp_path / "a")


def test_loading_imports_nothing(tmp_path: Path) -> None:
    body = json.loads(SavedKani(always_included_messages=[], chat_history=CHAT).model_dump_json())
    body["chat_history"][0]["content"] = [{MESSAGEPART_TYPE_KEY: "antigravity.Part"}]
    (tmp_path / "a.json").write_text(json.dumps(body))
    ai = chat(ChatMessage.user("of before"))
    with pytest.raises(MissingMessagePartType, match=r"antigravity\.Part"):
        ai.load(tmp_path / "a.json")
    assert "antigravity" not in sys.modules
    assert [m.text for m in ai.chat_history] == ["of before"]
