"""The five parts of the corpus: text, instructions, retrieval, crosslingual, sts.

Pages and groups of near-duplicate messages are first split into train and test by a hash of their name. Training rows
come from the training split alone. Test rows whose text also occurs in training (release notes repeat each other) are
dropped.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from tqdm import tqdm

from train.data.django_corpus.messages import Message, group_messages, language_name, read_messages
from train.data.django_corpus.rst import Section, parse_sections
from train.data.django_corpus.split import SeenTexts, fold, fraction, is_test_group, is_test_page
from train.data.django_corpus.sts import graded_pairs, passages
from train.data.languages import TABLE_7_SHARES
from train.data.rows import Instruction, Pair, Scored, Text

MIN_SECTION_WORDS = 15
STS_PAIRS = {"train": 4000, "test": 1000}
# Messages in one pretraining text.
_MESSAGES_PER_TEXT = 8

AnyRow = Text | Pair | Scored | Instruction
Pages = list[tuple[str, list[Section]]]

_WRITE_SECTION = (
    "Write the section with this heading.",
    "Explain this topic of the documentation.",
    "What does the documentation say about this?",
)
_WRITE_HEADING = ("Give this section a heading.", "What is this text about?", "Summarise this text in a few words.")
_TRANSLATE = ("Translate into {}.", "Translate this message into {}.", "How do you say this in {}?")


@dataclass(frozen=True, slots=True)
class SplitCorpus:
    """Parsed pages and messages by split ("train", "test")."""

    pages: dict[str, Pages]
    messages: dict[str, list[Message]]


def split_corpus(files: Iterable[tuple[str, bytes]]) -> SplitCorpus:
    """Parse documentation pages and message catalogs, and split both into train and test.

    `files`: (path, content). A test group goes to train if the training pages quote one of its messages.
    """
    catalogs: list[tuple[str, bytes]] = []
    pages: dict[str, Pages] = {"train": [], "test": []}
    for path, content in tqdm(sorted(files), desc="parsing pages", unit=" files", delay=1):
        if path.endswith(".po"):
            catalogs.append((path, content))
        else:
            page = path.removeprefix("docs/").removesuffix(".txt")
            sections = [section for section in parse_sections(content.decode("utf-8")) if section.paragraphs]
            pages["test" if is_test_page(page) else "train"].append((page, sections))

    found, plurals = read_messages(catalogs)
    group_of = group_messages((message.english for message in found), plurals)
    documentation = SeenTexts(text for _, sections in pages["train"] for s in sections for text in (s.heading, s.text))
    quoted = {group for english, group in group_of.items() if is_test_group(group) and documentation.has(english)}
    messages: dict[str, list[Message]] = {"train": [], "test": []}
    for message in found:
        group = group_of[message.english]
        messages["test" if is_test_group(group) and group not in quoted else "train"].append(message)
    return SplitCorpus(pages, messages)


def build_parts(corpus: SplitCorpus) -> dict[tuple[str, str], list[AnyRow]]:
    """The rows of every (part, split). Text and instructions have no test split: nothing is evaluated on them."""
    pages, messages = corpus.pages["train"], corpus.messages["train"]
    parts: dict[tuple[str, str], list[AnyRow]] = {
        ("text", "train"): [*_documentation_texts(pages), *_message_texts(messages)],
        ("instructions", "train"): [*_section_instructions(pages), *_translation_instructions(messages)],
        ("retrieval", "train"): [Pair(s.heading, s.text) for s in _long_sections(pages)],
        ("crosslingual", "train"): list(_crosslingual_pairs(messages)),
        ("sts", "train"): list(graded_pairs(passages(pages), STS_PAIRS["train"], seed=0)),
    }
    training = [row for rows in parts.values() for row in rows]
    bar = tqdm(training, desc="indexing the training texts", unit=" rows", unit_scale=True, delay=1)
    seen = SeenTexts(text for row in bar for text in row_texts(row))
    parts["retrieval", "test"] = list(_retrieval_test(corpus.pages["test"], seen))
    parts["crosslingual", "test"] = [
        pair
        for pair in _crosslingual_pairs(corpus.messages["test"])
        if pair.language in TABLE_7_SHARES and not seen.has(pair.positive) and not seen.has(pair.query, pair.language)
    ]
    candidates = passages(corpus.pages["test"])
    unseen = [c for c in candidates if not seen.has(c.text) and not seen.mostly_seen(c.text)]
    parts["sts", "test"] = list(graded_pairs(unseen, STS_PAIRS["test"], seed=1))
    return parts


def row_texts(row: AnyRow) -> Iterator[str]:
    """The texts of a row, without its language."""
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, str) and field.name != "language":
            yield value
        elif isinstance(value, tuple):
            yield from value


def _choose(options: tuple[str, ...], key: str) -> str:
    """One of the options, determined by the key."""
    return options[int(fraction("wording " + key) * len(options))]


def _long_sections(pages: Pages) -> Iterator[Section]:
    """Sections with enough text for retrieval, without duplicates."""
    seen = set()
    for _, sections in pages:
        for section in sections:
            key = (fold(section.heading), fold(section.text))
            if section.word_count >= MIN_SECTION_WORDS and section.heading and key not in seen:
                seen.add(key)
                yield section


def _documentation_texts(pages: Pages) -> Iterator[Text]:
    for _, sections in pages:
        for section in sections:
            yield Text(f"{section.heading}\n\n{section.text}")


def _message_texts(messages: list[Message]) -> Iterator[Text]:
    """Messages next to their translations, several of one language per text, alternating which language comes first.

    Parallel text lets next-token prediction align the languages.
    """
    by_locale: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        by_locale[message.locale].append(message)
    for locale, translated in by_locale.items():
        # Neighbors in a catalog are similar; sorting by hash mixes them.
        translated.sort(key=lambda message: (fraction(message.english), message.translation))
        for start in range(0, len(translated), _MESSAGES_PER_TEXT):
            lines = [("English", language_name(locale))]
            lines += [
                (message.english, message.translation) for message in translated[start : start + _MESSAGES_PER_TEXT]
            ]
            if start // _MESSAGES_PER_TEXT % 2:
                lines = [(translation, english) for english, translation in lines]
            yield Text("\n".join(f"{first} – {second}" for first, second in lines))


def _section_instructions(pages: Pages) -> Iterator[Instruction]:
    for section in _long_sections(pages):
        yield Instruction(_choose(_WRITE_SECTION, section.text), section.heading, section.text)
        yield Instruction(_choose(_WRITE_HEADING, section.text), section.text, section.heading)


def _translation_instructions(messages: list[Message]) -> Iterator[Instruction]:
    for message in messages:
        wording = _choose(_TRANSLATE, f"{message.locale} {message.english}")
        name = language_name(message.locale)
        yield Instruction(wording.format(name), message.english, message.translation, message.language)
        yield Instruction(wording.format("English"), message.translation, message.english, message.language)


def _crosslingual_pairs(messages: list[Message]) -> Iterator[Pair]:
    """(translated message, English message), without duplicates per language."""
    pairs = (Pair(message.translation, message.english, language=message.language) for message in messages)
    yield from dict.fromkeys(pairs)


def _retrieval_test(pages: Pages, seen: SeenTexts) -> Iterator[Pair]:
    """Sections that do not occur in training, nor does their heading, and whose heading is unique.

    A heading of several sections ("Bugfixes") would have several right answers.
    """
    sections = list(_long_sections(pages))
    uses = Counter(fold(section.heading) for section in sections)
    for section in sections:
        unique = uses[fold(section.heading)] == 1
        known = seen.equals(section.heading) or seen.has(section.text) or seen.mostly_seen(section.text)
        if unique and not known:
            yield Pair(section.heading, section.text)
