"""From a row's prompt to the text the model reads: prompt template, system message, chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

from rl4dlm.data.template_bounds import require_bounded
from rl4dlm.errors import DataError
from rl4dlm.recipe.sections import DataConfig

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class PromptTemplate:
    """`data.prompt_template`, parsed once: literal text and the names of columns in between.

    Values are inserted as they are and never parsed, so braces in them are text.
    """

    parts: tuple[tuple[str, str | None], ...]
    """Literal text, then the column whose value follows it."""

    @classmethod
    def parse(cls, text: str) -> PromptTemplate:
        """Raises DataError for unbalanced braces, fields that are not plain names, and a text without any."""
        remedy = "write {prompt} or another column's name in braces; a literal brace is doubled: {{ or }}"
        parts: list[tuple[str, str | None]] = []
        try:
            for literal, field, spec, conversion in Formatter().parse(text):
                if field is not None and (not field or spec or conversion):
                    raise ValueError(
                        f"{{{field}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
                    )
                parts.append((literal, field))
        except ValueError as error:
            raise DataError(f"data.prompt_template = {text!r}: {error}.\nFix: {remedy}.") from None
        if all(field is None for _, field in parts):
            raise DataError(
                f"data.prompt_template = {text!r}: every prompt would be the same.\nFix: {remedy}."
            )
        return cls(tuple(parts))

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns that the template names, `prompt` among them where it does."""
        return tuple(dict.fromkeys(field for _, field in self.parts if field is not None))

    def fill(self, values: Mapping[str, Any], where: str) -> str:
        """The text for one row.

        Raises:
            DataError: a column is unknown or empty.
        """
        pieces = []
        for literal, field in self.parts:
            pieces.append(literal)
            if field is None:
                continue
            if field not in values:
                raise _unknown_field(field, list(values), where)
            if values[field] is None:
                raise DataError(
                    f"{where}: column `{field}`, which data.prompt_template names, is empty.\n"
                    "Fix: fill or remove the row."
                )
            pieces.append(str(values[field]))
        return "".join(pieces)


@dataclass(frozen=True)
class Renderer:
    """Prompts -> the text that the model reads; the same for training, evaluation and the warm start."""

    tokenizer: Any
    """Anything with `apply_chat_template`; not used where `chat` is False."""
    chat: bool
    """Apply the tokenizer's chat template."""
    template: PromptTemplate | None = None
    system_prompt: str | None = None

    def check_columns(self, names: Sequence[str], where: str) -> None:
        """Raises DataError when the prompt template names a column that is not there."""
        for field in self.template.fields if self.template else ():
            if field != "prompt" and field not in names:
                raise _unknown_field(field, ["prompt", *names], where)

    def text(self, prompt: str | Messages, row: Mapping[str, Any], where: str) -> str:
        """What the model reads.

        Args:
            prompt: as `clean_prompt` returns it.
            row: the row's columns, for the prompt template.
            where: file and row, for messages.

        Raises:
            DataError: the prompt does not go with the templates, or the chat template refuses it.
        """
        if self.template is not None:
            if not isinstance(prompt, str):
                raise DataError(
                    f"{where}: the prompt is a list of chat messages, and data.prompt_template wraps text.\n"
                    "Fix: remove data.prompt_template."
                )
            prompt = self.template.fill({**row, "prompt": prompt}, where)
        if self.chat:
            return self._chat_text(prompt, where)
        if isinstance(prompt, str):
            return prompt
        if len(prompt) == 1 and prompt[0]["role"] == "user":
            return prompt[0]["content"]
        raise DataError(
            f"{where}: the prompt has {len(prompt)} chat messages, and no chat template is applied.\n"
            "Fix: use a tokenizer with a chat template and model.chat_template: auto, or prompts as text."
        )

    def pair(
        self, prompt: str | Messages, completion: str, row: Mapping[str, Any], where: str
    ) -> tuple[str, str]:
        """What the model reads, and what it should write after it: a chat template closes the answer.

        Args:
            prompt: as for `text`.
            completion: the assistant's message.
            row: the row's columns, for the prompt template.
            where: file and row, for messages.

        Raises:
            DataError: as `text`, or the chat template writes the prompt differently before an answer.
        """
        asked = self.text(prompt, row, where)
        if not self.chat:
            return asked, completion
        wrapped = prompt if self.template is None else self.template.fill({**row, "prompt": prompt}, where)
        messages = [*self._messages(wrapped, where), {"role": "assistant", "content": completion}]
        whole = self._apply(messages, where, add_generation_prompt=False)
        if not whole.startswith(asked):
            raise DataError(
                f"{where}: the tokenizer's chat template writes the prompt differently before an answer, so "
                "it cannot be said where the completion begins.\n"
                "Fix: set model.chat_template: none and put the format into data.prompt_template."
            )
        return asked, whole[len(asked) :]

    def _messages(self, prompt: str | Messages, where: str) -> Messages:
        """The conversation of a prompt, with the system message."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self.system_prompt is not None:
            if messages[0]["role"] == "system":
                raise DataError(
                    f"{where}: the prompt begins with a system message of its own.\n"
                    "Fix: remove data.system_prompt."
                )
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        return messages

    def _chat_text(self, prompt: str | Messages, where: str) -> str:
        messages = self._messages(prompt, where)
        opened = messages[-1]["role"] == "assistant"  # the model goes on where that message ends
        return self._apply(messages, where, add_generation_prompt=not opened, continue_final_message=opened)

    def _apply(self, messages: Messages, where: str, **options: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except Exception as error:  # templates are programs of the model's author
            raise DataError(
                f"{where}: the tokenizer's chat template fails: {error}.\n"
                "Fix: mend the row's messages, or set model.chat_template: none."
            ) from error


def open_renderer(data: DataConfig, tokenizer: Any, chat_template: Literal["auto", "none"]) -> Renderer:
    """The renderer of a recipe.

    Raises:
        DataError: `data.prompt_template` cannot be parsed, or `data.system_prompt` has no chat template.
        ModelError: the chat template does not end within bounds.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    chat = has_template and chat_template == "auto"
    if data.system_prompt is not None and not chat:
        reason = "model.chat_template is none" if has_template else "the tokenizer has none"
        raise DataError(
            f"data.system_prompt needs a chat template, and {reason}.\n"
            "Fix: remove data.system_prompt and put its text into data.prompt_template."
        )
    if chat:
        require_bounded(tokenizer)
    template = PromptTemplate.parse(data.prompt_template) if data.prompt_template is not None else None
    return Renderer(tokenizer, chat, template, data.system_prompt)


def clean_prompt(value: Any, *, as_text: bool, where: str) -> str | Messages:
    """A prompt column's value as text or chat messages.

    Args:
        value: text, or messages with `role` and `content`; fields of a message that are None are left out
            (columnar files give all messages the same fields).
        as_text: a prompt template will wrap it, so other values (numbers, lists) are taken as text.
        where: file and row, for messages.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        messages = [{key: part for key, part in message.items() if part is not None} for message in value]
        for index, message in enumerate(messages):
            if not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise DataError(
                    f"{where}: message {index} of the prompt lacks `role` or text in `content`: it has "
                    f"{', '.join(message) or 'nothing'}.\nFix: give every message both, as text."
                )
        return messages
    if as_text:
        return str(value)
    raise DataError(
        f"{where}: the prompt is of type {type(value).__name__}, neither text nor chat messages.\n"
        "Fix: name another column in data.prompt_column, or wrap the value with data.prompt_template."
    )


def _unknown_field(field: str, names: Sequence[str], where: str) -> DataError:
    listed = ", ".join(names)
    return DataError(
        f"{where}: data.prompt_template names {field!r}, and there is no such column. There are: {listed}.\n"
        "Fix: use one of these; a literal brace is doubled: {{ or }}."
    )
