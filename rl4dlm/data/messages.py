"""From a column's value to text or chat messages: lists, lists stored as JSON text, ShareGPT's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rl4dlm.errors import DataError
from rl4dlm.recipe.bounded import Unreadable, parse_json

Message = dict[str, Any]
Messages = list[Message]

CARRIES_MEANING = frozenset(
    "reasoning reasoning_content thinking thoughts tool_calls tool_call_id function_call prefix weight train "
    "image images audio audios video videos files attachments documents refusal".split()
)
"""Fields of a message that a model would have to see, or a loss to know. Where nothing reads one, the row is
refused; other fields (names, ids, times) are named once."""

_LOOKS_LIKE_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*\\?['"](role|from|messages|conversations)\\?['"]\s*:""")
_SHAREGPT = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant"}


def text_or_messages(value: Any, where: str, *, what: str = "prompt") -> Any:
    """A value with messages that were stored as JSON text decoded, and other values as they are.

    Args:
        value: of a column.
        where: file and row, for messages.
        what: the value's role, for messages.

    Raises:
        DataError: a text begins as stored messages do and is no JSON.
    """
    if not isinstance(value, str) or not _LOOKS_LIKE_MESSAGES.match(value):
        return value
    try:
        decoded = parse_json(value)
    except Unreadable as error:
        raise DataError(
            f"{where}: the {what} is a text that begins like chat messages and is none: {error}.\n"
            "Fix: write the messages as a list, or as JSON."
        ) from None
    if isinstance(decoded, Mapping):
        decoded = decoded.get("messages", decoded.get("conversations", [decoded]))
    if not is_messages(decoded):
        raise DataError(
            f"{where}: the {what} is a text that begins like chat messages and holds none.\n"
            "Fix: write the messages as a list, or as JSON."
        )
    return decoded


def is_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages, well-formed or not."""
    return isinstance(value, list) and bool(value) and all(isinstance(message, Mapping) for message in value)


def as_messages(value: Any, where: str, *, what: str = "prompt") -> Messages:
    """Chat messages with a role and text.

    Fields that are None are left out (columnar files give all messages the same fields), and an assistant's
    message that only calls tools has the empty text. ShareGPT's `from` and `value` become `role` and
    `content`. A content of several parts that are all text is their text.

    Args:
        value: a non-empty list of mappings.

    Raises:
        DataError: a message lacks one of them, or its content is no text.
    """
    messages = [{key: part for key, part in message.items() if part is not None} for message in value]
    if any("from" in message or "value" in message for message in messages):
        from trl.data_utils import maybe_convert_to_chatml

        messages = maybe_convert_to_chatml({"messages": messages})["messages"]
        for message in messages:
            message["role"] = _SHAREGPT.get(str(message.get("role")), message.get("role"))
    for index, message in enumerate(messages):
        message["content"] = _joined(message.get("content"), f"{where}: message {index} of the {what}")
        if message.get("role") == "assistant" and message.get("tool_calls"):
            message["content"] = message["content"] or ""
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(
                f"{where}: message {index} of the {what} lacks `role` or text in `content`: it has "
                f"{', '.join(message) or 'nothing'}.\nFix: give every message both, as text."
            )
    return messages


def _joined(content: Any, where: str) -> Any:
    """The text of a content that is a list of parts, as models with pictures have it; others as they are.

    Raises:
        DataError: a part is no text.
    """
    if not isinstance(content, list):
        return content
    parts = [part if isinstance(part, Mapping) else {"type": type(part).__name__} for part in content]
    others = sorted({str(part.get("type")) for part in parts if not isinstance(part.get("text"), str)})
    if others:
        raise DataError(
            f"{where} has parts that are no text: {', '.join(others)}.\n"
            "Fix: remove the row; models here read text alone."
        )
    return "".join(part["text"] for part in parts)


def as_prompt(value: Any, *, as_text: bool, where: str) -> str | Messages:
    """A prompt column's value as text or chat messages.

    Args:
        value: text, or messages with `role` and `content`, as a list or as JSON text.
        as_text: a prompt template will wrap it, so other values (numbers, lists) are taken as text.
        where: file and row, for messages.

    Raises:
        DataError: it is neither.
    """
    value = text_or_messages(value, where)
    if isinstance(value, str):
        return value
    if is_messages(value):
        return as_messages(value, where)
    if as_text:
        return str(value)
    raise DataError(
        f"{where}: the prompt is of type {type(value).__name__}, neither text nor chat messages.\n"
        "Fix: name another column in data.prompt_column, or wrap the value with data.prompt_template."
    )


def as_answer(value: Any, column: str, where: str) -> Message:
    """A completion as the one message of the assistant that it is: text, a message, or a list of one.

    Raises:
        DataError: it is something else, or empty.
    """
    value = text_or_messages(value, where, what=f"completion in column `{column}`")
    if isinstance(value, str) and value:
        return {"role": "assistant", "content": value}
    if value in (None, "", []):
        raise DataError(
            f"{where}: the completion in column `{column}` is empty.\nFix: fill or remove the row."
        )
    if not is_messages(value):
        raise DataError(
            f"{where}: the completion in column `{column}` is of type {type(value).__name__}, not text.\n"
            "Fix: fill or remove the row."
        )
    messages = as_messages(value, where, what=f"completion in column `{column}`")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise DataError(
            f"{where}: the completion in column `{column}` is not one message of the assistant.\n"
            "Fix: put earlier turns into the prompt."
        )
    return _filled(messages[0], column, where)


def split_conversation(value: Any, column: str, where: str) -> tuple[Messages, Message]:
    """A conversation as what came before the last message, and that message.

    Raises:
        DataError: it does not end with an answer of the assistant.
    """
    value = text_or_messages(value, where, what=f"conversation in column `{column}`")
    messages = as_messages(value, where) if is_messages(value) else []
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: the conversation in column `{column}` does not end with an answer of the assistant.\n"
            "Fix: remove what follows the answer, or the row."
        )
    return messages[:-1], _filled(messages[-1], column, where)


def _filled(answer: Message, column: str, where: str) -> Message:
    if not answer["content"] and not CARRIES_MEANING & answer.keys():
        raise DataError(
            f"{where}: the completion in column `{column}` is empty.\nFix: fill or remove the row."
        )
    return answer
