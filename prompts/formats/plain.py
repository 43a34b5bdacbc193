"""Text alone, and calls as JSON without markers."""

from ..calls import read_bare_json
from ..parsing import Format

PLAIN = Format("plain")
JSON = Format("json", bare=read_bare_json)
