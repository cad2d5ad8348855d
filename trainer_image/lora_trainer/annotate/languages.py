"""Recognition of texts that are not English, by script and by function words.

Function words are articles, prepositions and other short words that are frequent in a language. Words that English
captions also have, in names or as loan words, do not count. Captions are short and contain few function words, so two of
them decide, or one together with a letter that English does not have.
"""

from __future__ import annotations

import re
import unicodedata

WORDS = {
    "German": "ein eine einem einen einer eines und auf mit dem den der das ist im vor nicht unter über neben zwei einige sehr "
    "steht sitzt liegt trägt hinter aus bei zur zum wird sind vom durch",
    "French": "une dans avec sur le les un et est du aux debout assis devant derrière sous près deux très qui sont cette ce par pour "
    "à côté l'arrière-plan d'un d'une l'image",
    "Spanish": "una con el los las un y en del está sobre frente por para junto al detrás dos muy que es bajo de pie sentado",
    "Portuguese": "uma um com em no na os do da dos das está sobre ao à e por para atrás dois muito que é sob ao lado de pé",
    "Italian": "una un con il gli nel nella sulla sul della di e è davanti su da per dietro due molto che sotto accanto alla dei delle",
    "Dutch": "een het met van op de en in naast achter onder voor is twee zeer zit staat ligt",
    "Swedish": "en ett på och med av i som är bakom under framför sitter står ligger",
    "Polish": "na w z i jest się przed pod obok przy stoi leży siedzi dwa bardzo który oraz",
    "Turkish": "bir ve ile üzerinde önünde yanında altında çok arka planda duruyor oturan olan için",
    "Indonesian": "di yang dengan dan ini sebuah seorang atas bawah depan belakang sedang latar pada",
    "Vietnamese": "một trên với và của trong người đang có dưới cạnh ngồi đứng",
    "Czech": "na v se je před pod vedle stojí leží sedí dva velmi který na pozadí",
}
ENGLISH = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "of",
        "in",
        "on",
        "at",
        "with",
        "from",
        "to",
        "by",
        "for",
        "under",
        "over",
        "above",
        "below",
        "behind",
        "beside",
        "near",
        "is",
        "are",
        "its",
        "his",
        "her",
        "their",
        "against",
        "into",
        "seen",
        "view",
        "side",
        "front",
        "light",
        "standing",
        "sitting",
        "wearing",
        "holding",
        "looking",
        "background",
        "shot",
        "close-up",
        "photo",
        "this",
        "that",
        "two",
        "one",
        "small",
        "large",
        "facing",
        "resting",
        "lying",
        "outdoors",
        "indoors",
        "daylight",
        "night",
        "left",
        "right",
        "up",
        "down",
        "lit",
        "or",
        "through",
        "as",
        "around",
        "between",
        "during",
        "while",
        "no",
        "not",
        "very",
        "beneath",
        "toward",
        "towards",
        "along",
        "across",
        "inside",
        "outside",
        "next",
    ]
)
AMBIGUOUS = frozenset(
    [
        "a",
        "an",
        "in",
        "on",
        "i",
        "me",
        "man",
        "die",
        "was",
        "den",
        "is",
        "am",
        "over",
        "under",
        "for",
        "to",
        "as",
        "at",
        "no",
        "so",
        "do",
        "e",
        "y",
        "de",
        "la",
        "le",
        "un",
        "en",
        "el",
        "das",
        "van",
        "di",
        "da",
        "pie",
        "pro",
        "con",
        "per",
        "se",
        "na",
        "he",
        "of",
        "al",
    ]
)
"""Words of the lists that English captions also have, in names ('Rio de Janeiro', 'el niño') or as English words."""

ARTICLES = frozenset(["un", "una", "une", "uno", "ein", "eine", "einen", "um", "uma", "een", "ett"])
"""Indefinite articles of other languages. Definite ones are not listed, since names of places and films have them."""

_LISTS = {language: frozenset(words.split()) for language, words in WORDS.items()}
MAX_FOREIGN_LETTERS = 0.2
"""Maximum share of letters of other scripts than Latin in a text that may be English."""


def foreign_language(text: str) -> str:
    """Return the script or language of a text that is not English; empty for English and for uncertain cases."""
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return ""
    scripts = [script for character in letters if (script := _script(character)) != "LATIN"]
    if len(scripts) > MAX_FOREIGN_LETTERS * len(letters):
        return max(set(scripts), key=scripts.count).capitalize()
    words = re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text.lower().replace("’", "'"))
    english = sum(word in ENGLISH for word in words)
    accented = sum(_is_accented(word) for word in words)
    # The best language so far, the number of its words in the text, and how many of these are unambiguous.
    best, count, sure = "", 0, 0
    for language, listed in _LISTS.items():
        hits = [word for word in words if word in listed]
        certain = [word for word in hits if word not in AMBIGUOUS and word not in ENGLISH]
        if (len(certain), len(hits)) > (sure, count):
            best, count, sure = language, len(hits), len(certain)
    # Weaker evidence decides only in texts with few or no English words.
    if sure >= 2 and count > english:
        return best
    if sure >= 1 and accented and count + accented > english + 1:
        return best
    if accented >= 2 and accented * 3 >= len(words) and not english:
        return "unknown language"
    if sure == 1 and not english and len(words) <= 6:
        return best
    if count >= 2 and not english and len(words) >= 3:
        return best
    if words and words[0] in ARTICLES and not english and len(words) <= 4:
        return best or "unknown language"
    return ""


def _script(character: str) -> str:
    """Return a letter's script: the first word of its Unicode name."""
    return unicodedata.name(character, "UNKNOWN").split(" ")[0].split("-")[0]


def _is_accented(word: str) -> bool:
    return any(
        ord(character) > 127 for character in unicodedata.normalize("NFC", word) if character.isalpha()
    )
