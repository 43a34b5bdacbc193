"""Python functions that a model may call: their schema, their arguments, their results."""

from .arguments import ArgumentsError
from .decorator import ai_function
from .function import AIFunction
from .params import AIParam, AIParamSchema, get_aiparam
from .results import result_to_content, truncate_text
from .schema import REF_TEMPLATE, JSONSchemaBuilder, create_json_schema

__all__ = [
    "REF_TEMPLATE",
    "AIFunction",
    "AIParam",
    "AIParamSchema",
    "ArgumentsError",
    "JSONSchemaBuilder",
    "ai_function",
    "create_json_schema",
    "get_aiparam",
    "result_to_content",
    "truncate_text",
]
