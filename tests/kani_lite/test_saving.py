from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_chats import CHAT, FORMATS, PICTURE, Format, Picture, chat

from kani_lite import ChatMessage, ChatRole, MessagePart, ReasoningPart, TextPart, ToolCall
from kani_lite.exceptions import MissingMessagePartType
from kani_lite.messages import MESSAGEPART_TYPE_KEY
from kani_lite.saving import SAVELOAD_CONTEXT_KEY, KaniZipSaveContext, SavedKani, get_ctx, load, save

# a chat that kani 1.10.0 saved, as .json and (another) as .kani
FROM_KANI_JSON = (
    '{"version":1,"always_included_messages":[{"role":"system","content":"Be kind.","name":null,"tool_call_id":null,'
    '"tool_calls":null,"is_tool_call_error":null,"extra":{}}],"chat_history":[{"role":"user","content":["Hi ☃",'
    '{"extra":{},"content":"there","__kani_messagepart_type__":"kani.parts.text.TextPart"}],"name":null,'
    '"tool_call_id":null,"tool_calls":null,"is_tool_call_error":null,"extra":{}},{"role":"assistant","content":'
    '[{"extra":{"k":"<class \'object\'>"},"content":"hm",'
    '"__kani_messagepart_type__":"kani.parts.reasoning.ReasoningPart"}],"name":null,"tool_call_id":null,"tool_calls":'
    '[{"id":"1","type":"function","function":{"name":"f","arguments":"{\\"a\\": 1}"}}],"is_tool_call_error":null,'
    '"extra":{}},{"role":"function","content":null,"name":"f","tool_call_id":"1","tool_calls":null,'
    '"is_tool_call_error":false,"extra":{}}]}'
)
FROM_KANI_ZIP = """
UEsDBBQAAAAIAAAAIQClvutbBgAAAAQAAABNAAAAYmxvYnMvMGYvMGY0NjM2Yzc4ZjY1ZDM2MzllY2U1YTA2NGI1YWU3NTNlMzQwODYx
NGExNGZiMThhYjRkNzU0MGQyYzI0ODU0My5wbmfrDPBzBwBQSwMEFAAAAAgAAAAhALf/Nr/8AAAAmAEAAAoAAABpbmRleC5qc29uhZDN
boQwDITfxWdEYQk/5bKvsOq1WkUmmCVqSFAc2iLEuzfbirZSD5V8sOazZkbe4JU8a2ehzRNA84YrS22VWXrq5UTMeCOG9vmagBoxyFFz
cH6NygbeGYIWFiYPETsbyIZPMmMYI+mM6/ghG+KIqqhU3QxV2RdV8UiKSswq0ZVIdVlQIbKmygXmYujyBjvR16XI+pM6iaYURTrbW4yQ
8gWtPmrN6IMM60xSxqxZq7B44vTytcCebEDvwSO02/6rHozTP1Z3kt4lTj0hO6vtLX06tksE0RzOEH9icYovsIsxCQTnjFRojNT9H40P
RbP8OSTvnT/Id9n9un8AUEsBAhQDFAAAAAgAAAAhAKW+61sGAAAABAAAAE0AAAAAAAAAAAAAAIABAAAAAGJsb2JzLzBmLzBmNDYzNmM3
OGY2NWQzNjM5ZWNlNWEwNjRiNWFlNzUzZTM0MDg2MTRhMTRmYjE4YWI0ZDc1NDBkMmMyNDg1NDMucG5nUEsBAhQDFAAAAAgAAAAhALf/
Nr/8AAAAmAEAAAoAAAAAAAAAAAAAAIABcQAAAGluZGV4Lmpzb25QSwUGAAAAAAIAAgCzAAAAlQEAAAAA
"""


# === round trips =====================================================================================================


@pytest.mark.parametrize("name", ["a.json", "a.kani", "a", "a.json.bak", ".json"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    chat(*CHAT).save(tmp_path / name)
    assert zipfile.is_zipfile(tmp_path / name) is (name != "a.json")
    loaded = chat(ChatMessage.user("of before"), system="other")
    loaded.load(str(tmp_path / name))
    assert loaded.always_included_messages == [ChatMessage.system("Be kind.")]
    assert loaded.chat_history == CHAT
    assert loaded.system_prompt == "other", "only the messages are loaded"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("format_", FORMATS)
def test_the_format_can_be_given_and_is_seen_when_loading(tmp_path: Path, format_: Format) -> None:
    path = tmp_path / ("a.kani" if format_ == "json" else "a.json")
    chat(*CHAT).save(path, save_format=format_)
    assert zipfile.is_zipfile(path) is (format_ == "kani")
    assert load(path).chat_history == CHAT


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'xml'"):
        chat().save(tmp_path / "a", save_format="xml")  # type: ignore[arg-type]  # that is the test
    assert os.listdir(tmp_path) == []


def test_the_body(tmp_path: Path) -> None:
    chat(ChatMessage.user([ReasoningPart(content="r")])).save(tmp_path / "a.json")
    nothing: dict[str, Any] = {
        "name": None,
        "tool_call_id": None,
        "tool_calls": None,
        "is_tool_call_error": None,
        "extra": {},
    }
    part = {"extra": {}, "content": "r", MESSAGEPART_TYPE_KEY: "kani.parts.reasoning.ReasoningPart"}
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "version": 1,
        "always_included_messages": [{"role": "system", "content": "Be kind.", **nothing}],
        "chat_history": [{"role": "user", "content": [part], **nothing}],
    }


def test_extras_that_are_no_json_become_their_repr(tmp_path: Path) -> None:
    chat(ChatMessage.user("a", extra={"type": int, "model": ToolCall.from_function("f", call_id_="1")})).save(
        tmp_path / "a.json"
    )
    assert load(tmp_path / "a.json").chat_history[0].extra == {
        "type": "<class 'int'>",
        "model": {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    }


def test_arguments_for_pydantic(tmp_path: Path) -> None:
    ai = chat(ChatMessage.user("a", extra={"n": int}))
    ai.save(tmp_path / "a.json", indent=2, exclude_none=True, fallback=lambda _: "seven", context={"mine": 1})
    text = (tmp_path / "a.json").read_text()
    assert '"n": "seven"' in text
    assert "null" not in text
    ai.save(tmp_path / "a.kani", context={"mine": 1})
    ai.load(tmp_path / "a.kani", context={"mine": 1}, strict=False)
    for path in ("a.kani", "missing"):
        with pytest.raises(TypeError, match="indentation"):
            ai.load(tmp_path / path, indentation=2)


def test_nothing_said_yet(tmp_path: Path) -> None:
    chat(system=None).save(tmp_path / "a")
    assert load(tmp_path / "a") == SavedKani(always_included_messages=[], chat_history=[])


def test_save_takes_what_has_messages(tmp_path: Path) -> None:
    saved = SavedKani(always_included_messages=[], chat_history=CHAT)
    save(tmp_path / "a", saved)
    assert load(tmp_path / "a") == saved


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
extras = st.dictionaries(st.text(max_size=5), json_values, max_size=2)
parts = (
    st.text()
    | st.builds(TextPart, content=st.text(), extra=extras)
    | st.builds(ReasoningPart, content=st.text(), extra=extras)
    | st.builds(Picture, data=st.binary(max_size=50))
)
calls = st.builds(ToolCall.from_function, st.text(), call_id_=st.text(min_size=1), value=json_values)
messages = st.builds(
    ChatMessage,
    role=st.sampled_from(ChatRole),
    content=st.none() | st.text() | st.lists(parts, max_size=4),
    name=st.none() | st.text(),
    tool_call_id=st.none() | st.text(),
    tool_calls=st.none() | st.lists(calls, max_size=2),
    is_tool_call_error=st.none() | st.booleans(),
    extra=extras,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(always=st.lists(messages, max_size=1), history=st.lists(messages, max_size=4), format_=st.sampled_from(FORMATS))
def test_any_chat_round_trips(
    tmp_path: Path, always: list[ChatMessage], history: list[ChatMessage], format_: Format
) -> None:
    saved = SavedKani(always_included_messages=always, chat_history=history)
    before = saved.model_copy(deep=True)
    save(tmp_path / "a", saved, save_format=format_)
    loaded = load(tmp_path / "a")
    assert loaded == saved == before
    if format_ == "kani":
        found = [p.data for m in [*always, *history] for p in m.parts if isinstance(p, Picture)]
        with zipfile.ZipFile(tmp_path / "a") as zf:
            assert sorted(zf.namelist()) == sorted(
                {f"blobs/{h[:2]}/{h}.png" for h in (sha256(data).hexdigest() for data in found)} | {"index.json"}
            )


# === blobs ===========================================================================================================


def test_bytes_are_kept_once(tmp_path: Path) -> None:
    pictures = [Picture(data=PICTURE), Picture(data=PICTURE), Picture(data=PICTURE, suffix=".jpg"), Picture(data=b"")]
    chat(ChatMessage.user(pictures), ChatMessage.user(pictures)).save(tmp_path / "a")
    digest = sha256(PICTURE).hexdigest()
    with zipfile.ZipFile(tmp_path / "a") as zf:
        names = zf.namelist()
        assert zf.testzip() is None
        assert {i.compress_type for i in zf.infolist()} == {zipfile.ZIP_DEFLATED}
    assert len(names) == len(set(names)) == 4
    assert {f"blobs/{digest[:2]}/{digest}.png", f"blobs/{digest[:2]}/{digest}.jpg"} < set(names)
    (first, second) = load(tmp_path / "a").chat_history
    assert first.parts == pictures
    assert all(isinstance(p, Picture) for p in [*first.parts, *second.parts])
    assert first.parts[0].data is second.parts[1].data, "read once"  # type: ignore[union-attr]  # checked above


def test_the_same_chat_makes_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        chat(*CHAT).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("suffix", ["/x", "/../../etc", "\\x", "\n", ".\0"])
def test_a_suffix_is_part_of_a_name(suffix: str) -> None:
    with zipfile.ZipFile(BytesIO(), "w") as zf, pytest.raises(ValueError, match="suffix"):
        KaniZipSaveContext(zf).save_bytes(b"x", suffix)


def test_the_context_of_other_dumps() -> None:
    class Info:
        context: Any = None

    info: Any = Info()
    assert get_ctx(info) is None
    info.context = {"other": 1}
    assert get_ctx(info) is None
    with zipfile.ZipFile(BytesIO(), "w") as zf:
        info.context = {SAVELOAD_CONTEXT_KEY: (ctx := KaniZipSaveContext(zf=zf))}
        assert get_ctx(info) is ctx


# === kani's files ====================================================================================================


def test_loads_json_of_kani(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(FROM_KANI_JSON, encoding="utf-8")
    ai = chat()
    ai.load(tmp_path / "a.json")
    assert ai.always_included_messages == [ChatMessage.system("Be kind.")]
    assert ai.chat_history == [
        ChatMessage.user(["Hi ☃", TextPart(content="there")]),
        ChatMessage.assistant(
            [ReasoningPart(content="hm", extra={"k": "<class 'object'>"})],
            tool_calls=[ToolCall.from_function("f", call_id_="1", a=1)],
        ),
        ChatMessage.function("f", None, "1", is_tool_call_error=False),
    ]
    ai.save(tmp_path / "b.json")
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == FROM_KANI_JSON, "and we write what it would"


def test_loads_a_zip_of_kani(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(base64.b64decode(FROM_KANI_ZIP))
    with pytest.raises(MissingMessagePartType, match=r"pictures\.Picture") as e:
        load(tmp_path / "a")
    assert e.value.fqn == "pictures.Picture"
    monkeypatch.setitem(MessagePart.registry, "pictures.Picture", Picture)
    assert load(tmp_path / "a").chat_history == [
        ChatMessage.user([Picture(data=b"\x89PNG"), ReasoningPart(content="hm"), "?"])
    ]


def test_what_is_only_for_saving_is_imported_when_saving() -> None:
    # pydantic imports what it needs first: on Python 3.11 that is zipfile too
    program = (
        "import sys, pydantic; pydantic.create_model('M'); before = set(sys.modules); import kani_lite; "
        "print({'zipfile', 'kani_lite.saving'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
