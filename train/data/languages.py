"""The languages of cross-lingual retrieval and their sampling shares (paper, appendix A, table 7)."""

from collections.abc import Iterable

# Percentage of the pairs whose query is in this language (table 7).
TABLE_7_SHARES: dict[str, float] = {
    "en": 25, "zh": 12, "es": 8, "fr": 6, "ja": 6, "de": 5, "ru": 5, "it": 4, "pt": 4, "ar": 3, "ko": 3,
    "bn": 2, "da": 2, "sv": 2, "th": 2, "ms": 2, "tr": 2, "vi": 2, "nl": 2, "pl": 2, "hi": 2,
    "km": 1, "fi": 1, "he": 1, "hu": 1, "no": 1,
}  # fmt: skip


def sampling_shares(available: Iterable[str]) -> dict[str, float]:
    """Table 7's shares of the available languages, normalized to sum 1, in table 7's order.

    Languages outside table 7 get no share. Raises ValueError if none of the languages is in table 7.
    """
    languages = set(available)
    shares = {language: share for language, share in TABLE_7_SHARES.items() if language in languages}
    if not shares:
        raise ValueError(
            f"available: none of {sorted(languages)} is in table 7; expected some of {', '.join(TABLE_7_SHARES)}"
        )
    total = sum(shares.values())
    return {language: share / total for language, share in shares.items()}
