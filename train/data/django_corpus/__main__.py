"""Build the corpus if necessary and print its row counts: `python -m train.data.django_corpus`."""

import json
from collections import Counter

from train.data.django_corpus.cache import SPLITS, corpus_file


def main() -> None:
    """Print the number of rows per part and split, and per language of the cross-lingual part."""
    languages: dict[str, Counter[str]] = {}
    for part, splits in SPLITS.items():
        for split in splits:
            with corpus_file(part, split).open(encoding="utf-8") as file:
                records = [json.loads(line) for line in file]
            print(f"{part:14}{split:7}{len(records):8,}")
            if part == "crosslingual":
                languages[split] = Counter(record["language"] for record in records)
    print("\ncrosslingual     train    test")
    for language, count in sorted(languages["train"].items(), key=lambda item: (-item[1], item[0])):
        print(f"{language:14}{count:8,}{languages['test'][language]:8,}")


if __name__ == "__main__":
    main()
