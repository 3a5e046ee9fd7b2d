"""Language codes of the rows (ISO 639-1) to mteb's tags (ISO 639-3 and ISO 15924 script)."""

import re

# The languages of the paper's table 7 (appendix A).
_TAGS: dict[str, str] = {
    "ar": "ara-Arab",
    "bn": "ben-Beng",
    "da": "dan-Latn",
    "de": "deu-Latn",
    "en": "eng-Latn",
    "es": "spa-Latn",
    "fi": "fin-Latn",
    "fr": "fra-Latn",
    "he": "heb-Hebr",
    "hi": "hin-Deva",
    "hu": "hun-Latn",
    "it": "ita-Latn",
    "ja": "jpn-Jpan",
    "km": "khm-Khmr",
    "ko": "kor-Hang",
    "ms": "msa-Latn",
    "nl": "nld-Latn",
    "no": "nor-Latn",
    "pl": "pol-Latn",
    "pt": "por-Latn",
    "ru": "rus-Cyrl",
    "sv": "swe-Latn",
    "th": "tha-Thai",
    "tr": "tur-Latn",
    "vi": "vie-Latn",
    "zh": "zho-Hans",
}
_TAG_PATTERN = re.compile(r"[a-z]{3}-[A-Z][a-z]{3}")


def language_tag(language: str) -> str:
    """mteb's tag of a language, e.g. "de" -> "deu-Latn". A tag of the form xxx-Xxxx is returned unchanged.

    Raises:
        ValueError: neither a language of table 7 nor such a tag.
    """
    if language in _TAGS:
        return _TAGS[language]
    if _TAG_PATTERN.fullmatch(language):
        return language
    raise ValueError(
        f"language: got {language!r}; expected one of {', '.join(sorted(_TAGS))}, "
        "or an ISO 639-3 code with its script such as 'ces-Latn'"
    )


def is_latin_script(language: str) -> bool:
    """Whether the language is written in the Latin script.

    Raises:
        ValueError: as `language_tag`.
    """
    return language_tag(language).endswith("-Latn")
