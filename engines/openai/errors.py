"""What a server answers, or doesn't, as errors that say what to do."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from kani_lite.exceptions import EngineError, KaniException, PromptTooLong

# what a prompt may be longer than, and that it is; a field's name alone says neither
_LIMIT = r"context (?:length|size|window)|maximum (?:model|prompt) length|max_model_len|number of tokens allowed"
_EXCEEDED = r"exceed|longer|too (?:long|large|many)|maximum|\d+ tokens|of only \d"
_TOO_LONG = re.compile(rf"(?=.*(?:{_LIMIT}))(?=.*(?:{_EXCEEDED}))|prompt is too long", re.I)
_TOO_LONG_CODE = re.compile(r"context.*(?:exceed|overflow|too_?l)|exceed.*context", re.I)
_OUR_FAULT = re.compile(r"invalid_request|bad_?request", re.I)
# Hugging Face's TGI: the prompt alone, or with the reply
_TGI = re.compile(r"`inputs`.* must (?:be <=|have less than) (\d+)(?:.*Given: (\d+))?")
_TEMPORARY_STATUS = {408, 409, 425, 429}


class ServerError(EngineError):
    """A server can't be reached, refused a request, or broke off its answer.

    `status`: of its answer, None if there was none. `retry_after`: seconds that it asks to wait. `temporary`: whether
    the same request may succeed later.
    """

    def __init__(
        self, text: str, *, status: int | None = None, retry_after: float | None = None, temporary: bool = False
    ) -> None:
        super().__init__(text)
        self.status, self.retry_after, self.temporary = status, retry_after, temporary


def translated(error: Exception, url: str, model: str, messages: Sequence[Mapping[str, Any]] = ()) -> KaniException:
    """The error for what the openai package, or the HTTP library under it, raised: PromptTooLong or ServerError."""
    if isinstance(error, KaniException):
        return error
    said, body = _said(error)
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return _refusal(status, said, body, _headers(error), url, model, messages)
    kind = type(error).__name__
    if "Timeout" in kind:
        return ServerError(
            f"The server at {url} let more time pass than timeout= allows: try again, or pass a longer timeout.",
            temporary=True,
        )
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) or kind == "APIResponseValidationError":
        return ServerError(f"The server at {url} sent what is no JSON ({error}): is that its API?", temporary=True)
    cause = error.__cause__ or error
    return ServerError(
        f"The server at {url} can't be reached, or broke off its answer ({type(cause).__name__}: {cause}): check that "
        "it runs and that api_base is right.",
        temporary=True,
    )


def told_error(error: Any, url: str, model: str, messages: Sequence[Mapping[str, Any]]) -> KaniException:
    """The error for one that a server tells within a stream, or with status 200."""
    body = error if isinstance(error, Mapping) else {"message": error}
    code, codes = body.get("code"), f"{body.get('code')} {body.get('type')}"
    status = 400 if _OUR_FAULT.search(codes) or _TOO_LONG_CODE.search(codes) else 500
    status = code if isinstance(code, int) and 400 <= code < 600 else status
    said = " ".join(str(body.get("message") or body).split())[:500]
    return _refusal(status, said, body, {}, url, model, messages)


def _refusal(
    status: int,
    said: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    url: str,
    model: str,
    messages: Sequence[Mapping[str, Any]],
) -> KaniException:
    code = str(body.get("code") or body.get("type") or "")
    if status in (400, 413, 422) and _says_too_long(said, f"{body.get('code')} {body.get('type')}"):
        return PromptTooLong(f"The server at {url} finds the prompt too long: {said.rstrip('.')}.{longest(messages)}")
    if status in (401, 403):
        text = f"The server at {url} refuses the key ({status}: {said}): pass api_key=, or set OPENAI_API_KEY."
        return ServerError(text, status=status)
    if status == 404:
        text = (
            f"The server at {url} has no model {model!r}, or no chat completions ({status}: {said}): check model= and "
            "api_base=, which mostly ends in /v1."
        )
        return ServerError(text, status=status)
    spent = code in ("insufficient_quota", "billing_hard_limit_reached")
    temporary = (status in _TEMPORARY_STATUS or status >= 500) and not spent
    after = retry_after(headers)
    if temporary:
        later = f" It asks to wait {after:.0f} s." if after is not None else ""
        text = f"The server at {url} can't answer now ({status}: {said}): try again later.{later}"
        return ServerError(text, status=status, retry_after=after, temporary=True)
    return ServerError(f"The server at {url} refuses the request ({status}): {said}", status=status)


def _says_too_long(said: str, codes: str) -> bool:
    """Whether a refusal is about the prompt's length, rather than about a reply that was asked for."""
    if tgi := _TGI.search(said):
        return tgi[2] is None or int(tgi[2]) >= int(tgi[1])
    if "max_tokens" in said and "too large" in said:  # vLLM names the context there too
        return False
    return bool(_TOO_LONG_CODE.search(codes) or _TOO_LONG.search(said))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait (RFC 9110, section 10.2.3: a number or a date); None if it doesn't."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text) / unit
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except ValueError:
        return None


def longest(messages: Sequence[Mapping[str, Any]]) -> str:
    """Which message is the longest, as the end of an error's text."""
    if not messages:
        return ""
    sizes = [len(json.dumps(message, ensure_ascii=False)) for message in messages]
    at = max(range(len(sizes)), key=sizes.__getitem__)
    return (
        f" The longest of {len(messages)} messages is number {at + 1} ({messages[at].get('role')}, {sizes[at]:,} "
        "characters): shorten it, or send fewer."
    )


def _headers(error: Exception) -> Mapping[str, str]:
    response = getattr(error, "response", None)
    return response.headers if response is not None else {}


def _said(error: Exception) -> tuple[str, Mapping[str, Any]]:
    """(the server's own words, its error object)."""
    body: Any = getattr(error, "body", None)
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    if isinstance(body, Mapping):
        words = body.get("message") or body.get("detail") or body.get("error")
        return " ".join(str(words or body).split())[:500], body
    words = body if isinstance(body, str) and body.strip() else getattr(error, "message", None) or str(error)
    return " ".join(str(words).split())[:500], {}
