"""Whether a judgment betrays that its writer was told the verdict or shown an earlier attempt.

A teacher that is corrected is asked to write as if it had found the verdict itself. One that says
"the correct verdict given" all the same would teach a judge to appeal to what it is never given.

Phrases are looked for, not meaning: what an answer is quoted or retold with does not count, nor a
phrase that the conversation or an answer holds itself.
"""

from __future__ import annotations

import re

from judging.records import Presentation
from judging.traces import without_quotations

_DROPPED = str.maketrans({"\u2019": "'", "\u2018": "'"} | dict.fromkeys('*_`"\u201c\u201d'))

# Parts of the phrases below; texts have single blanks, and no emphasis or quotation marks.
_RULING = r"(?:verdict|ruling)"
_JUDGMENT = r"(?:verdict|ruling|judge?ment)"
_ATTEMPT = r"(?:attempt|verdict|ruling|judge?ment|trace)"
_WORK = r"(?:evaluation|analysis|assessment|reasoning|comparison|decision|conclusion)"
_EARLIER = r"(?:earlier|previous|prior|preceding|failed|former|wrong)"
_FAULTY = r"(?:wrong|incorrect|mistaken|erroneous|flawed|in error|rejected)"
_CHOSE = r"(?:preferred|favou?red|picked|chose|ruled|sided)"
_GIVEN = r"(?:given|provided|stated|supplied|told|shown|specified|revealed|disclosed)"
_TRUE = r"(?:correct|right|true|actual|official|final|better)"
# One of the answers, but not both of them, for "to choose A or B" is the judge's task; and not the
# article "a".
_SIDE = (
    r"(?:the )?(?:(?:chatbot|response|reply|answer|assistant|option)(?: is)? )?"
    r"(?:\[\[)?(?-i:[AB])\b(?!\]*+(?: or\b|/))"
)

_PHRASES = (
    # a verdict that comes from elsewhere
    rf"(?:correct|right|true|actual|official|gold|golden|reference|known|expected|intended|desired"
    rf"|target|required|{_GIVEN}) {_RULING}\b",
    rf"(?:gold|golden|reference|oracle|known|expected|target) (?:{_JUDGMENT}|label|preference)\b",
    r"(?:the|a) (?:correct|right) judge?ment (?:is|was|given|provided|stated|says|favou?rs)\b",
    rf"{_RULING} (?:(?:is|was|has been|had been|have been) )?(?:already )?"
    rf"(?:{_GIVEN}|known|predetermined|fixed)\b",
    r"ground[- ]truth",
    r"(?:gold(?:en)? answer|the answer key)\b",
    r"(?:annotators?|labell?ers?|raters?) (?:prefer|chose|favou?r|pick|select|decided)",
    # told by someone
    rf"as (?:stated|given|provided|told|specified|indicated)(?: above| earlier| here)?,?"
    rf"(?: that)? the (?:correct|right) (?:answer|response|reply|choice|one|chatbot|option)"
    rf" (?:is|was) {_SIDE}",
    rf"the {_TRUE} (?:answer|response|reply|choice|one|chatbot|option) (?:is|was|has been)"
    rf" (?:already )?(?:{_GIVEN}|known|said) (?:as|to be) {_SIDE}",
    rf"(?:i|we)(?:'m|'ve|'re|'d| am| are| was| were| have| had)(?: already)?(?: been)?"
    rf" (?:told|informed)(?: in advance)?(?: of| that)?(?: the)? ?"
    rf"(?:{_TRUE}\b|{_JUDGMENT}|{_SIDE})",
    rf"(?:i|we)(?:'m|'ve|'re|'d| am| are| was| were| have| had)(?: already)?(?: been)?"
    rf" (?:given|shown|provided with|supplied with) (?:the|an?|my)(?: {_TRUE}| gold| {_EARLIER})*"
    rf" (?:{_ATTEMPT}|(?:correct|right) (?:answer|choice|letter))\b",
    r"(?:being|been|was|were|am) told (?:the )?(?:verdict|outcome|answer|result|which)\b",
    r"you(?:'ve| have| had)? (?:told|gave|showed|informed) (?:me|us)\b",
    r"as you(?:'ve| have| had)? (?:said|stated|told|indicated|specified|gave|given|provided)\b",
    rf"you(?:'ve| have| had)? (?:said|stated|indicated|specified|noted)(?: that)?"
    rf" (?:the (?:{_TRUE}\b|{_JUDGMENT})|{_SIDE})",
    rf"the (?:user|prompt|instructions?|task|system|client) (?:says?|said|states?|stated|tells me"
    rf"|told me|indicates?|indicated|gave|gives|wants me to)(?: that| say| conclude)?"
    rf"(?: the)?(?: {_TRUE})? ?(?:{_JUDGMENT}|answer|response|reply|choice|one)?"
    rf" ?(?:(?:is|was|should be|to be) {_SIDE}|{_SIDE} (?:is|was|should) )",
    r"the correction (?:above |here )?(?:says|states|gives|tells|asks|demands|is|was)\b",
    # made to reach it
    rf"(?:i|we)(?:'m|'re| am| are| was| were) (?:supposed|asked|told|required|instructed|expected"
    rf"|meant) to (?:prefer|conclude|arrive at|justify|favou?r|reach|support|end with|pick|choose"
    rf"|side with)(?: that)? {_SIDE}",
    r"as (?:if|though) (?:i|we)(?: had|'d)?(?: not|n't)? ?"
    r"(?:found|arrived|reached|did(?: not|n't) know|had(?: not|n't)? been told"
    r"|were(?: not|n't) told|was(?: not|n't) told)\b",
    r"(?:not|n't|never|without|avoid) (?:to )?(?:mention|reveal|refer|betray|acknowledg|let on)\w*"
    rf" (?:to )?(?:(?:that |the |any |an |my )*(?:{_JUDGMENT}|{_EARLIER} {_ATTEMPT})"
    r"|(?:being|having been|that i was|that i had been) (?:told|given|shown))\b",
    # an earlier attempt
    rf"(?:the|my|an|that|this|your) {_EARLIER} {_ATTEMPT}s?\b",
    rf"my (?:initial|first|original|last) (?:attempt|{_RULING})\b",
    rf"(?:the|my|an|that|this|your) {_EARLIER} {_WORK} (?:(?:was|is|were) {_FAULTY}"
    rf"|(?:wrongly |mistakenly |incorrectly )?(?:{_CHOSE}|overlooked|missed))\b",
    rf"(?:the|this) {_ATTEMPT} (?:i was )?(?:shown|given|provided|quoted|printed)"
    rf" (?:above|earlier|before|to me|here)\b",
    rf"(?:the|my|this|a) (?:corrected|revised) {_ATTEMPT}\b",
    r"(?:in )?(?:this|my) second (?:attempt|pass|try)\b",
    rf"i (?:had )?(?:previously|earlier|wrongly|mistakenly|incorrectly) (?:judged|{_CHOSE}"
    r"|decided|concluded)\b",
    r"(?:was|were) (?:previously|earlier|wrongly|mistakenly) judged\b",
)
_MENTION = re.compile(rf"\b(?:{'|'.join(_PHRASES)})", re.IGNORECASE)


def mentions_verdict(text: str, presentation: Presentation) -> bool:
    """Whether the text speaks of a verdict it was given, or of an attempt that went before."""
    plain = _plain(without_quotations(text))
    phrases = {match[0].casefold() for match in _MENTION.finditer(plain)}
    if not phrases:
        return False
    turns = [turn.content for turn in presentation.pair.conversation]
    shown = [
        _plain(part).casefold() for part in (*turns, presentation.answer_a, presentation.answer_b)
    ]
    return not all(any(phrase in part for part in shown) for phrase in phrases)


def _plain(text: str) -> str:
    return " ".join(text.translate(_DROPPED).split())
