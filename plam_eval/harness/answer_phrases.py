"""The words around a candidate that say what it is: what declares it, negates it, joins it to another, says nothing.

Patterns take time in proportion to the text: what may repeat in them has a limit, and every branch begins otherwise.
"""

from __future__ import annotations

import re


def words(text: str) -> frozenset[str]:
    """The words of a text, each once.

    Args:
        text: with blanks between words.
    """
    return frozenset(text.split())


GONE = "\N{EMPTY SET}"
"""Where something negated stood."""
LATIN = "A-Za-z0-9_\u00c0-\u024f"
OPEN, CLOSE = r"[(\[{<\"'【「『《〈]{0,3} ?", r" ?[)\]}>\"'】」』》〉]{0,3}"
VERB = r"is|are|was|were|does|do|did|has|have|had|can|could|would|will|shows?|seems?|looks?|appears?|represents?"

NEGATION = (
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\bcannot be|\b(?:anything|all) but|\bexcept(?: for)?"
    r"|\bexclud(?:e|es|ed|ing)|\brul(?:e|es|ed|ing) out|\beliminat(?:e|es|ed|ing)|\binstead of|\brather than"
    r"|\bother than|\bunlike"
    r"|\b(?:incorrect|wrong|false|worst|least likely|unlikely) (?:answer|option|choice)s?\b(?: (?:is|are|would be))?"
    r"(?: ?:)?"
    r"|\bopposed to|\bdiscard(?:s|ed|ing)?|\breject(?:s|ed|ing)?|\bwithout"
    r"|不(?:能|可以?|要|应该?|該|该|会|可能)?(?:选择?|選擇?|是)|并非|並非|而非|排除了?|除了)"
    r" ?(?:(?:the|options?|choices?|answers?|letters?|be|either|both|being|to|选项|選項|是)\b ?){0,4}"
)
WRONG = re.compile(
    rf"{CLOSE}(?: ?(?:选项|項|项|選項))?(?:"
    rf" (?:{VERB})(?: (?:also|both|clearly|obviously|definitely|simply|just|be|certainly|therefore|likely|all)){{0,3}}"
    r"(?:n't| (?:not|wrong|incorrect|false|impossible|ruled|eliminated|excluded|too|unlikely|irrelevant|invalid"
    r"|inaccurate|out))\b"
    r"| ?(?:并|並|都|显然|明显|也)?(?:不|错|錯|是错|是錯|有误|有誤|可以排除|被排除|排除))",
    re.I,
)
WITH = (
    r" ?(?:, ?(?:and|or)\b|,|/|\||、|\band/or\b|\bor\b|\band\b|&|\bas well as\b|或者?|和|与|與|以及|及|还是|還是)"
    r" ?(?:(?:also|maybe|possibly|perhaps|even|else|option|choice|both|either|选项|選項)\b ?){0,2}"
)
NEGATED = re.compile(rf"{NEGATION}{OPEN}\Z", re.I)
NEAR = 64
"""So many letters before a candidate may negate it."""
COMMA = re.compile(rf"{CLOSE} ?(?:,|/|\||、) ?{OPEN}")
BETWEEN = re.compile(rf"{CLOSE}{WITH}{OPEN}", re.I)
SUBJECT = (
    r"(?<![A-Za-z-])(?:(?:answers?|ans|solution)\b\.?(?: (?:to|for|of) (?:the|this|that|your) (?:question|problem))?"
    r"(?: (?:option|choice|letter|here|key))?"
    r"|(?:correct|right|best|final|chosen|appropriate|suitable|likely|accurate) (?:option|choice|response|letter|one"
    r"|selection|statement)"
    r"|(?:my|the) (?:choice|option|pick|selection|guess|response|conclusion)"
    r"|correct(?= ?[:=])"
    r"|(?:choos(?:e|es|ing)|chose|select(?:s|ed|ing)?|pick(?:s|ed|ing)?|opt(?:ed|ing)? for|go(?:ing)? with|went with"
    r"|(?:would|i'd|i'll|will|to) (?:say|guess|answer))\b)"
    r"|答案|答え|正解|回答|정답|답(?=[은는이가: ])|(?:正确|正確|最佳|合适|恰当|符合)的?(?:选项|選項)|正确的(?=是)"
    r"|(?<![不未没沒非别勿该可])(?:选|選)(?![项項])择?擇?|(?<![回])答(?=[:选選])"
)
LINK = (
    r"(?:\s?(?:(?:'s|is|was|are|would|should|must|will|has to|could|might|may|can|being|seems|appears|to be|be"
    r"|becomes)(?![A-Za-z])|=>?|:|->|-|→"
    r"|应该|應該|应当|应|就|可能|大概|显然|的|选择|選擇|选|選|择|是|为|為|即|は|이|은|는|가|項|项)){0,4}"
)
FILL = (
    r"(?:\s?(?:(?:therefore|thus|hence|clearly|definitely|probably|most|likely|possibly|simply|just|indeed|obviously"
    r"|then|again|still|actually|either|both|option|choice|letter|answer|correct|final|the|that|it|it's|is|be|to|but|rather"
    r"|instead|so|with)(?![A-Za-z])|选项|選項|∅(?=[ ,]{0,2}(?:but|so|it|rather|instead|,))|[:,=-])){0,7}"
)
DECLARES = re.compile(f"(?:{SUBJECT}){LINK}{FILL}", re.I)
STATES = re.compile(
    r"(?:(?<![A-Za-z-])(?:answer|ans|solution|(?:correct|right|best|final) (?:option|choice|response|one)|my (?:guess"
    r"|response|conclusion)|correct(?= ?[:=]))\b\.?(?: (?:to|for) (?:the|this|that|your) (?:question|problem))?"
    r"(?:\s?(?:(?:'s|is|was|are|would be|should be|must be|will be)(?![A-Za-z])|:|=|->|→)){1,3}"
    r"|(?<![A-Za-z-])(?:i would say|i'd say|i would guess|i guess)\b"
    r"|(?:答案|答え|正解|정답)(?:应该|應該|应|就|可能)?(?:是|为|為|:|は|은|는)(?:是|为|:)?)",
    re.I,
)
DOUBT = re.compile(
    r"(?:\b(?:not|never|cannot|doubt|if|whether|unless|nobody|unsure|wrong to|incorrect to|false that|unlikely that)\b"
    r"|n't\b|不认为|不確定|不确定|是否|如果)",
    re.I,
)
NO_DOUBT = re.compile(
    r"\b(?:no|without(?: a| any)?) doubt\b|\bif (?:i|we) (?:had|have) to (?:guess|choose|pick)\b", re.I
)
SENTENCE_END = re.compile(r"[!?;\n。]|\.(?=\s|$)")
RESETS = re.compile(r"[.!?;,:\n。]|\b(?:but|so|and|therefore|thus|hence|because|then)\b", re.I)
CORRECT = re.compile(
    rf"{CLOSE}(?:"
    r" (?:is|are|was|seems|looks|appears|would be|must be|should be|has to be|will be|might be|could be)"
    r"(?: (?:to be|clearly|therefore|thus|definitely|probably|most|likely|also|indeed|obviously|the|my|a|only|both"
    r"|then|final|single|option|choice)){0,4} (?:correct|right|best|accurate|appropriate|suitable|answer|choice|true"
    r"|option|one)\b"
    r"| ?(?:选项|項|项|選項)?(?:应该|應該|才|就|都|最|显然)?(?:是|为|為)?(?:最)?(?:正确|正確|对的|正解|最佳|答案|合适)"
    r"| ?(?:です|입니다))",
    re.I,
)
AFTER = words(
    "because since as is was are and or but for due based not which given among here from by would rather if so "
    "instead seems"
)
"""Words behind an "A" that is no article."""
AFTER_NO = AFTER | words(
    "it it's its there there's this that that's these those he she they the i you we in on a an his her their no "
    "yes none only"
)
"""Words behind a "no" that is no determiner."""
WORD = re.compile(r"[A-Za-z']+")

EMPTY_WORDS = words(
    "i i'd i'll i'm i've would will say think believe guess choose pick select feel it it's its is this that that's be "
    "must should could might may can the my option options choice choices answer letter probably maybe perhaps likely "
    "most definitely clearly surely certainly so then thus hence therefore looks look like seems seem to appears final "
    "correct right best go with going am sure well ok okay leaving leaves which we we'd have has only just one hmm um "
    "me for in conclusion short of course here left remaining and or either both are also possibly an as"
)
EMPTY_SIGNS = re.compile(
    r"我们|我|认为|觉得|应该|應該|可能|大概|所以|因此|那么|就是|是|为|為|选项|選項|选择|选|選|项|項|应|的|故|答案|这|该|即|吧|了"
    r"|だ|です|입니다|と思います|而|都对|或|和|与|、|" + GONE
)
CLAUSES = re.compile(
    r"[!?;,\n。|]|:(?!/)|\.(?=\s|$|[\"')\]])| - |\b(?:because|since|but|due to|given that|while|although|因为|因為)\b",
    re.I,
)
LONGEST_CLAUSE = 60
CLAUSE_WORDS = re.compile(rf"[{LATIN}'+#%°/=-]+|[^\s{LATIN}]")
HARMLESS_SIGNS = frozenset("()[]{}<>\"'.!*-–—&/【】「」『』《》〈〉、")
TEXT_BEHIND = re.compile(rf"{CLOSE}[.:,)\s-]{{0,4}}([^\n.!?;]{{1,200}})")
NOT_QUOTED = (
    r" (?:not|no|isnt|arent|wasnt|never|neither|nor|than|of|except|unlike)(?: (?:a|an|the|any|being))?"
    r"|不是|并非|没有|沒有|而非|不"
).replace("|of|", "|instead of|")
REFUSAL = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable to|not able to|(?:im|not )possible to|do not|don't)"
    r"(?: \w+){0,2} (?:determine|answer|tell|say|see|identify|provide|help|assist|know|find|choose|decide|view|process"
    r"|access|make out|be determined|be answered)\b"
    r"|\b(?:sorry|apologi[sz]e|as an ai|not (?:sure|certain|enough|clear)|unclear|unsure|insufficient|unanswerable"
    r"|no (?:idea|answer|clue|correct)|none of (?:the|these)|all of (?:the|these)|undetermined|i refuse)\b"
    r"|\bn/a\b|无法|無法|不能|不知道|抱歉|对不起|對不起|不确定|不確定|分かりません|모르",
    re.I,
)
INTRODUCES = re.compile(
    r"^(?:well |so |i think |i believe |probably |it looks like |it seems (?:to be |like )?)*"
    r"(?:(?:it|this|that|he|she|they|these|those|there)(?:'s|'re| is| are| was| were)) "
    r"(?:probably |likely |most likely )?",
    re.I,
)
FINITE = re.compile(
    r"\b(?:is|are|was|were|am|has|have|had|does|do|did|can|could|will|would|should|shows?|appears?)\b", re.I
)
LONGEST_WORDS = 200
ABBREVIATION = re.compile(r"(?<![A-Za-z.])(?:[A-Za-z]\.){2,}(?:[A-Za-z](?![A-Za-z]))?")
"""U.S., e.g., a.m.: letters of none of which is an answer."""
