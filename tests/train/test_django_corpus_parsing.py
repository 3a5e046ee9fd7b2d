"""Parsing documentation pages and message catalogs, and splitting them into train and test."""

from __future__ import annotations

import pytest

from train.data.django_corpus.messages import Message, group_messages, language_name, language_of, read_messages
from train.data.django_corpus.rst import Paragraph, Section, clean_inline, parse_sections
from train.data.django_corpus.split import SeenTexts, fraction, is_test_group, is_test_page
from train.data.django_corpus.sts import MAX_WORDS, Passage, graded_pairs, passages

PAGE = """\
Text before any heading belongs to none.

=====================
The ``Thing`` in full
=====================

.. module:: things
   :synopsis: What things are.

.. _thing-target:

First paragraph, over
two lines with :ref:`a link <thing-target>`.

* One point, and
  its second line.
* Another point::

      code(*kept, as_it_is)

          deeper  spaces

Back to prose.

.. toctree::
   :hidden:

   other
   pages

Sub\\ *heading*
==============

.. method:: Thing.save(force=False)

    .. versionadded:: 5.1

    Saves |the thing|.

    .. code-block:: pycon
        :caption: thing.py

        >>> thing.save()

.. note:: Short notes
    keep their text.

.. a comment
   that goes

==========  =====
Name        Value
==========  =====
``one``     1
==========  =====

.. _site: https://example.org/

Empty
-----
"""


def test_sections_of_a_page() -> None:
    prose = [
        "First paragraph, over two lines with a link.",
        "One point, and its second line.",
        "Another point:",
    ]
    code = "code(*kept, as_it_is)"
    first = Section(
        "The Thing in full",
        (
            *(Paragraph(text, False) for text in prose),
            Paragraph(code, True),
            Paragraph("deeper  spaces", True),
            Paragraph("Back to prose.", False),
        ),
    )
    second = Section(
        "Subheading",
        (
            Paragraph("Thing.save(force=False)", False),
            Paragraph("Saves the thing.", False),
            Paragraph(">>> thing.save()", True),
            Paragraph("Short notes keep their text.", False),
            Paragraph("Name Value one 1", False),
        ),
    )
    assert parse_sections(PAGE) == [first, second, Section("Empty", ())]
    assert second.text.startswith("Thing.save(force=False)\n\nSaves")
    assert second.word_count == 1 + 3 + 2 + 5 + 4


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        (":ref:`text <target>`", "text"),
        (":ref:`over\n    two lines <some-target>`", "over two lines"),
        (":class:`~django.db.models.Model` and :meth:`.save`", "Model and save"),
        (":doc:`/ref/models/index`", "ref/models/index"),
        (":ticket:`123`, :cve:`2024-1`, :rfc:`2822`", "#123, CVE-2024-1, RFC 2822"),
        (":py:func:`print`", "print"),
        ("`the site <https://example.org/>`_ or `another`__ or this_", "the site or another or this"),
        ("**bold** and *italic*, 2 * 3 * 4, f(*a, **b)", "bold and italic, 2 * 3 * 4, f(*a, **b)"),
        ("``raw *text* :ref:`x` and name_``", "raw *text* :ref:`x` and name_"),
        ("``QuerySet``\\s and \\*", "QuerySets and *"),
        ("|release| notes {{ a|join:b }}", "release notes {{ a|join:b }}"),
        ("snake_case, __init__.py, (change|delete)_it", "snake_case, __init__.py, (change|delete)_it"),
    ],
)
def test_inline_markup(markup, text) -> None:
    assert clean_inline(markup) == text


HEADER = """\
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
"Plural-Forms: nplurals={}; plural=0;\\n"

"""
ENTRIES = """\
msgid "Log  out"
msgstr "Ab"
"melden"

#, fuzzy
msgid "Guess"
msgstr "Schuss"

msgid "Empty"
msgstr ""

msgid "IPv4"
msgstr "ipv4"

#~ msgid "Old"
#~ msgstr "Alt"

msgctxt "verb"
msgid "%(n)s day"
msgid_plural "%(n)s days"
msgstr[0] "%(n)s Tag"
msgstr[1] "%(n)s Tage"
"""


def catalog(locale: str, forms: int = 2, entries: str = ENTRIES) -> tuple[str, bytes]:
    return f"django/conf/locale/{locale}/LC_MESSAGES/django.po", (HEADER.format(forms) + entries).encode()


def test_messages_of_catalogs() -> None:
    slavic = ENTRIES + 'msgstr[2] "%(n)s Tages"\n'
    catalogs = [catalog("de"), catalog("en_GB"), catalog("uk"), catalog("pt_BR"), catalog("ru", 3, slavic)]
    messages, plurals = read_messages(catalogs)
    german = [
        Message("Log out", "Abmelden", "de", "de"),
        Message("%(n)s day", "%(n)s Tag", "de", "de"),
        Message("%(n)s days", "%(n)s Tage", "de", "de"),
    ]
    brazilian = [Message(m.english, m.translation, "pt", "pt_BR") for m in german]
    # With three forms the singular is unknown; a small language outside table 7 (uk) is dropped.
    russian = [Message("Log out", "Abmelden", "ru", "ru"), Message("%(n)s days", "%(n)s Tages", "ru", "ru")]
    assert messages == german + brazilian + russian
    assert plurals == [("%(n)s day", "%(n)s days")]


def test_locales() -> None:
    assert [language_of(name) for name in ("zh_Hans", "zh_Hant", "pt", "pt_BR", "nb", "nn", "de", "es_AR")] == [
        "zh", "zh", "pt", "pt", "no", "no", "de", "es_AR",
    ]  # fmt: skip
    assert (language_name("de"), language_name("zh_Hans"), language_name("xx")) == (
        "German",
        "Chinese (Simplified)",
        "xx",
    )


def test_near_duplicate_messages_share_a_group() -> None:
    messages = [
        "Delete?",
        "delete",
        "%(count)s item deleted.",
        "{n} items deleted",
        "%d child",
        "%d children",
        "Save",
        "%s",
    ]
    group = group_messages(messages, [("%d child", "%d children")])
    assert group["Delete?"] == group["delete"]
    assert group["%(count)s item deleted."] == group["{n} items deleted"]
    assert group["%d child"] == group["%d children"]
    assert len(set(group.values())) == 5
    assert group_messages(reversed(messages), [("%d child", "%d children")]) == group


def test_the_split_depends_on_the_name_alone() -> None:
    # sha256("page topics/db/queries") begins with these 8 bytes.
    assert fraction("page topics/db/queries") == int("8a4b8e514562b443", 16) / 2**64
    pages = [f"page-{number}" for number in range(4000)]
    assert 0.10 < sum(map(is_test_page, pages)) / len(pages) < 0.14
    assert 0.13 < sum(map(is_test_group, pages)) / len(pages) < 0.17


def test_seen_texts() -> None:
    seen = SeenTexts(["The quick  Brown fox, jumps.", "Ja", "請輸入有效的電子郵件地址。", "पासवर्ड बदलें अभी यहाँ"])
    seen.add(["over the lazy dog"])
    assert seen.has("the QUICK brown fox, jumps.")
    assert seen.has("brown fox jumps")
    assert seen.has("the lazy dog.")
    assert not seen.has("jumps over the")
    assert not seen.has("rown fox jumps")
    assert not seen.has("brown fox")
    assert not seen.has("fox brown jumps")
    assert seen.has("ja", "de")
    assert seen.equals("JA") and not seen.equals("brown fox jumps")
    assert seen.has("有效的電子郵件地址", "zh")
    assert not seen.has("電子郵件地址", "zh")
    assert seen.has("बदलें अभी यहाँ", "hi")
    assert not seen.has("बदल अभी यहाँ", "hi")
    copied = "for all of us the quick brown fox jumped over it and away at last"
    seen.add([copied])
    assert seen.mostly_seen(copied.replace("last", "least"))
    assert not seen.mostly_seen(copied.replace("brown", "red"))
    assert not seen.mostly_seen("the quick brown fox")


def section(*texts: str) -> Section:
    return Section("heading", tuple(Paragraph(text, False) for text in texts))


def test_passages_are_different_cut_prose() -> None:
    long, other = "long " * 80, "one two three four five six seven eight nine ten eleven twelve"
    code = Section("code", (Paragraph(other + " thirteen", True),))
    found = passages([("a/b/page", [section(long, "too short"), section(other)]), ("c/page", [section(other), code])])
    assert found == [Passage(" ".join(["long"] * MAX_WORDS), "a/b/page", 0), Passage(other, "a/b/page", 1)]
    assert (found[0].folder, found[0].top_folder) == ("a/b", "a")


def test_grades_follow_the_tree() -> None:
    places = [(f"{top}/{part}/{page}", number) for top in "ab" for part in "cd" for page in "ef" for number in range(3)]
    candidates = [Passage(f"{page} {number} {text}", page, number) for page, number in places for text in range(3)]
    where = {passage.text: passage for passage in candidates}
    pairs = graded_pairs(candidates, 200, seed=3)
    assert len(pairs) == 200
    for pair in pairs:
        a, b = where[pair.a], where[pair.b]
        assert a.text != b.text
        same = [
            a.top_folder == b.top_folder,
            a.folder == b.folder,
            a.page == b.page,
            (a.page, a.section) == (b.page, b.section),
        ]
        assert (
            same
            == {
                1.0: [True] * 4,
                0.67: [True, True, True, False],
                0.33: [True, True, False, False],
                0.0: [False] * 4,
            }[pair.score]
        )
    assert graded_pairs(candidates, 200, seed=3) == pairs
    assert graded_pairs(candidates, 200, seed=4) != pairs
    assert graded_pairs(candidates[:1], 200, seed=3) == []
