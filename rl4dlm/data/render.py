"""From a row to what the model reads and should write: prompt template, system message, chat template, ids.

Prompts of rollouts, examples of fine-tuning, preferences, evaluations and `rl4dlm sample` all pass through
the one `Renderer`, so that what is trained is what is sampled. Conversations are rendered by TRL's
`apply_chat_template`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rl4dlm.data.messages import CARRIES_MEANING, Message, Messages, is_messages
from rl4dlm.data.template import PromptTemplate, unknown_field
from rl4dlm.data.template_bounds import require_bounded
from rl4dlm.errors import DataError
from rl4dlm.recipe.bounded import Unreadable, parse_json
from rl4dlm.recipe.sections import DataConfig

Encode = Callable[[str], tuple[int, ...]]
Ids = tuple[int, ...]

_SET_BY_US = ("messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize")


@dataclass(frozen=True)
class TextFormat:
    """How texts become what a model reads: its tokenizer, its stop ids, and the recipe's chat settings.

    Example: `TextFormat(tokenizer, partial(encode, tokenizer, mask_id=3), stop_ids=(1,))`.
    """

    tokenizer: Any
    """A Hugging Face tokenizer: applies its chat template, and decodes prompts that were cut."""
    encode: Encode
    """Text -> ids, without special tokens of its own. Refuses a text that spells the mask."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end a text; what a chat template writes after the last of them is not learned."""
    chat_template: Literal["auto", "none"] = "auto"
    template_kwargs: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


class Renderer:
    """Rows -> texts and ids; the same for training, evaluation, preferences and the warm start."""

    def __init__(
        self, texts: TextFormat, template: PromptTemplate | None = None, system_prompt: str | None = None
    ) -> None:
        """
        Raises:
            DataError: a setting has no chat template that reads it.
        """
        self.texts, self.template = texts, template
        self._system_prompt = system_prompt
        has_template = bool(getattr(texts.tokenizer, "chat_template", None))
        self.chat = has_template and texts.chat_template == "auto"
        """Whether the tokenizer's chat template is applied."""
        self._no_template = "model.chat_template is none" if has_template else "the tokenizer has none"
        self._source = str(getattr(texts.tokenizer, "chat_template", None) or "")
        self._variables = _variables(self._source)
        self._reads: dict[tuple[str, str], bool] = {}
        self._remarks: dict[str, str] = {}
        self._control, self._spelled = _control_tokens(texts.tokenizer), 0
        if system_prompt is not None and not self.chat:
            raise DataError(
                f"data.system_prompt needs a chat template, and {self._no_template}.\n"
                "Fix: remove data.system_prompt and put its text into data.prompt_template."
            )
        for name in texts.template_kwargs:
            self._require_kwarg(name, "model.chat_template_kwargs")

    def check_columns(self, names: Sequence[str], where: str) -> None:
        """Raises DataError when the prompt template names a column that is not there."""
        for name in self.template.fields if self.template else ():
            if name != "prompt" and name not in names:
                raise unknown_field(name, ["prompt", *names], where)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a row that rendering reads besides the prompt."""
        return (*(self.template.fields if self.template else ()), "tools", "chat_template_kwargs")

    def remarks(self) -> list[str]:
        """What people should know about the rows rendered so far, each thing once."""
        return list(self._remarks.values())

    def encode(self, text: str, where: str) -> Ids:
        """Ids of a text that was rendered.

        Raises:
            DataError: the text spells the mask, or a character has no id.
        """
        try:
            return tuple(self.texts.encode(text))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None

    def prompt(self, prompt: str | Messages, row: Mapping[str, Any], where: str) -> tuple[str, Ids]:
        """What the model reads, as text and as ids; see `text`."""
        text = self.text(prompt, row, where)
        return text, self.encode(text, where)

    def example(
        self, prompt: str | Messages, answer: Message, row: Mapping[str, Any], where: str
    ) -> tuple[Ids, Ids]:
        """Ids of what the model reads and of what it should write after it.

        A chat template closes the answer; end-of-text, which follows every completion, is not among the ids.

        Raises:
            DataError: as `pair`.
        """
        asked, written = self.pair(prompt, answer, row, where)
        return self.encode(asked, where), self._closed(written, where)

    def preference(
        self, prompt: str | Messages, chosen: Message, rejected: Message, row: Mapping[str, Any], where: str
    ) -> tuple[Ids, Ids, Ids]:
        """Ids of a prompt and of its two answers; each is closed as by `example`.

        Raises:
            DataError: as `pair`.
        """
        texts = self._answered(prompt, {"chosen": chosen, "rejected": rejected}, row, where)
        return (
            self.encode(texts["prompt"], where),
            self._closed(texts["chosen"], where),
            self._closed(texts["rejected"], where),
        )

    def text(self, prompt: str | Messages, row: Mapping[str, Any], where: str) -> str:
        """What the model reads.

        Args:
            prompt: text or messages, as `as_prompt` returns it.
            row: the row's columns, for the prompt template; `tools` and `chat_template_kwargs` go to the chat
                template, as in TRL.
            where: file and row, for messages.

        Raises:
            DataError: the prompt does not go with the templates, holds what nothing reads, or the chat
                template refuses it.
        """
        wrapped = self._wrapped(prompt, row, where)
        self._note_control_tokens(wrapped, where)
        if self.chat:
            return self._apply({"prompt": self._messages(wrapped, where)}, row, where)["prompt"]
        return self._plain(wrapped, where)

    def pair(
        self, prompt: str | Messages, answer: Message, row: Mapping[str, Any], where: str
    ) -> tuple[str, str]:
        """What the model reads, and what it should write after it: a chat template closes the answer.

        Args:
            prompt: as for `text`.
            answer: the assistant's message.
            row: as for `text`.
            where: file and row, for messages.

        Raises:
            DataError: as `text`, or the chat template writes the prompt differently before an answer.
        """
        texts = self._answered(prompt, {"completion": answer}, row, where)
        return texts["prompt"], texts["completion"]

    def _answered(
        self, prompt: str | Messages, answers: Mapping[str, Message], row: Mapping[str, Any], where: str
    ) -> dict[str, str]:
        """The texts of a prompt and of its answers, by name."""
        for answer in answers.values():
            self._note_control_tokens([answer], where)
        asked = self.text(prompt, row, where)
        if not self.chat:
            for name, answer in answers.items():
                self._require_read([answer], where, name)
            return {"prompt": asked, **{name: answer["content"] for name, answer in answers.items()}}
        messages = self._messages(self._wrapped(prompt, row, where), where)
        texts = self._apply(
            {"prompt": messages, **{n: [answer] for n, answer in answers.items()}}, row, where
        )
        if texts["prompt"] != asked:
            self._require_opening(messages, asked, texts["prompt"], row, where)
        return texts

    def _require_opening(
        self, messages: Messages, asked: str, shared: str, row: Mapping[str, Any], where: str
    ) -> None:
        """The conversation itself must read the same before an answer; how an answer is opened may differ.

        Templates of reasoning models open an answer with `<think>` where one is asked for, and leave it out
        of answers without reasoning. As in TRL the prompt then ends where both agree.
        """
        given, _ = self._options(row, where)
        opened = messages[-1]["role"] == "assistant"
        base = asked if opened else self._call(messages, where, add_generation_prompt=False, **given)
        if not shared.startswith(base):
            raise DataError(
                f"{where}: the tokenizer's chat template writes the prompt differently before an answer, so "
                "it cannot be said where the completion begins.\n"
                "Fix: set model.chat_template: none and put the format into data.prompt_template."
            )
        self._remarks.setdefault(
            "opening",
            f"the chat template opens an answer with {asked[len(shared) :]!r} when one is asked for, and the "
            f"answers here do not begin so (first: {where}): prompts end before it, as in TRL",
        )

    def _closed(self, text: str, where: str) -> Ids:
        """Ids of an answer, without what a chat template writes after the end of the turn (a line's end)."""
        ids = self.encode(text, where)
        stops = [i for i, token in enumerate(ids) if token in self.texts.stop_ids]
        return ids[: stops[-1] + 1] if self.chat and stops else ids

    def _wrapped(self, prompt: str | Messages, row: Mapping[str, Any], where: str) -> str | Messages:
        if self.template is None:
            return prompt
        if not isinstance(prompt, str):
            raise DataError(
                f"{where}: the prompt is a list of chat messages, and data.prompt_template wraps text.\n"
                "Fix: remove data.prompt_template."
            )
        return self.template.fill({**row, "prompt": prompt}, where)

    def _plain(self, prompt: str | Messages, where: str) -> str:
        """A prompt without a chat template."""
        if isinstance(prompt, str):
            return prompt
        if len(prompt) == 1 and prompt[0]["role"] == "user":
            self._require_read(prompt, where, "prompt")
            return str(prompt[0]["content"])
        raise DataError(
            f"{where}: the prompt has {len(prompt)} chat messages, and no chat template is applied.\n"
            "Fix: use a tokenizer with a chat template and model.chat_template: auto, or prompts as text."
        )

    def _messages(self, prompt: str | Messages, where: str) -> Messages:
        """The conversation of a prompt, with the system message."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self._system_prompt is not None:
            if messages[0]["role"] == "system":
                raise DataError(
                    f"{where}: the prompt begins with a system message of its own.\n"
                    "Fix: remove data.system_prompt."
                )
            messages = [{"role": "system", "content": self._system_prompt}, *messages]
        return messages

    def _apply(self, example: dict[str, Messages], row: Mapping[str, Any], where: str) -> dict[str, str]:
        """TRL's rendering of a conversation."""
        from trl.data_utils import apply_chat_template

        for name, messages in example.items():
            self._require_read(messages, where, name)
        given, tools = self._options(row, where)
        try:
            texts: dict[str, str] = apply_chat_template(example, self.texts.tokenizer, tools=tools, **given)
        except Exception as error:  # templates are programs of the model's author
            raise _template_fails(error, where) from error
        return texts

    def _call(self, messages: Messages, where: str, **options: Any) -> str:
        try:
            return str(self.texts.tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except Exception as error:  # as above
            raise _template_fails(error, where) from error

    def _options(self, row: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[Any] | None]:
        """Arguments of the chat template for a row, and the tools that it may call."""
        given = dict(self.texts.template_kwargs)
        own = _decoded(row.get("chat_template_kwargs"), where, "chat_template_kwargs")
        if isinstance(own, Mapping):
            for name, value in own.items():
                if value is not None:  # columnar files give all rows the same fields
                    self._require_kwarg(name, f"{where}: chat_template_kwargs")
                    given[name] = value
        tools = _decoded(row.get("tools"), where, "tools")
        if not is_messages(tools):
            return given, None
        if "tools" not in self._variables:
            self._remarks.setdefault(
                "tools", f"column `tools`: the chat template reads none (first: {where})"
            )
        return given, tools

    def _require_kwarg(self, name: str, where: str) -> None:
        if not self.chat:
            raise DataError(
                f"{where}: `{name}` needs a chat template, and {self._no_template}.\nFix: remove it."
            )
        if name in _SET_BY_US or name not in self._variables:
            near = difflib.get_close_matches(name, self._variables.difference(_SET_BY_US), n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise DataError(
                f"{where}: the tokenizer's chat template does not read `{name}` from a user.{hint}\n"
                "Fix: correct the name, or remove it."
            )

    def _require_read(self, messages: Messages, where: str, part: str) -> None:
        """Fields of messages that nothing reads are refused where they carry meaning, else named once.

        Args:
            part: which messages of the row these are: `prompt`, `completion`, `chosen` or `rejected`.
        """
        for index, message in enumerate(messages):
            for name, value in message.items():
                unsaid = value in ("", [], {}) or (name in ("weight", "train") and value == 1)
                if name in ("role", "content") or unsaid or self._is_read(message, name):
                    continue
                reader = "the tokenizer's chat template does not read it" if self.chat else self._no_reader
                if name in CARRIES_MEANING:
                    raise DataError(
                        f"{where}: message {index} of the {part} ({message['role']}) has `{name}`, and "
                        f"{reader}.\n"
                        "Fix: use a chat template that reads it, write it into `content`, or remove it."
                    )
                self._remarks.setdefault(
                    f"field {name}", f"`{name}` of messages is left out: {reader} (first: {where})"
                )

    @property
    def _no_reader(self) -> str:
        return f"no chat template is applied ({self._no_template})"

    def _is_read(self, message: Message, name: str) -> bool:
        """Whether a short conversation reads differently without a field of a message."""
        if not self.chat:
            return False
        key = (message["role"], name)
        if key not in self._reads:
            bare = {other: value for other, value in message.items() if other != name}
            try:
                self._reads[key] = self._probe(message) != self._probe(bare)
            except DataError:  # the template wants another conversation: what it names, it may read
                self._reads[key] = bool(re.search(rf"\b{re.escape(name)}\b", self._source))
        return self._reads[key]

    def _probe(self, message: Message) -> str:
        """A message where templates show the most of it: last, or before a question."""
        asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        around = {"assistant": [asked, message], "tool": [asked, answered, message], "user": [message]}
        return self._call(
            around.get(message["role"], [message, asked]), "probe", **self.texts.template_kwargs
        )

    def _note_control_tokens(self, given: str | Messages, where: str) -> None:
        """Control tokens that a row spells keep their meaning, as in TRL; people are told."""
        parts = [given] if isinstance(given, str) else [message["content"] for message in given]
        found = next(
            (match for part in parts if self._control and (match := self._control.search(part))), None
        )
        if found is not None:
            self._spelled += 1
            first = self._remarks.get("control", f"(first: {found.group()!r} in {where})").partition("(")[2]
            self._remarks["control"] = (
                f"{self._spelled} texts spell control tokens of the tokenizer, which are read as such and "
                f"not as text ({first}"
            )


def open_renderer(data: DataConfig, texts: TextFormat) -> Renderer:
    """The renderer of a recipe.

    Raises:
        DataError: `data.prompt_template` cannot be parsed, or a setting has no chat template that reads it.
        ModelError: the chat template does not end within bounds.
    """
    template = PromptTemplate.parse(data.prompt_template) if data.prompt_template is not None else None
    renderer = Renderer(texts, template, data.system_prompt)
    if renderer.chat:
        require_bounded(texts.tokenizer)
    return renderer


def _control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches every control token but the mask, which is refused where it is encoded."""
    tokens = {
        str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special
    }
    tokens |= set(getattr(tokenizer, "all_special_tokens", ()))
    tokens.discard(str(getattr(tokenizer, "mask_token", None)))
    longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _variables(source: str) -> set[str]:
    """Names that a chat template takes from outside; of one that jinja cannot read every name in it."""
    from jinja2 import Environment, TemplateSyntaxError, nodes

    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)  # a tag of transformers'
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except TemplateSyntaxError:
        return set(re.findall(r"[A-Za-z_]\w*", source))
    # Names alone: jinja's own search would work out constant expressions such as 'x' * 10**10.
    names = list(tree.find_all(nodes.Name))
    return {name.name for name in names} - {name.name for name in names if name.ctx == "store"}


def _decoded(value: Any, where: str, column: str) -> Any:
    """A column that holds a structure, as it is or as JSON text."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return parse_json(value)
    except Unreadable as error:
        raise DataError(f"{where}: column `{column}`: {error}.\nFix: write it as JSON.") from None


def _template_fails(error: Exception, where: str) -> DataError:
    return DataError(
        f"{where}: the tokenizer's chat template fails: {error}.\n"
        "Fix: correct the row's messages, or set model.chat_template: none."
    )
