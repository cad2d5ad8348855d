"""Rules for the words of a caption. They apply to replies of language models and to captions that come with images.

A rule reads a text without the opening that names the concept (`a photo of CUS statue`), since class names may be in any
script. Words that the image shows, in quotes or after `that says`, describe the scene: the rules for refusals, preambles
and languages ignore them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import StrEnum

from .languages import foreign_language


class Problem(StrEnum):
    """The kinds of problems that a caption can have."""

    EMPTY = "empty"
    REFUSAL = "refusal"
    PREAMBLE = "preamble"
    PLACEHOLDER = "placeholder"
    LABEL = "label"
    MARKUP = "markup"
    LANGUAGE = "language"
    REPEATED_PHRASE = "repeated-phrase"
    CUT_OFF = "cut-off"
    ENCODING = "encoding"
    TEMPLATE_ONLY = "template-only"
    MISSING_TOKEN = "missing-token"
    OTHER_CLASS = "inconsistent-class"
    OVER_BUDGET = "over-budget"
    DUPLICATE = "duplicate"


I = re.IGNORECASE  # noqa: E741 - as in the regular expressions' own language

QUOTED = re.compile(
    r'"[^"]*"|“[^”]*”|«[^»]*»|„[^“”]*[“”]|‘[^’]*’|‹[^›]*›|「[^」]*」|『[^』]*』|《[^》]*》|＂[^＂]*＂|(?<!\w)\'[^\']+\'(?!\w)'
)
SIGN = re.compile(
    r"\b(?:that |which )?(?:says?|saying|reads|(?:sign|label|text|poster|banner|board|note|card|shirt) reading"
    r"|with the (?:words?|text|message|slogan|inscription|lettering)|lettering|(?:is )?written|labell?ed|titled|inscribed"
    r"|printed with|lettered|spelling)\b.*", I | re.DOTALL
)  # fmt: skip

_REFUSALS = (
    # English, first person
    r"\b(?:i|we)(?:['’]?m| am| are|['’]re| was| were)?(?: really| very| truly| so| afraid| currently)*"
    r" (?:cannot|can['’]?t|can not|could ?n['’]?t|could not|won['’]?t|will not|unable|not able|not allowed|not permitted"
    r"|not comfortable|not going to|sorry|afraid i|apologi[sz]e|must decline|decline|have to decline|do(?:n['’]t| not) (?:see|have|feel|know|think))\b",
    r"^\W*(?:so )?sorry\b(?!-)|\bmy apologies\b|^\W*(?:apologies|unfortunately|regrettably)\b|\bapologi[sz]e for\b",
    r"\bas an? (?:ai|a\.i\.|artificial|(?:large |vision )?language model|virtual|helpful assistant|assistant)\b|\bi(?:['’]m| am) an? (?:ai|assistant|language)\b",
    # English, impersonal
    r"\b(?:unable|not possible|impossible|not able|not allowed|not permitted) to (?:identify|describe|determine|provide|assist|process|view|comply"
    r"|analy[sz]e|generate|recogni[sz]e|help|tell|say|caption|fulfil|fulfill|complete|discern|access|open|load|see the image)\b",
    r"\b(?:cannot|can['’]t|can not|could not|couldn['’]t) (?:be )?(?:identif(?:y|ied)|describ(?:e|ed)|determine|determined|provide|provided|assist|comply|analy[sz]ed?|processe?d?|captioned)\b",
    r"\b(?:request|image|prompt|content|response) (?:was|is|has been|were|cannot be|violates|goes against)? ?(?:declined|denied|refused|rejected|blocked|filtered|flagged|redacted|withheld|violates)\b",
    r"\b(?:content|usage|safety|privacy) (?:policy|policies|guidelines|reasons)\b|\bviolates?\b.{0,30}\b(?:policy|policies|guidelines|terms)\b"
    r"|\bagainst (?:my|our|the) (?:\w+ )?(?:guidelines|policy|policies|programming|principles)\b|\bfor (?:privacy|safety|ethical) reasons\b",
    r"\bno image (?:was |is |has been )?(?:provided|attached|visible|available|matches|given|uploaded|included|supplied|shown)\b|\bplease (?:provide|upload|share|attach|send|try again)\b"
    r"|\b(?:don['’]t|do not) see (?:an|any) (?:image|picture|photo)\b|\bcan only (?:help|assist|describe)\b",
    r"^\W*(?:can['’]t|cannot|can not|won['’]t)\b|\b(?:was|been|am) (?:asked|instructed|told|trained|designed) not to\b|\b(?:my|our) (?:training|guidelines|instructions|policy|policies|programming)\b"
    r"|\bprevents? me\b|\bthere(?:['’]s| is) no (?:image|picture|photo)\b|\berror(?: \d{3})?\s*:|\bHTTP (?:error )?[45]\d\d\b|\bidentif(?:y|ying) (?:people|persons|individuals|anyone|someone|real)\b"
    r"|\b(?:i|we) (?:must|have to|will|need to|should) (?:\w+ )?(?:decline|refuse)\b|\bnot something (?:i|we)\b",
    # Chinese, Japanese, Korean
    r"抱歉|不好意思|看不到(?:图|圖|照)|(?:没有|沒有)(?:办法|辦法)|我不能|我拒绝|我拒絕|对不起|對不起|很遗憾|很遺憾|无法|無法|不能(?:识别|提供|描述|协助|帮助|分析|回答|处理)|作为(?:一个)?(?:人工智能|AI|语言模型)|不便(?:识别|描述)",
    r"お応えでき|申し訳|できません|できかねます|すみません|ごめん(?:なさい|ください)|お答えでき|いたしかねます|残念ながら",
    r"죄송|할 수 없|수 없습니다|수 없어요|도와드릴|불가능합니다|미안",
    # Russian, Ukrainian
    r"\bне могу\b|\bизвините\b|\bпростите\b|\bк сожалению\b|\bне удалось\b|\bпрошу прощения\b|\bне в состоянии\b|\bневозможно\b|\bна жаль\b|\bвибачте\b",
    # German, Dutch, Swedish, Danish, Norwegian
    r"\bes tut mir leid\b|\btut mir leid\b|\b(?:ich|wir) (?:kann|können|darf|dürfen|möchte)\b.{0,60}\bnicht\b|\bkann ich\b.{0,60}\bnicht\b|\bleider\b|\bentschuldigung\b|\bnicht (?:möglich|erkennbar|identifizierbar)\b|\bbin nicht in der lage\b",
    r"\bhet spijt me\b|\bik kan\b.{0,60}\b(?:niet|geen)\b|\bkan ik\b.{0,60}\b(?:niet|geen)\b|\bhelaas\b|\bjag kan\b.{0,40}\binte\b|\btyvärr\b|\bjeg kan\b.{0,40}\bikke\b|\bbeklager\b|\bdesværre\b",
    # French, Spanish, Portuguese, Italian
    r"\bdésolée?s?\b|\bje ne (?:peux|puis|suis pas en mesure|vois)\b|\bmalheureusement\b|\bimpossible d(?:e |['’])\w+|\bje m['’]excuse\b",
    r"\blo siento\b|\bno puedo\b|\bno (?:me )?es posible\b|\blamento\b|\blo lamento\b|\bno soy capaz\b|\bdisculpas?\b|\bdisculpe\b|\bno podemos\b",
    r"\bdesculpe\b|\bsinto muito\b|\bnão (?:posso|consigo|é possível|podemos|sou capaz)\b|\binfelizmente\b|\blamentamos\b",
    r"\bmi dispiace\b|\bnon (?:posso|riesco|è possibile|sono in grado|possiamo)\b|\bpurtroppo\b|\bspiacente\b|\bmi scuso\b",
    # Arabic, Hindi, Turkish, Polish, Vietnamese, Indonesian
    r"آسف|عذر[اً]|لا (?:[أا]ستطيع|يمكنني|يمكن)|غير قادر|للأسف|أعتذر|معذرة",
    r"खेद है|क्षमा (?:करें|कीजिए)|माफ़|माफ कीजिए|(?:नहीं|असमर्थ) (?:कर सकत|हूँ|हूं)|सकत[ाी] नहीं|नहीं (?:बता|पहचान|दे) सकत",
    r"\büzgünüm\b|\bmaalesef\b|\byardımcı olamam\b|\b\w+(?:emiyorum|amıyorum|emem|amam)\b|\bmümkün değil\b|\bözür dilerim\b",
    r"\bprzykro mi\b|\bprzepraszam\b|\bnie (?:mogę|jestem w stanie|można)\b|\bniestety\b|\bxin lỗi\b|\bkhông thể\b|\bmohon maaf\b|\bmaaf\b|\btidak (?:dapat|bisa)\b",
    # Thai, Hebrew, Greek, Persian, Urdu, Bengali
    r"ขออภัย|ขอโทษ|ไม่สามารถ|מצטער|איני יכול|אינני יכול|לא (?:יכול|ניתן)|λυπάμαι|λυπούμαι|συγγνώμη|δεν μπορώ",
    r"مت[أا]سف(?:م|انه)|نمی.?توانم|معذرت|نہیں کر سک|দুঃখিত|পার(?:ব|ছি) না",
    # Czech, Slovak, Romanian, Hungarian, Finnish
    r"\bomlouvám se\b|\bbohužel\b|\bnem(?:ohu|ůžu|ôžem)\b|\bospravedlňujem\b|\bîmi pare rău\b|\bnu (?:te |vă |îți )?pot\b",
    r"\bsajnálom\b|\bsajnos\b|\bnem tudok\b|\bvalitettavasti\b|\bpahoittelen\b|\ben voi\b|\ben pysty\b",
)  # fmt: skip
REFUSAL = re.compile("|".join(_REFUSALS), I)

PREAMBLE = re.compile(
    r"^\W*(?:sure|certainly|of course|okay|ok|absolutely|great|alright|yes)(?:[,.!:]| thing| here)"
    r"|^\W*(?:caption|description|answer|output|response|result|image description|the caption|alt text)(?: is)?\s*:"
    r"|\bhere(?:['’]s| is| are) (?:the|a|an|your|my|some)\b|^\W*here(?:['’]s| is| are)\b"
    r"|\b(?:this|the|that) (?:image|picture|photo|photograph|scene|shot)(?: (?:clearly|also|primarily|mainly|prominently))? (?:shows?|depicts?|features?|is of|captures?|displays?|contains?"
    r"|portrays?|presents?|illustrates?|appears to|seems to|has been|was taken|is (?:a|an|taken))\b"
    r"|\bin (?:this|the) (?:image|picture|photo|photograph)\s*[,:]|^\W*in (?:this|the) (?:image|picture|photo|photograph)\b"
    r"|\b(?:we|you|i|one) (?:can )?(?:also )?(?:see|observe|notice)\b|\blet me (?:know|describe)\b|\bi hope (?:this|that)\b"
    r"|\b(?:image|photo|picture) (?:that )?you(?:['’]ve| have)? (?:provided|shared|uploaded|sent|attached)\b|^\W*an? (?:description|caption)\b"
    r"|(?:^|\s)(?:user|assistant|system|human|model)\s*:|^\W*step \d+\s*:|^\W*(?:it|there) (?:seems|appears|looks like)\b|^\W*this (?:appears|seems|is|shows|looks)\b"
    r"|\bwould you like\b|\bfeel free\b|\bi(?:['’]d| would) (?:describe|say)\b|\bbased on the (?:image|photo|picture)\b|\b(?:note|disclaimer)\s*:",
    I,
)  # fmt: skip
"""Phrases of language models that introduce or comment on a description."""

PLACEHOLDER = re.compile(
    r"^\W*(?:(?:none|nothing)(?: (?:is |are )?(?:visible|present|shown|apparent|noted|specified|applicable))?|null|nil|nan|n/?a(?: \([^)]*\))?|n\.a\.?|not applicable (?:to|for|as|because|since|here|in this)\b.*|not (?:applicable|available|visible|specified|present|clear|shown|provided|relevant|mentioned|sure)"
    r"|unknown|unspecified|undefined|no (?:(?:other|additional|further|visible|notable|specific|discernible) ?)?(?:description|caption|clothing|clothes|pose|framing|setting|lighting|expression|details?|elements?|information|data|text|answer|comment)?(?: (?:is |are )?(?:visible|present|shown|apparent|provided|available|discernible|specified|needed))?"
    r"|keine?|ninguno|ninguna|aucune?|nessuno|nessuna|nenhum|nenhuma|geen|ingen|brak|yok|tidak ada|không có|нет|немає|无|無|没有|沒有|なし|特になし|없음|ไม่มี|لا يوجد|कोई नहीं"
    r"|\[object object\]|nothing else|(?:leave |left |an? )?(?:empty|blank)(?: string| field)?|tbd|todo|string|text|same(?: as (?:above|before))?|see above|does not apply|doesn['’]t apply|(?:the |an? )?(?:image|photo|picture|photograph|caption|description)|(?:your )?(?:text|caption|description) (?:goes )?here|lorem ipsum\b.*|value|\.{2,}|-+|\?+)?\W*$",
    I,
)  # fmt: skip
"""Words that fill a field without describing anything."""

LABEL = re.compile(
    r"(?:^|[,;.]\s*|\n)\W*(?:framing|pose|clothing|setting|lighting|other(?: details)?|expression|subject|background|foreground|action|mood|style|camera|camera angle|angle|composition"
    r"|details|image|photo|title|location|environment|object|view|colou?rs?|attire|posture|light|main|place)\s*[:=]"
    r"|(?:^|[,;.]\s*|\n)\W*(?:framing|pose|clothing|setting|lighting|other|expression|background)\s+[-–—]\s",
    I,
)  # fmt: skip

MARKUP = re.compile(
    r"\*\*|__|`|^\s*#{1,6}\s|^\s*[-*•]\s|^\s*\d{1,2}[.)]\s|\[[^\]]*\]\([^)]*\)|</?[a-z][^<>]*>|<\|[^|]*\|>|[{}]|\\[nt\"u]|&(?:[a-z]{2,6}|#\d+);|\|\||\[/?[A-Z]{3,}\]|(?<!\w)\*[^*]+\*(?!\w)",
    I,
)  # fmt: skip
WHOLE_IN_QUOTES = re.compile(r"^\s*(?:\"[^\"]+\"|“[^”]+”|'[^']+'|‘[^’]+’|«[^»]+»)[.\s]*$")
MOJIBAKE = re.compile("\ufffd|Ã[\u0080-\u00bf\u0192\u2013-\u2122]|â€|Â[\u00a0-\u00bf]|ï»¿|\\\\x[0-9a-f]{2}")
CUT_OFF = re.compile(r"(?:\b(?:a|an|the|and|of|or|with|its|their|his)|\.\.\.|…|,)\s*$", I)
SAME_WORD = re.compile(r"\b(\w+)\b(?:\W+\1\b){2,}", I)


def without_shown_words(text: str) -> str:
    """Remove the words that the image shows: quotations, and what follows `that says` and similar phrases."""
    return SIGN.sub(" ", QUOTED.sub(" ", text))


def _refusal(text: str) -> str:
    match = REFUSAL.search(without_shown_words(text))
    return f"a model declined: {match[0].strip()!r}" if match else ""


def _preamble(text: str) -> str:
    match = PREAMBLE.search(without_shown_words(text))
    return f"a comment instead of a description: {match[0].strip()!r}" if match else ""


def _placeholder(text: str) -> str:
    bad = [phrase for phrase in text.split(",") if phrase.strip() and PLACEHOLDER.match(phrase)]
    return f"{bad[0].strip()!r} describes nothing" if bad else ""


def _label(text: str) -> str:
    match = LABEL.search(QUOTED.sub(" ", text))
    return f"a label: {match[0].strip()!r}" if match else ""


def _markup(text: str) -> str:
    if WHOLE_IN_QUOTES.match(text):
        return "the whole text is in quotes"
    match = MARKUP.search(text)
    return f"markup: {match[0].strip()!r}" if match else ""


def _language(text: str) -> str:
    language = foreign_language(without_shown_words(text))
    return f"not English ({language}), which CLIP was trained on" if language else ""


def _loop(text: str) -> str:
    if match := SAME_WORD.search(text):
        return f"it repeats {match[1]!r}"
    phrase = _repeated_phrase(text) or _repeated_words(text)
    return f"it says {phrase!r} more than once" if phrase else ""


def _repeated_phrase(text: str) -> str:
    """Return the first phrase between punctuation marks that occurs twice; empty when there is none."""
    seen: set[str] = set()
    for phrase in re.split(r"[,;.]", text.lower()):
        key = " ".join(phrase.split())
        if key and key in seen:
            return key
        seen.add(key)
    return ""


def _repeated_words(text: str, length: int = 3) -> str:
    """Return the first run of `length` words that occurs twice; empty when there is none."""
    words = re.findall(r"\w[\w'-]*", text.lower())
    seen: set[tuple[str, ...]] = set()
    for start in range(len(words) - length + 1):
        phrase = tuple(words[start : start + length])
        if phrase in seen:
            return " ".join(phrase)
        seen.add(phrase)
    return ""


def _cut_off(text: str) -> str:
    match = CUT_OFF.search(text)
    return f"it ends with {match[0].strip()!r}" if match else ""


def _encoding(text: str) -> str:
    match = MOJIBAKE.search(text)
    return f"read in a wrong encoding: {match[0]!r}" if match else ""


RULES: dict[Problem, Callable[[str], str]] = {
    Problem.REFUSAL: _refusal,
    Problem.PREAMBLE: _preamble,
    Problem.PLACEHOLDER: _placeholder,
    Problem.LABEL: _label,
    Problem.MARKUP: _markup,
    Problem.ENCODING: _encoding,
    Problem.LANGUAGE: _language,
    Problem.REPEATED_PHRASE: _loop,
    Problem.CUT_OFF: _cut_off,
}
"""The rules by problem. Each takes a text without its opening and returns what is wrong with it, or an empty string."""


def check_words(text: str) -> Iterator[tuple[Problem, str]]:
    """Yield the problems of a text without its opening, with a message for each."""
    for problem, rule in RULES.items():
        if message := rule(text):
            yield problem, message
