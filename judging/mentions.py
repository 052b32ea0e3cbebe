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
_TOLD = rf"(?:correction|label|reference|feedback|answer key|prompt|instructions?|{_RULING})"
_SAYS = r"(?:says?|said|states?|stated|shows?|tells(?: me)?|indicates?|gives?|names?|confirms?)"
_ANSWER = r"(?:answer|response|reply|choice|letter|one|chatbot|option|outcome|result|winner)"
_BEEN = r"(?:i|we)(?:'m|'ve|'re|'d| am| are| was| were| have| had)(?: already)?(?: been)?"

_PHRASES = (
    # a verdict that comes from elsewhere
    rf"(?:correct|right|true|actual|official|gold|golden|reference|known|expected|intended|desired"
    rf"|target|required|{_GIVEN}) {_RULING}\b",
    rf"(?:gold|golden|reference|oracle|known|expected|target) (?:{_JUDGMENT}|label|preference)\b",
    rf"the (?:{_GIVEN}|human) (?:label|preference)\b",
    rf"(?:known|{_GIVEN}) (?:correct|right|better) {_ANSWER}\b",
    rf"(?:target|intended|desired|expected|gold|reference|required|given) {_ANSWER}(?: here)?"
    rf" (?:is|was) {_SIDE}",
    r"(?:the|a) (?:correct|right) judge?ment (?:is|was|given|provided|stated|says|favou?rs)\b",
    rf"{_RULING} (?:(?:is|was|has been|had been|have been) )?(?:already )?"
    rf"(?:{_GIVEN}|known|predetermined|fixed)\b",
    rf"{_RULING} (?:must|has to|needs to) be {_SIDE}",
    rf"(?:given|since|because|as|with|knowing)(?: that)? the {_RULING}"
    rf"(?: (?:is|was|of))?,? {_SIDE}",
    r"ground[- ]truth",
    r"(?:gold(?:en)? answer|the answer key)\b",
    r"(?:annotators?|labell?ers?|raters?) (?:prefer|chose|favou?r|pick|select|decided)",
    rf"(?:people|humans|experts) (?:{_CHOSE}|prefer|favou?r) {_SIDE}",
    rf"(?:label|preference) (?:is|was|for|favou?rs|points to|{_SAYS}) {_SIDE}",
    # told by someone
    rf"as (?:stated|given|provided|told|specified|indicated)(?: above| earlier| here)?,?"
    rf"(?: that)? the (?:correct|right) {_ANSWER} (?:is|was) {_SIDE}",
    rf"the (?:{_TRUE} )?{_ANSWER} (?:is|was|has been) (?:already )?(?:{_GIVEN}|known|said)"
    rf" (?:as|to be) {_SIDE}",
    rf"{_BEEN} (?:told|informed)(?: in advance)?(?: of| that)?(?: the)? ?"
    rf"(?:{_TRUE}\b|{_JUDGMENT}|{_SIDE})",
    rf"{_BEEN} (?:given|shown|provided with|supplied with) (?:the|an?|my)"
    rf"(?: {_TRUE}| gold| {_EARLIER})* (?:{_ATTEMPT}|(?:correct|right) (?:answer|choice|letter))\b",
    r"(?:being|been|was|were|am) told (?:the )?(?:verdict|outcome|answer|result|which)\b",
    rf"(?:been told|told me)(?: that)?(?: the (?:{_ANSWER}|{_RULING}) is)? {_SIDE}",
    rf"known to be the (?:preferred|better|correct) {_ANSWER}\b",
    r"you(?:'ve| have| had)? (?:told|gave|showed|informed) (?:me|us)\b",
    r"as you(?:'ve| have| had)? (?:said|stated|told|indicated|specified|gave|given|provided)\b",
    rf"you(?:'ve| have| had)? (?:said|stated|indicated|specified|noted)(?: that)?"
    rf" (?:the (?:{_TRUE}\b|{_JUDGMENT})|{_SIDE})",
    rf"the (?:user|task|system|client|{_TOLD}) (?:wants me to|{_SAYS})(?: that| say| conclude)?"
    rf"(?: the)?(?: {_TRUE})? ?(?:{_JUDGMENT}|{_ANSWER})?"
    rf" ?(?:(?:is|was|should be|to be) {_SIDE}|{_SIDE} (?:is|was|should) )",
    rf"the correction (?:above |here )?(?:{_SAYS}|asks|demands|is|was)\b",
    rf"(?:per|by|following|according to|in line with|based on) the (?:correction|{_RULING})\b",
    rf"(?:(?:per|by|following|according to|based on) the {_TOLD}|as the {_TOLD} {_SAYS}|as"
    rf" (?:instructed|required|directed|requested)),?(?: that)? (?:(?:the|my) (?:final )?{_RULING}"
    rf"|(?:i|we) (?:conclude|rule|choose|pick|prefer|side)\b|{_SIDE} (?:is|was|wins)\b)",
    rf"(?:i|we) (?:already )?know(?: that)? {_SIDE} (?:is|was) (?:the )?"
    r"(?:better|preferred|winner)",
    # made to reach it
    rf"(?:i|we)(?:'m|'re| am| are| was| were) (?:supposed|asked|told|required|instructed|expected"
    rf"|meant) to (?:prefer|conclude|arrive at|justify|favou?r|reach|support|end with|pick|choose"
    rf"|side with)(?: that)? {_SIDE}",
    rf"(?:(?:need|have|wants? me|asks? me) to|must) (?:end|finish|close|arrive|land|conclude)"
    rf" (?:with|in|at|on) {_SIDE}",
    rf"{_ATTEMPT} that (?:ends|concludes|arrives|leads|lands)(?: to| with| in| at| on| that)?"
    rf" {_SIDE}",
    r"(?:as (?:if|though)|pretend(?:ing)?(?: that)?) (?:i|we)(?: had|'d)?(?: not|n't)? ?"
    r"(?:found|discovered|arrived|reached|came up|did(?: not|n't) know"
    r"|(?:had(?: not|n't)? been|were(?: not|n't)|was(?: not|n't)) told)\b",
    r"(?:not|n't|never|without|avoid) (?:to )?(?:mention|reveal|refer|betray|acknowledg|let on)\w*"
    rf" (?:to )?(?:(?:that |the |any |an |my )*(?:{_RULING}|{_EARLIER} {_ATTEMPT})"
    r"|(?:being|having been|that (?:i|we) (?:was|were|had been)) (?:told|given|shown))\b",
    # an earlier attempt
    rf"(?:the|my|our|an|that|this|your) {_EARLIER} {_ATTEMPT}s?\b",
    rf"(?:my|our|your) (?:last |{_EARLIER} )(?:{_ATTEMPT}|{_WORK}|answer|response|reply)s?\b",
    rf"(?:my|our) (?:initial|first|original) {_ATTEMPT}\b",
    rf"the first {_JUDGMENT}\b",
    r"in the first attempt,? i\b",
    r"than i (?:first |previously )(?:judged|thought|ruled|concluded)\b",
    rf"(?:the|an|that|this) {_EARLIER} {_WORK} (?:(?:was|is|were) {_FAULTY}"
    rf"|(?:wrongly |mistakenly |incorrectly )?(?:{_CHOSE}|overlooked|missed))\b",
    rf"(?:contrary to|unlike|correcting|revisiting|reconsidering|reviewing) (?:the|an|that|this)"
    rf" {_EARLIER} {_WORK}\b",
    rf"(?:the|this) {_ATTEMPT} (?:i was )?(?:shown|given|provided|quoted|printed)"
    rf" (?:above|earlier|before|to me|here)\b",
    r"(?:the|this) (?:attempt|trace) above\b",
    rf"(?:the|my|this|a) (?:corrected|revised) {_ATTEMPT}\b",
    r"(?:in )?(?:this|my) second (?:attempt|pass|try)\b",
    rf"(?:i (?:had )?(?:previously|earlier|wrongly|mistakenly|incorrectly)|previously,? i(?: had)?)"
    rf" (?:judged|{_CHOSE}|decided|concluded)\b",
    r"i initially (?:judged|picked|chose|ruled)\b",
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
