"""The words of an answer: without what is around them, and as they are compared."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 20_000
"""Letters that are read of a cleaned answer: half of them from its beginning, half from its end."""

_THINKING = re.compile(r"<(/?)(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|seed:think)>", re.I)
_THINKING_MARKS = re.compile("◁(/?)think▷")
_FORMULA = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mathsf|operatorname|bm|rm|bf)\s?\{([^{}]{0,200})\}"
)
_BOXED = re.compile(r"\\f?boxed\s?\{([^{}]{0,200})\}")
_ANSWER_TAG = re.compile(r"<(?:answer|final_answer|final)>([^<]{0,200})</(?:answer|final_answer|final)>", re.I)
_BOX_TOKENS = re.compile(r"<\|begin_of_box\|>([^<]{0,200})<\|end_of_box\|>")
_TOKENS = re.compile(
    r"<\|[^<>|]{0,40}\|>|</?(?:s|eos|bos|pad|unk|end_of_turn|answer|final_answer|final|b|i|u|em|strong|p|br|code|span)"
    r"(?: [^<>]{0,40})?/?>"
)
_MARKUP = re.compile(r"[*•·]+|_{2,}|`+|~~|\\[()\[\]]|\$+|^[>#]+ ?", re.MULTILINE)
_BLANKS, _LINES = re.compile(r"[^\S\n]+"), re.compile(r"\s*\n\s*")
_BREAK = re.compile(r"(?<=[A-Za-z)\]])[\u2010-\u2015](?=[A-Za-z(\[])")


def cleaned(answer: str) -> str:
    """An answer without what is around its words: one blank between words, one line break between lines.

    Args:
        answer: the model's text, of any length; of a long one the middle is left out.
    """
    text = answer.replace("\r", "\n")
    for marks in (_THINKING, _THINKING_MARKS):
        text = _without_thinking(text, marks)
    text = _ends(unicodedata.normalize("NFKC", _ends(text, 4 * LONGEST)), 4 * LONGEST)
    text = "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in ("Cf", "Cc"))
    for declared in (_ANSWER_TAG, _BOX_TOKENS):
        text = declared.sub(r"\nAnswer: \1\n", text)
    text = _FORMULA.sub(r"\1", _FORMULA.sub(r"\1", text))
    text = _BOXED.sub(r"\nAnswer: \1\n", text)
    text = _MARKUP.sub("", _TOKENS.sub("", text))
    text = text.replace("\u2019", "'").replace("\u2018", "'").replace("\u201c", '"').replace("\u201d", '"')
    text = _LINES.sub("\n", _BLANKS.sub(" ", _BREAK.sub(" - ", text))).strip()
    return _ends(text, LONGEST)


def _ends(text: str, most: int) -> str:
    """A text of at most so many letters: of a longer one its beginning and its end, on lines of their own."""
    return text if len(text) <= most else f"{text[: most // 2]}\n{text[-most // 2 :]}"


def _without_thinking(text: str, marks: re.Pattern[str]) -> str:
    """What stands outside of thinking tags; a closing one without its opening closes all that is before it."""
    kept, begin, depth = list[str](), 0, 0
    for mark in marks.finditer(text):
        if mark[1]:  # closing
            kept = kept if depth else []
            depth = max(0, depth - 1)
            begin = mark.end()
        else:
            if depth == 0:
                kept.append(text[begin : mark.start()])
            depth, begin = depth + 1, mark.end()
    return "".join([*kept, "" if depth else text[begin:]])


_COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED.split())}
_ARTICLES = frozenset({"a", "an", "the"})


def plain_words(text: str) -> str:
    """Words as they are compared: lower case, digits for number words up to twenty, no articles, no punctuation.

    Args:
        text: an answer, or a target.
    """
    words = [_NUMBERS.get(word, word) for word in plain(text).split()]
    return " ".join(word for word in words if word not in _ARTICLES) or " ".join(words)


_SIGNS = re.compile(r"(?<=\d)[,](?=\d{3}(?!\d))|'")
_NO_WORD = re.compile(r"(?<![\d])[.](?!\d)|[.](?!\d)|[^\w.%/+-]|_|(?<!\w)[-+/](?!\d)|[-+/](?!\w)|(?<=[a-z])-(?=[a-z])")


def plain(text: str) -> str:
    """Lower case and words alone, one blank between them; decimal points, signs and fractions stay in numbers.

    Args:
        text: an answer, a choice, a target.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-").replace("\u2019", "'")
    return " ".join(_NO_WORD.sub(" ", _SIGNS.sub("", text)).split())


_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?")


def same_words(given: str, wanted: str) -> bool:
    """Whether two texts are the same words, or the same number, with or without a unit behind the given one.

    Args:
        given: as `plain_words` leaves it.
        wanted: likewise.
    """
    if given == wanted:
        return bool(given)
    if _NUMBER.fullmatch(wanted.strip("%")) is None:
        return False
    numbers = _NUMBER.findall(given)
    if len(numbers) != 1 or not re.fullmatch(r"[-+]?[\d./]+ ?[^\d]{0,20}", given):
        return False
    return _number(numbers[0]) == _number(wanted.strip("%"))


def _number(text: str) -> float:
    over, _, under = text.partition("/")
    return round(float(over) / float(under), 6) if under and float(under) else round(float(over), 6)
