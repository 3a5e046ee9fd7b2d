"""Django's translated messages, parsed from gettext catalogs (.po)."""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from babel import Locale, UnknownLocaleError
from babel.messages.pofile import read_po

from train.data.django_corpus.split import fold
from train.data.languages import TABLE_7_SHARES

# Locale -> language of table 7, where the names differ.
_TABLE_7_LOCALES = {"zh_Hans": "zh", "zh_Hant": "zh", "pt_BR": "pt", "nb": "no", "nn": "no"}
# Languages outside table 7 with fewer messages are dropped.
MIN_MESSAGES = 500

_PLACEHOLDER = re.compile(r"%\([^)]*\)[a-z]?|%[a-z]|\{[^}]*\}|<[^>]*>|&\w+;")


@dataclass(frozen=True, slots=True)
class Message:
    """A message and its translation. `locale` distinguishes variants of `language` (zh_Hans, zh_Hant)."""

    english: str
    translation: str
    language: str
    locale: str


def language_of(locale: str) -> str:
    """Table 7's code for a locale; the locale itself if table 7 does not have it."""
    return _TABLE_7_LOCALES.get(locale, locale)


@lru_cache
def language_name(locale: str) -> str:
    """The English name of a locale, such as 'German'; the locale itself if it has no name."""
    try:
        return Locale.parse(locale).english_name or locale
    except (UnknownLocaleError, ValueError):
        return locale


def read_messages(catalogs: Iterable[tuple[str, bytes]]) -> tuple[list[Message], list[tuple[str, str]]]:
    """The translated messages of all catalogs, and the (singular, plural) pairs of English messages.

    Skipped: headers, fuzzy, obsolete and empty entries, English variants, translations equal to the English message,
    and small languages outside table 7. Each (English, translation, locale) is returned once, in catalog order.
    """
    found: dict[Message, None] = {}
    plurals: dict[tuple[str, str], None] = {}
    for path, content in sorted(catalogs):
        locale = path.partition("/locale/")[2].partition("/")[0]
        if locale == "en" or locale.startswith("en_"):
            continue
        for forms in _entries(content):
            if len(forms) == 2:
                plurals[forms[0][0], forms[1][0]] = None
            for english, translation in forms:
                if translation and fold(english) != fold(translation):
                    found[Message(english, translation, language_of(locale), locale)] = None
    sizes = Counter(message.language for message in found)
    kept = [m for m in found if m.language in TABLE_7_SHARES or sizes[m.language] >= MIN_MESSAGES]
    return kept, list(plurals)


def _entries(content: bytes) -> Iterator[list[tuple[str, str]]]:
    """The (English, translation) forms of each catalog entry, white space collapsed; two for a plural message."""
    # Babel prints a warning for an entry with more plural forms than the catalog declares, and drops the rest.
    with contextlib.redirect_stdout(io.StringIO()):
        catalog = read_po(io.BytesIO(content), ignore_obsolete=True)
    for message in catalog:
        if not message.id or not message.string or message.fuzzy:
            continue
        if isinstance(message.id, str):
            translation = message.string if isinstance(message.string, str) else message.string[0]
            yield [(_one_line(message.id), _one_line(translation))]
            continue
        singular, plural = (_one_line(part) for part in message.id)
        strings = [_one_line(part) for part in message.string]
        # The singular is known only with exactly two forms; otherwise it depends on the language's plural rule.
        yield [(singular, strings[0] if len(strings) == 2 else ""), (plural, strings[-1])]


def group_messages(english: Iterable[str], plurals: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Group near-duplicates: English messages that differ only in number, digits, placeholders or punctuation.

    Returns:
        message -> group. A group is named after its smallest key, so the order of the messages does not matter.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            key = parent[key]
        return key

    def join(a: str, b: str) -> None:
        first, second = sorted((root(a), root(b)))
        parent[second] = first

    messages = list(english)
    for singular, plural in plurals:
        join(_message_key(singular), _message_key(plural))
    return {message: root(_message_key(message)) for message in messages}


def _message_key(message: str) -> str:
    """A message without what near-duplicates differ in: case, placeholders, digits, punctuation, plural s."""
    words = re.findall(r"[^\W\d_]+", _PLACEHOLDER.sub(" ", message).casefold())
    return " ".join(word.rstrip("s") or word for word in words) or message


def _one_line(text: str) -> str:
    return " ".join(text.split())
