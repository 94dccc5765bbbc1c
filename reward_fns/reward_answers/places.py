r"""Where the answer of a text stands: in a box, in a tag, behind a phrase.

Source: the conventions of MATH (`\boxed`, arXiv:2103.03874), GSM8K (`####`, arXiv:2110.14168) and d1
(`<answer>`, arXiv:2504.12216).
"""

from __future__ import annotations

import re
from typing import Any

TAIL = 20_000
"""An answer is looked for in so many characters at the end of a text."""
_MAX_BARE = 100
_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s{0,3}\{|\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ ~]{0,3}(?=[^\s{~])")
_BARE_CONTENT = re.compile(
    r"-?\\d?frac\s?(?:[0-9]{2}|\{[^{}]{1,40}\}\s?\{[^{}]{1,40}\})|-?[0-9][0-9,]*(?:\.[0-9]+)?|[A-Za-z](?![A-Za-z])"
)
_PHRASE = re.compile(r"\banswers?\s*(?:\([^()\n]{0,30}\)\s*)?(?:is|are|was|will be|:|=)\s*:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s+\S)|\n|(?<=\S)[;,]\s+(?=(?:so|since|because|which|where|as)\b)")
_EMPHASIS = re.compile(
    r"(?<![\w)*])\*{2,3}(?=[^\s*])([^*\n]{1,400}?)(?<=[^\s*])\*{2,3}(?![\w(*])"
    r"|\A\s*[*_](?=[^\s*_])([^*_\n]{1,400})(?<=[^\s*_])[*_]\s*\Z"
)
"""Not `2**8+3**5`: there the stars stand between numbers."""
_CODE = re.compile(r"`{1,3}([^`\n]{1,400})`{1,3}|```[a-z]*\n([^`]{1,400})```")
_OPENED = re.compile(r"(?:<([A-Za-z][\w-]{0,30})>|\\boxed\s?\{)\s*\Z")


def turns(prompts: list[Any], completions: list[Any]) -> list[str]:
    """Per completion the text of the whole turn: what the prompt opened for it, then the completion."""
    return [opened(prompt) + text_of(done) for prompt, done in zip(prompts, completions, strict=True)]


def opened(prompt: Any) -> str:
    """The beginning of the answer that a prompt gives: its last message where that is the assistant's, or the
    tag or box that a text ends on."""
    if isinstance(prompt, str):
        found = _OPENED.search(prompt[-200:])
        return found[0] if found else ""
    last = prompt[-1] if isinstance(prompt, list) and prompt else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return ""
    return text_of([last])


def text_of(completion: Any) -> str:
    """The text of a completion, which is a string or a list of chat messages."""
    if not isinstance(completion, str):
        completion = completion[-1].get("content") if completion else ""
    if isinstance(completion, list):
        completion = "".join(str(part.get("text") or "") for part in completion)
    return completion or ""


def boxed(text: str) -> str | None:
    r"""Content of the last box, the innermost of nested ones; None where none is closed.

    A box is `\boxed{...}`, `\fbox{...}`, or `\boxed 2` without braces, which ends with the number, letter or
    fraction, or with the dollar sign, behind it.
    """
    text = text[-TAIL:]
    braced = _braced(text)
    bare = None
    for match in _BARE.finditer(text):
        bare = match
    if bare is not None and (braced is None or bare.start() > braced[1]):
        return _bare_content(text, bare.end())
    return text[slice(*braced)] if braced is not None else None


def _braced(text: str) -> tuple[int, int] | None:
    """Where the content of the last closed box begins and ends."""
    open_braces: list[int | None] = []  # where the content of a box begins, None for another brace
    last: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        if match[0].endswith("{") and match[0] not in ("{", "\\{"):
            open_braces.append(match.end())
        elif match[0] == "{":
            open_braces.append(None)
        elif match[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and (last is None or start > last[0]):
                last = (start, match.start())
    return last


def _bare_content(text: str, start: int) -> str | None:
    line = text[start : start + _MAX_BARE].partition("\n")[0]
    before, dollar, _ = line.partition("$")
    if dollar and before.strip() and "\\boxed" not in before:
        return before
    found = _BARE_CONTENT.match(line)
    return found[0].rstrip(",") if found else None


def opens_a_place(text: str) -> bool:
    """The text announces a box or an `<answer>`, so that a number elsewhere in it is not its answer."""
    return "\\boxed" in text or "<answer>" in text


def between(text: str, opening: str, closing: str) -> str | None:
    """What stands between the last `closing` and the last `opening` before it."""
    end = text.rfind(closing)
    start = text.rfind(opening, 0, max(end, 0))
    return text[start + len(opening) : end] if start >= 0 else None


def after(text: str, mark: str) -> str | None:
    """What follows the last `mark`."""
    start = text.rfind(mark)
    return text[start + len(mark) :] if start >= 0 else None


def behind_phrase(text: str) -> str | None:
    """What follows the last "the answer is" or "Answer:", up to the end of its sentence."""
    found = None
    for match in _PHRASE.finditer(text[-TAIL:]):
        found = match
    if found is None:
        return None
    rest = text[-TAIL:][found.end() :].lstrip()
    end = _SENTENCE_END.search(rest)
    stated = (rest[: end.start()] if end else rest).strip()
    return stated or None


def without_markdown(text: str) -> str:
    """The text without emphasis and backticks around words: `**73**` and "`73`" are 73."""
    text = _CODE.sub(lambda match: match[1] or match[2], text)
    return _EMPHASIS.sub(lambda match: match[1] or match[2], text)
