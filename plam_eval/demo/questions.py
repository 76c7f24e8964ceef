"""Questions about a scene, with their true answers, and the prompt form each of the nine benchmarks gives them.

`ask_about(scene, kind, rng)` makes one question; `FORMS[task](question)` gives the user text that lmms-eval 0.7.3 sends
for a document of that task and the answer it expects. Training uses these forms, the offline suite stores the same
questions in the columns the stock tasks read, and a test holds the two together.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from plam_eval.demo.scenes import COLORS, DIGITS, POSITIONS, SHAPES, Scene, Thing

LETTERS = "ABCD"

CHINESE = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "circle": "圆形",
    "square": "方形",
    "triangle": "三角形",
    "star": "星形",
    "top left": "左上角",
    "top right": "右上角",
    "bottom left": "左下角",
    "bottom right": "右下角",
    "empty": "空",
    "yes": "是",
    "no": "否",
} | {digit: f"数字{digit}" for digit in DIGITS}


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    `choices` has four different options that include `answer`, in shuffled order; a yes/no question has ("yes", "no").
    `text_zh` and `choices_zh` say the same in Chinese. `about` has the cells, as indices into `POSITIONS`, of the
    things that one has to look at for the answer; none where the question is of the whole scene (how many there are,
    which color is most frequent), or of something that is not in it.
    """

    kind: str
    text: str
    text_zh: str
    answer: str
    choices: tuple[str, ...]
    about: tuple[int, ...] = ()

    @property
    def letter(self) -> str:
        """The letter of the right choice, such as "B"."""
        return LETTERS[self.choices.index(self.answer)]

    @property
    def is_yes_no(self) -> bool:
        """Whether it is answered with yes or no."""
        return self.choices == ("yes", "no")

    @property
    def choices_zh(self) -> tuple[str, ...]:
        """The choices in Chinese; digits stay as they are."""
        return tuple(choice if choice.isdigit() else CHINESE[choice] for choice in self.choices)


def describe_scene(scene: Scene, rng: random.Random, language: str = "en") -> str:
    """The whole scene in words, its cells in random order: "top left red circle. bottom left empty. ...".

    Args:
        scene: what is described.
        rng: draws the order of the cells.
        language: "en" or "zh".
    """
    order = rng.sample(range(4), 4)
    if language == "zh":
        phrases = []
        for i in order:
            thing = scene.cells[i]
            said = CHINESE[thing.color] + CHINESE[thing.shape] if thing else CHINESE["empty"]
            phrases.append(f"{CHINESE[POSITIONS[i]]}{said}。")
        return "".join(phrases)
    return " ".join(f"{POSITIONS[i]} {scene.cells[i] or 'empty'}." for i in order)


def ask_about(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """A question of one kind, or None where the kind does not apply to the scene (or has no single answer in it).

    Args:
        scene: what is asked about.
        kind: one of `KINDS`.
        rng: draws the thing that is asked about and the other choices.
    """
    return KINDS[kind](scene, rng)


def ask_any(scene: Scene, kinds: tuple[str, ...], rng: random.Random) -> Question:
    """A question of a random applicable kind; "count_all" applies to every scene.

    Args:
        scene: what is asked about.
        kinds: to draw from; those that do not apply to the scene are passed over.
        rng: draws the kind and the question.

    Raises:
        ValueError: none of `kinds` applies.
    """
    for kind in rng.sample(kinds, len(kinds)):
        question = ask_about(scene, kind, rng)
        if question:
            return question
    raise ValueError(f"none of the kinds {', '.join(kinds)} applies to the scene {scene.key}")


# --- making choices ---------------------------------------------------------------------------------------------------


def _question(
    kind: str,
    text: str,
    text_zh: str,
    answer: str,
    pool: tuple[str, ...],
    rng: random.Random,
    about: Iterable[int] = (),
) -> Question:
    others = rng.sample([option for option in pool if option != answer], 3)
    choices = rng.sample([answer, *others], 4)
    return Question(kind, text, text_zh, answer, tuple(choices), tuple(about))


def _yes_no(kind: str, text: str, text_zh: str, truth: bool, about: Iterable[int] = ()) -> Question:
    return Question(kind, text, text_zh, "yes" if truth else "no", ("yes", "no"), tuple(about))


def _number(
    kind: str, text: str, text_zh: str, answer: int, rng: random.Random, lowest: int = 0, about: Iterable[int] = ()
) -> Question:
    near = tuple(str(n) for n in range(max(lowest, answer - 3), answer + 4))
    return _question(kind, text, text_zh, str(answer), near, rng, about)


def _cells(scene: Scene, is_meant: Callable[[Thing], bool]) -> list[int]:
    """The cells of the things that are meant, in the order of POSITIONS."""
    return [i for i, thing in scene.things if is_meant(thing)]


def _unique(scene: Scene, attribute: str) -> list[tuple[int, Thing]]:
    """The things whose `attribute` no other thing in the scene has."""
    counts = Counter(getattr(thing, attribute) for _, thing in scene.things)
    return [(i, thing) for i, thing in scene.things if counts[getattr(thing, attribute)] == 1]


def _shapes_like(shape: str) -> tuple[str, ...]:
    return DIGITS if shape in DIGITS else SHAPES


# --- kinds that name something ----------------------------------------------------------------------------------------


def _color_at(scene: Scene, rng: random.Random) -> Question:
    i, thing = rng.choice(scene.things)
    text = f"What color is the object at the {POSITIONS[i]}?"
    text_zh = f"{CHINESE[POSITIONS[i]]}的物体是什么颜色？"
    return _question("color_at", text, text_zh, thing.color, tuple(COLORS), rng, [i])


def _shape_at(scene: Scene, rng: random.Random) -> Question:
    i, thing = rng.choice(scene.things)
    text = f"What is the object at the {POSITIONS[i]}?"
    text_zh = f"{CHINESE[POSITIONS[i]]}的物体是什么？"
    return _question("shape_at", text, text_zh, thing.shape, SHAPES + DIGITS, rng, [i])


def _color_of(scene: Scene, rng: random.Random) -> Question | None:
    if not (candidates := _unique(scene, "shape")):
        return None
    i, thing = rng.choice(candidates)
    text = f"What color is the {thing.shape}?"
    return _question("color_of", text, f"{CHINESE[thing.shape]}是什么颜色？", thing.color, tuple(COLORS), rng, [i])


def _shape_of(scene: Scene, rng: random.Random) -> Question | None:
    if not (candidates := _unique(scene, "color")):
        return None
    i, thing = rng.choice(candidates)
    text = f"What is the {thing.color} object?"
    return _question("shape_of", text, f"{CHINESE[thing.color]}的物体是什么？", thing.shape, SHAPES + DIGITS, rng, [i])


def _where(scene: Scene, rng: random.Random) -> Question | None:
    if not (candidates := _unique(scene, "shape")):
        return None
    i, thing = rng.choice(candidates)
    text = f"Where is the {thing.shape}?"
    return _question("where", text, f"{CHINESE[thing.shape]}在哪里？", POSITIONS[i], POSITIONS, rng, [i])


_NEIGHBOURS = (  # (words, Chinese words, step from a cell to the one asked about, cells it applies to)
    ("below", "下方", 2, (0, 1)),
    ("above", "上方", -2, (2, 3)),
    ("to the right of", "右边", 1, (0, 2)),
    ("to the left of", "左边", -1, (1, 3)),
)


def _neighbour(scene: Scene, rng: random.Random) -> Question | None:
    pairs = [
        (thing, words, words_zh, other, (i, i + step))
        for i, thing in _unique(scene, "shape")
        for words, words_zh, step, cells in _NEIGHBOURS
        if i in cells and (other := scene.cells[i + step])
    ]
    if not pairs:
        return None
    thing, words, words_zh, other, about = rng.choice(pairs)
    text = f"What color is the object {words} the {thing.shape}?"
    text_zh = f"{CHINESE[thing.shape]}{words_zh}的物体是什么颜色？"
    return _question("neighbour", text, text_zh, other.color, tuple(COLORS), rng, about)


def _same_color_as(scene: Scene, rng: random.Random) -> Question | None:
    counts = Counter(thing.color for _, thing in scene.things)
    twins = [(i, thing) for i, thing in scene.things if counts[thing.color] == 2]
    if not twins:
        return None
    i, thing = rng.choice(twins)
    k, other = next((j, t) for j, t in twins if j != i and t.color == thing.color)
    if other.shape == thing.shape or sum(t.shape == thing.shape for _, t in scene.things) > 1:
        return None
    text = f"Which object has the same color as the {thing.shape}?"
    text_zh = f"哪个物体和{CHINESE[thing.shape]}颜色相同？"
    pool = tuple(s for s in SHAPES + DIGITS if s != thing.shape)
    return _question("same_color_as", text, text_zh, other.shape, pool, rng, [i, k])


def _most_color(scene: Scene, rng: random.Random) -> Question | None:
    ranked = Counter(thing.color for _, thing in scene.things).most_common(2)
    if len(ranked) < 2 or ranked[0][1] == ranked[1][1]:
        return None
    text = "Which color appears most often?"
    return _question("most_color", text, "哪种颜色出现得最多？", ranked[0][0], tuple(COLORS), rng)


# --- kinds that count or compute --------------------------------------------------------------------------------------


def _count_all(scene: Scene, rng: random.Random) -> Question:
    return _number("count_all", "How many objects are there?", "一共有多少个物体？", len(scene.things), rng)


def _count_color(scene: Scene, rng: random.Random) -> Question:
    here = [thing.color for _, thing in scene.things]
    color = rng.choice(here) if rng.random() < 0.8 else rng.choice(tuple(COLORS))
    text = f"How many {color} objects are there?"
    about = _cells(scene, lambda thing: thing.color == color)
    return _number("count_color", text, f"有多少个{CHINESE[color]}的物体？", len(about), rng, about=about)


def _count_shape(scene: Scene, rng: random.Random) -> Question:
    here = [thing.shape for _, thing in scene.things if not thing.is_digit]
    shape = rng.choice(here) if here and rng.random() < 0.8 else rng.choice(SHAPES)
    text = f"How many {shape}s are there?"
    about = _cells(scene, lambda thing: thing.shape == shape)
    return _number("count_shape", text, f"有多少个{CHINESE[shape]}？", len(about), rng, about=about)


def _digits(scene: Scene) -> list[int]:
    return [int(thing.shape) for _, thing in scene.things if thing.is_digit]


def _of_digits(scene: Scene) -> list[int]:
    return _cells(scene, lambda thing: thing.is_digit)


def _sum(scene: Scene, rng: random.Random) -> Question | None:
    if len(numbers := _digits(scene)) != 2:
        return None
    text, about = "What is the sum of the two numbers?", _of_digits(scene)
    return _number("sum", text, "两个数字之和是多少？", sum(numbers), rng, lowest=2, about=about)


def _largest(scene: Scene, rng: random.Random) -> Question | None:
    if len(numbers := _digits(scene)) < 2:
        return None
    text, about = "What is the largest number?", _of_digits(scene)
    return _question("largest", text, "最大的数字是几？", str(max(numbers)), DIGITS, rng, about)


# --- yes/no kinds: about half of the answers are "yes" ----------------------------------------------------------------


def _exists_color(scene: Scene, rng: random.Random) -> Question:
    here = sorted({thing.color for _, thing in scene.things})
    absent = [color for color in COLORS if color not in here]
    color = rng.choice(here) if rng.random() < 0.5 else rng.choice(absent)
    about = _cells(scene, lambda thing: thing.color == color)
    return _yes_no("exists_color", f"Is there a {color} object?", f"有{CHINESE[color]}的物体吗？", color in here, about)


def _exists_shape(scene: Scene, rng: random.Random) -> Question:
    here = sorted({thing.shape for _, thing in scene.things})
    absent = [shape for shape in SHAPES + DIGITS if shape not in here]
    shape = rng.choice(here) if rng.random() < 0.5 else rng.choice(absent)
    text, about = f"Is there a {shape} in the image?", _cells(scene, lambda thing: thing.shape == shape)
    return _yes_no("exists_shape", text, f"图中有{CHINESE[shape]}吗？", shape in here, about)


def _exists_thing(scene: Scene, rng: random.Random) -> Question | None:
    """The "no" form takes a colour and a shape that are both present, but not on one thing."""
    here = {thing for _, thing in scene.things}
    mixed = sorted({str(Thing(a.color, b.shape)) for a in here for b in here} - {str(thing) for thing in here})
    if not mixed:
        return None
    said = rng.choice(sorted(map(str, here))) if rng.random() < 0.5 else rng.choice(mixed)
    color, shape = said.split()
    text_zh = f"有{CHINESE[color]}的{CHINESE[shape]}吗？"
    about = _cells(scene, lambda thing: str(thing) == said)
    return _yes_no("exists_thing", f"Is there a {said}?", text_zh, bool(about), about)


def _is_color_at(scene: Scene, rng: random.Random) -> Question:
    i, thing = rng.choice(scene.things)
    color = thing.color if rng.random() < 0.5 else rng.choice([c for c in COLORS if c != thing.color])
    text = f"Is the object at the {POSITIONS[i]} {color}?"
    text_zh = f"{CHINESE[POSITIONS[i]]}的物体是{CHINESE[color]}的吗？"
    return _yes_no("is_color_at", text, text_zh, color == thing.color, [i])


def _is_shape_at(scene: Scene, rng: random.Random) -> Question:
    i, thing = rng.choice(scene.things)
    pool = [s for s in _shapes_like(thing.shape) if s != thing.shape]
    shape = thing.shape if rng.random() < 0.5 else rng.choice(pool)
    text = f"Is the object at the {POSITIONS[i]} a {shape}?"
    text_zh = f"{CHINESE[POSITIONS[i]]}的物体是{CHINESE[shape]}吗？"
    return _yes_no("is_shape_at", text, text_zh, shape == thing.shape, [i])


def _count_is(scene: Scene, rng: random.Random) -> Question:
    count = len(scene.things)
    said = count if rng.random() < 0.5 else rng.choice([n for n in (1, 2, 3, 4) if n != count])
    return _yes_no("count_is", f"Are there exactly {said} objects?", f"正好有{said}个物体吗？", said == count)


def _same_color(scene: Scene, rng: random.Random) -> Question | None:
    unique = _unique(scene, "shape")
    pairs = [(a, b, (i, j)) for i, a in unique for j, b in unique if i < j]
    equal = [pair for pair in pairs if pair[0].color == pair[1].color]
    different = [pair for pair in pairs if pair[0].color != pair[1].color]
    wanted = equal if rng.random() < 0.5 else different
    if not wanted:
        return None
    a, b, about = rng.choice(wanted)
    text = f"Do the {a.shape} and the {b.shape} have the same color?"
    text_zh = f"{CHINESE[a.shape]}和{CHINESE[b.shape]}颜色相同吗？"
    return _yes_no("same_color", text, text_zh, a.color == b.color, about)


def _more(scene: Scene, rng: random.Random) -> Question | None:
    counts = Counter(thing.color for _, thing in scene.things)
    pairs = [(a, b) for a in counts for b in COLORS if counts[a] != counts[b]]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    if rng.random() < 0.5:
        a, b = b, a
    text = f"Are there more {a} objects than {b} objects?"
    text_zh = f"{CHINESE[a]}的物体比{CHINESE[b]}的物体多吗？"
    about = _cells(scene, lambda thing: thing.color in (a, b))
    return _yes_no("more", text, text_zh, counts[a] > counts[b], about)


def _sum_is(scene: Scene, rng: random.Random) -> Question | None:
    if len(numbers := _digits(scene)) != 2:
        return None
    total = sum(numbers)
    said = total if rng.random() < 0.5 else rng.choice([n for n in range(2, 9) if n != total])
    text, about = f"Is the sum of the two numbers {said}?", _of_digits(scene)
    return _yes_no("sum_is", text, f"两个数字之和是{said}吗？", said == total, about)


WORD_KINDS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "color_at": _color_at,
    "shape_at": _shape_at,
    "color_of": _color_of,
    "shape_of": _shape_of,
    "where": _where,
    "neighbour": _neighbour,
    "same_color_as": _same_color_as,
    "most_color": _most_color,
    "count_all": _count_all,
    "count_color": _count_color,
    "count_shape": _count_shape,
    "sum": _sum,
    "largest": _largest,
}
YES_NO_KINDS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "exists_color": _exists_color,
    "exists_shape": _exists_shape,
    "exists_thing": _exists_thing,
    "is_color_at": _is_color_at,
    "is_shape_at": _is_shape_at,
    "count_is": _count_is,
    "same_color": _same_color,
    "more": _more,
    "sum_is": _sum_is,
}
KINDS = WORD_KINDS | YES_NO_KINDS

# What needs more than one look: counting, comparing, relations, sums. The other kinds name what is somewhere.
REASONING_KINDS = (
    *("neighbour", "same_color_as", "most_color", "count_all", "count_color", "count_shape", "sum", "largest"),
    *("count_is", "same_color", "more", "sum_is"),
)
PERCEPTION_KINDS = tuple(kind for kind in KINDS if kind not in REASONING_KINDS)


# --- prompt forms of the nine tasks (lmms-eval 0.7.3, model id llava_hf) ----------------------------------------------

SHORT_ANSWER = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly"
_LETTER_ZH = "请直接使用所提供的选项字母作为答案回答。"
_DIRECT_LETTER = "Please answer directly with only the letter of the correct option and nothing else."
_DIRECT_WORD = "Please answer directly with a single word or number."
_SEVERAL = "There are several options:"

# What every document of a form says in the same words. The pair's tokenizer has one token for each.
FIXED_PHRASES = (SHORT_ANSWER, _LETTER, _LETTER_ZH, _DIRECT_LETTER, _DIRECT_WORD, _SEVERAL)


def _options(choices: tuple[str, ...], mark: str = ". ", sep: str = "\n") -> str:
    return sep.join(f"{letter}{mark}{choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def mmstar_question(question: Question) -> str:
    """MMStar's question column for `question`: it holds the options, too."""
    return f"{question.text}\nOptions: {_options(question.choices, ': ', ', ')}"


def realworldqa_question(question: Question) -> str:
    """RealWorldQA's question column for `question`: it carries its options and its instruction."""
    if question.kind in WORD_KINDS and not question.answer.isdigit():
        return f"{question.text}\n{_options(question.choices)}\n{_DIRECT_LETTER}"
    return f"{question.text}\n{_DIRECT_WORD}"


def _mmstar(question: Question) -> tuple[str, str]:
    return f"{mmstar_question(question)}\n{_LETTER}", question.letter


def _mmbench_en(question: Question) -> tuple[str, str]:
    text = f"{question.text} {_SEVERAL}\n{_options(question.choices)}\n\n{_LETTER}."
    return text, question.letter


def _mmbench_cn(question: Question) -> tuple[str, str]:
    text = f"{question.text_zh} {_SEVERAL}\n{_options(question.choices_zh)}\n\n{_LETTER_ZH}"
    return text, question.letter


def _mmmu(question: Question) -> tuple[str, str]:
    return f"{question.text}\n{_options(question.choices)}\n\n{_LETTER}.", question.letter


def _mmmu_open(question: Question) -> tuple[str, str]:
    return f"{question.text}\n\n{SHORT_ANSWER}", question.answer


def _seedbench(question: Question) -> tuple[str, str]:
    return f"{question.text}\n{_options(question.choices)}\n{_LETTER}.", question.letter


def _word(question: Question) -> tuple[str, str]:
    return f"{question.text}\n{SHORT_ANSWER}", question.answer


def _realworldqa(question: Question) -> tuple[str, str]:
    text = realworldqa_question(question)
    return text, question.letter if _DIRECT_LETTER in text else question.answer


Form = Callable[[Question], tuple[str, str]]
LETTER_FORMS: dict[str, Form] = {
    "mmstar": _mmstar,
    "mmbench_en": _mmbench_en,
    "mmbench_cn": _mmbench_cn,
    "mmmu": _mmmu,
    "seedbench_2_plus": _seedbench,
}
WORD_FORMS: dict[str, Form] = {"gqa": _word, "mmmu_open": _mmmu_open, "realworldqa": _realworldqa}
YES_NO_FORMS: dict[str, Form] = {"mme": _word, "pope": _word, "gqa": _word, "realworldqa": _realworldqa}
FORMS: dict[str, Form] = LETTER_FORMS | WORD_FORMS | YES_NO_FORMS
