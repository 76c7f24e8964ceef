"""A second reading of answers, which abstains: what an answer declares, whatever else it says, or nothing.

Scores of tasks move with their parsers, and wording moves before knowledge does. This parser reads the same answers by
other rules, written down here and in docs/rescoring.md. It is pure text in and text out, takes time in proportion to
the length of an answer, and knows nothing of targets.

Rules, in this order:

1. *Cleaned*: full-width letters become plain ones (NFKC), invisible characters go, and so does what stands between
   thinking tags; behind one that is never closed nothing is an answer. Markdown, LaTeX and special tokens leave
   their content. `\\boxed{B}` and `<answer>B</answer>` are declarations.
2. *Negated* ("not D", "neither A nor B", "rather than C", "D is wrong", "不是A"): no candidate.
3. *The whole answer is the text of one choice*: that choice.
4. *Declared* ("The answer is B", "Answer: (b)", "I choose B", "B is correct", "答案是B"): its candidates alone.
   Not behind a doubt ("I do not think the answer is B", "if the answer is B") nor in a question.
5. *Lone*: clauses of nothing but the candidate and words without content ("B", "(b) red", "Probably B.", "B, because
   ..."), or else one letter in brackets ("The nucleus (B)").
6. *Quoted*: the text of exactly one choice, unless the answer is a refusal.

At the first of 3 to 6 that gives any candidate it ends: one is the reading, two different ones are none. "A" and "I"
in front of another word are an article and a pronoun, "no" in front of a noun is no verdict.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from plam_eval.harness import answer_phrases as phrases
from plam_eval.harness.answer_text import cleaned, plain, plain_words, same_words

VERSION = 1
"""Of the rules: a reading may only change together with it."""

Kind = Literal["letter", "yes or no", "words"]
Level = Literal["declared", "lone", "quoted", "several", "nothing"]


@dataclass(frozen=True)
class Asked:
    """What a question wants for an answer.

    Attributes:
        kind: a letter, yes or no, or words.
        choices: of a letter: letter -> text, "" where it is not known.
        targets: right answers: a letter, "yes" or "no", or words of which any is right.
    """

    kind: Kind
    targets: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What was read from an answer.

    Attributes:
        value: a letter in upper case, "yes" or "no", or words as `plain_words` leaves them; None where it abstains.
        level: by which kind of rule; "several" (different candidates) or "nothing" where it abstains.
    """

    value: str | None
    level: Level


def read_answer(answer: str, asked: Asked) -> Reading:
    """What an answer declares.

    Args:
        answer: the model's text, of any length.
        asked: what the question wants; its targets are not looked at.
    """
    text = cleaned(answer)
    if asked.kind == "words":
        return _read_words(text)
    tokens = _Letters(asked.choices) if asked.kind == "letter" else _Verdicts()
    if asked.kind == "letter" and (equal := _equal_choice(text, asked.choices)):
        return Reading(equal, "quoted")
    text = tokens.without_negated(text)
    for level, values in tokens.levels(text):
        if values:
            return Reading(values.pop(), level) if len(values) == 1 else Reading(None, "several")
    return Reading(None, "nothing")


def is_right(reading: Reading, answer: str, asked: Asked) -> bool:
    """Whether a reading is a right answer; one that abstains is not.

    Words are right, too, where the whole answer is, whatever sentence it is.

    Args:
        reading: of the answer.
        answer: the model's text.
        asked: with the right answers.
    """
    if asked.kind != "words":
        return reading.value is not None and reading.value in asked.targets
    given = [] if reading.value is None else [reading.value]
    if reading.level != "several":
        given.append(plain_words(cleaned(answer)))
    return any(same_words(words, plain_words(target)) for words in given for target in asked.targets)


class _Tokens(ABC):
    """Candidates in a text: what a pattern matches and `value` does not refuse."""

    valid: frozenset[str]

    def __init__(self, pattern: str) -> None:
        token = (
            rf"(?<![{phrases.LATIN}])(?<![A-Za-z]')(?P<token>{pattern})(?![{phrases.LATIN}+#%°]|'[A-Za-z]|-[A-Za-z0-9])"
        )
        self._token = re.compile(token, re.I)
        self._at = re.compile(rf"\s?{phrases.OPEN}{token}", re.I)
        self._with = re.compile(rf"{phrases.CLOSE}{phrases.WITH}{phrases.OPEN}{token}(?! (?:{phrases.VERB})\b)", re.I)

    @abstractmethod
    def value(self, text: str, match: re.Match[str]) -> str | None:
        """The candidate that a match is; None where it is another word of the same letters."""

    def _series(self, text: str) -> list[list[re.Match[str]]]:
        """The candidates of a text in order, those that "and" or "or" joins in one list: "A", "B, C and D"."""
        series = list[list[re.Match[str]]]()
        commas = list[bool]()
        for match in self._token.finditer(text):
            if self.value(text, match) is None:
                continue
            gap = text[series[-1][-1].end() : match.start()] if series else ""
            if series and len(gap) < 24 and phrases.BETWEEN.fullmatch(gap):
                series[-1].append(match)
                commas[-1] = commas[-1] and bool(phrases.COMMA.fullmatch(gap))
            else:
                series.append([match])
                commas.append(True)
        return [
            part
            for joined, only in zip(series, commas, strict=True)
            for part in ([[m] for m in joined] if only else [joined])
        ]

    def without_negated(self, text: str) -> str:
        """The text with a mark in place of each negated candidate."""
        kept, begin = list[str](), 0
        for joined in self._series(text):
            start, end = joined[0].start(), joined[-1].end()
            negated = phrases.NEGATED.search(text, max(begin, start - phrases.NEAR), start)
            wrong = phrases.WRONG.match(text, end)
            if negated is not None or wrong is not None:
                end = wrong.end() if wrong is not None else end
                kept += [text[begin : negated.start() if negated is not None else start], phrases.GONE]
                begin = end
        return "".join([*kept, text[begin:]])

    def levels(self, text: str) -> Iterator[tuple[Level, set[str]]]:
        """Candidates level by level."""
        yield "declared", self.declared(text)
        text = phrases.ABBREVIATION.sub("abbreviation ", text)
        yield "lone", self.lone(text)

    def declared(self, text: str) -> set[str]:
        """What an answer declares: candidates behind "the answer is", and before "is correct"."""
        values = set[str]()
        for said in phrases.DECLARES.finditer(text):
            first = self._at.match(text, said.end())
            if first is not None and not _doubted(text, said.start(), first.end()):
                values |= self._all_from(text, first)
        for joined in self._series(text):
            stated = phrases.CORRECT.match(text, joined[-1].end())
            if stated is not None and not _doubted(text, joined[0].start(), stated.end()):
                values |= {value for each in joined if (value := self.value(text, each)) is not None}
        return values

    def _all_from(self, text: str, first: re.Match[str]) -> set[str]:
        """A candidate and those that "or", "and" and commas add to it."""
        values = set[str]()
        place: re.Match[str] | None = first
        for _ in range(12):
            value = self.value(text, place) if place is not None else None
            if value is None or place is None:
                break
            values |= {value} | self.beside(text, place, value)
            place = self._with.match(text, place.end("token"))
        return values

    def beside(self, text: str, match: re.Match[str], value: str) -> set[str]:
        """Further candidates that a candidate's own words name."""
        return set()

    def lone(self, text: str) -> set[str]:
        """Candidates of clauses that say nothing else."""
        values, begin = set[str](), 0
        for end in [*phrases.CLAUSES.finditer(text), None]:
            stop = end.start() if end is not None else len(text)
            if stop - begin <= phrases.LONGEST_CLAUSE and not (end is not None and end[0] == "?"):
                values |= self._of_clause(text[begin:stop])
            begin = end.end() if end is not None else stop
        return values

    def _of_clause(self, clause: str) -> set[str]:
        words = phrases.CLAUSE_WORDS.findall(phrases.EMPTY_SIGNS.sub(" ", clause))
        words = [word for word in words if word not in phrases.HARMLESS_SIGNS]
        values = set[str]()
        for number, word in enumerate(words):
            whole = self._token.fullmatch(word.strip("'-"))
            if whole is not None and self.stands_alone(word, words[number + 1 :], len(words)):
                values.add(self.named(word.strip("'-")))
            elif word.lower() not in phrases.EMPTY_WORDS and not (whole is not None and word.lower() in ("a", "i")):
                return set()
        return values & self.valid

    @abstractmethod
    def stands_alone(self, word: str, behind: list[str], count: int) -> bool:
        """Whether a candidate in a clause is one, and not an article or a pronoun."""

    @abstractmethod
    def named(self, word: str) -> str:
        """The value of a candidate's word."""


def _doubted(text: str, begin: int, end: int) -> bool:
    """Whether a declaration stands behind a doubt or in a question; a few words on either side are looked at."""
    before = phrases.NO_DOUBT.sub("", text[max(0, begin - 80) : begin])
    resets = list(phrases.RESETS.finditer(before))
    if phrases.DOUBT.search(before, resets[-1].end() if resets else 0):
        return True
    stop = phrases.SENTENCE_END.search(text, end, end + 100)
    return stop is not None and stop[0] == "?"


def _word_behind(text: str, match: re.Match[str]) -> str | None:
    """The word that follows a candidate with a blank alone between; None where something else does."""
    end = match.end("token")
    if text[end : end + 1] != " ":
        return None
    word = phrases.WORD.match(text, end + 1)
    return word[0].lower() if word is not None else None


class _Letters(_Tokens):
    """Letters of a question's choices."""

    def __init__(self, choices: Mapping[str, str]) -> None:
        super().__init__(f"[{''.join(choices)}]" if choices else r"(?!)")
        self.valid = frozenset(choices)
        self._texts = {letter: words for letter, text in choices.items() if (words := plain(text))}

    def value(self, text: str, match: re.Match[str]) -> str | None:
        letter, behind = match["token"].upper(), _word_behind(text, match)
        if letter not in self.valid or (letter in "AI" and behind is not None and behind not in phrases.AFTER):
            return None
        return letter

    def beside(self, text: str, match: re.Match[str], value: str) -> set[str]:
        """The choice whose text follows a letter, up to the end of the sentence: "B. red" of two where red is A."""
        rest = phrases.TEXT_BEHIND.match(text, match.end("token")) if self._texts else None
        words = plain(rest[1]) if rest is not None else ""
        return {letter for letter, own in self._texts.items() if own == words and self._texts.get(value) != words}

    def levels(self, text: str) -> Iterator[tuple[Level, set[str]]]:
        yield from super().levels(text)
        declared, everything = [text[said.end() : said.end() + 300] for said in phrases.STATES.finditer(text)], text
        for part in declared:
            yield "declared", self._quoted(phrases.SENTENCE_END.split(part, maxsplit=1)[0])
        if not phrases.REFUSAL.search(text):
            yield "quoted", self._quoted(everything)

    _mark = re.compile(
        rf"^(?:option |choice |选项)?{phrases.OPEN}(?P<token>[A-Z])(?:[)\]}}】」,。]|\.(?-i:(?![a-z\d]))|:(?!/)| - )",
        re.I | re.M,
    )
    _inline = re.compile(r"(?<= )\(?(?P<token>[B-Z])[.):] ")
    _bracketed = re.compile(r"[(\[【](?P<token>[A-Z])[)\]】]")
    _before_text = re.compile(rf"^{phrases.OPEN}(?P<token>[A-Z])(?![{phrases.LATIN}'])", re.I | re.M)

    def lone(self, text: str) -> set[str]:
        """Letters of clauses, letters that begin a line as a choice is written, or else those in brackets."""
        values = super().lone(text)
        for mark in self._mark.finditer(text):
            if (letter := mark["token"].upper()) in self.valid:
                values |= {letter} | self.beside(text, mark, letter)
                if letter == "A":  # choices may be listed in one line
                    end = text.find("\n", mark.end())
                    listed = self._inline.search(text, mark.end(), end if end >= 0 else len(text))
                    values |= {"B"} & self.valid if listed is not None and listed["token"] == "B" else set()
        for mark in self._before_text.finditer(text):
            own = self._texts.get(letter := mark["token"].upper())
            rest = plain(text[mark.end() : mark.end() + 400])
            if own and f"{rest} ".startswith(f"{own} "):
                values.add(letter)
        return values or {mark["token"] for mark in self._bracketed.finditer(text)} & self.valid

    def stands_alone(self, word: str, behind: list[str], count: int) -> bool:
        if word in ("I", "i"):
            return count == 1
        return word not in ("A", "a") or not behind or len(behind[0]) == 1 or behind[0].lower() in ("or", "and")

    def named(self, word: str) -> str:
        return word.upper()

    def _quoted(self, text: str) -> set[str]:
        """Choices whose texts stand in a text, the longer ones first, without those that are negated."""
        words, quoted = f" {plain(text)} ", set[str]()
        for letter, own in sorted(self._texts.items(), key=lambda item: -len(item[1])):
            if len(own) < 2 and not own.isdigit() and own.isascii():
                continue
            wanted = f" {own} " if own[0].isascii() and own[-1].isascii() else own
            words = re.sub(rf"({phrases.NOT_QUOTED}){re.escape(wanted)}", " ", words)
            if wanted in words:
                quoted.add(letter)
                words = words.replace(wanted, " | ")
        return quoted


class _Verdicts(_Tokens):
    """Yes and no."""

    _YES = phrases.words("yes yeah yep yup")
    valid = frozenset({"yes", "no", "YES", "NO"})

    def __init__(self) -> None:
        super().__init__("yes|yeah|yep|yup|nope|nah|no")

    def value(self, text: str, match: re.Match[str]) -> str | None:
        word = match["token"].lower()
        if word == "no" and (behind := _word_behind(text, match)) is not None and behind not in phrases.AFTER_NO:
            return None
        return self.named(word)

    def named(self, word: str) -> str:
        return "yes" if word.lower() in self._YES else "no"

    def stands_alone(self, word: str, behind: list[str], count: int) -> bool:
        return True

    _leading = re.compile(r"^\W{0,3}(?P<token>yes|yeah|yep|yup|nope|nah|no)(?![\w'-])", re.I | re.M)
    _sign = re.compile(r"是的?|对的?|有的?|否|不是的?|没有?|沒有|不对|不|はい|いいえ|네|예|아니[요오]")
    _declared_sign = re.compile(
        r"(?:答案|答え|回答|正解|정답|答)(?:应该)?(?:是|为|:|は|은){1,2} ?[\"「“]?([^\s,.!。」\"”]{1,3})"
    )
    _positive = phrases.words("是 是的 对 对的 有 有的 はい 네 예")

    def declared(self, text: str) -> set[str]:
        values = {value.lower() for value in super().declared(text)}
        for said in self._declared_sign.finditer(text):
            if self._sign.fullmatch(said[1]):
                values.add("yes" if said[1] in self._positive else "no")
        return values

    def lone(self, text: str) -> set[str]:
        """Verdicts of clauses, and those that begin a line, but for a "no" that belongs to a noun."""
        values = {value.lower() for value in super().lone(text)}
        for mark in self._leading.finditer(text):
            if (value := self.value(text, mark)) is not None:
                values.add(value)
        for clause in phrases.CLAUSES.split(text):
            if (sign := clause.strip(" \"'「」.")) and self._sign.fullmatch(sign):
                values.add("yes" if sign in self._positive else "no")
        return values


# --- words ------------------------------------------------------------------------------------------------------------


def _equal_choice(text: str, choices: Mapping[str, str]) -> str | None:
    """The one choice whose text the whole of an answer is; texts of one letter are none."""
    words = plain(text) if len(text) <= 2000 else ""
    equal = [letter for letter, own in choices.items() if words and plain(own) == words]
    return equal[0] if len(equal) == 1 and not re.fullmatch("[a-z]", words) else None


def _read_words(text: str) -> Reading:
    declared = set[str]()
    for said in phrases.STATES.finditer(text):
        part = text[said.end() : said.end() + phrases.LONGEST_WORDS].lstrip(" \n:=-\"'")
        words = plain_words(phrases.INTRODUCES.sub("", phrases.SENTENCE_END.split(part, maxsplit=1)[0]))
        if words and not words.startswith(("not ", "unknown")) and not _doubted(text, said.start(), said.end()):
            declared.add(words)
    if declared:
        return Reading(declared.pop(), "declared") if len(declared) == 1 else Reading(None, "several")
    whole = text.strip(" .!\"'")
    if (
        not whole
        or len(whole) > phrases.LONGEST_WORDS
        or phrases.SENTENCE_END.search(whole)
        or phrases.REFUSAL.search(whole)
    ):
        return Reading(None, "nothing")
    phrase = phrases.INTRODUCES.sub("", whole)
    words = plain_words(phrase)
    if not words or phrases.FINITE.search(phrase) or re.match(r"(?:not|n't)\b", phrase, re.I):
        return Reading(None, "nothing")
    if re.search(r"\b(?:or|either)\b", phrase, re.I):
        return Reading(None, "several")
    return Reading(words, "lone")
