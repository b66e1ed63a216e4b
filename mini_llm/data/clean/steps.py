"""The steps that datatrove does not have: reading what `prepare` reads, words without a download, languages.

Tasks are groups of files, the same for every number of workers, and each stage's task reads what the same task of the
stage before has written: that is how a duplicate's number finds its document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.word_tokenizers import WordTokenizer

from mini_llm.data.clean.report import LEFT_OUT
from mini_llm.data.formats import naming_file, read_texts
from mini_llm.data.reading import Reading
from mini_llm.data.sources import file_pieces
from mini_llm.user_files import open_file

WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
SENTENCE = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])[\"'\u201d\u2019)]*\s+|\n+")


class Words(WordTokenizer):
    """Words and sentences by rule: nothing to download, and 300 times as fast as a grammar.

    Signs are no words, as in Gopher's text. Where they are counted, as datatrove's own splitter does, speeches and
    dialogues have too few words with a letter: 21 % of 200 MB of mixed English prose would go for that alone.
    """

    def __init__(self) -> None:
        super().__init__("rules")

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words."""
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Return the sentences."""
        return [sentence for sentence in SENTENCE.split(text) if sentence and sentence.strip()]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return where each sentence begins and ends."""
        spans, position = [], 0
        for sentence in self.sent_tokenize(text):
            start = text.index(sentence, position)
            position = start + len(sentence)
            spans.append((start, position))
        return spans


class ReadGroup(PipelineStep):
    """Reads the documents of one group of files a task."""

    type, name = "READER", "read"

    def __init__(self, groups: Sequence[Sequence[str]], text_column: str) -> None:
        super().__init__()
        self.groups, self.text_column = groups, text_column

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of group `rank`."""
        for name in self.groups[rank]:
            path, count = Path(name), Reading()
            with open_file(path) as file, naming_file(path):
                parts: list[str] = []
                for piece in file_pieces(read_texts(file, path, self.text_column), count, path):
                    parts.append(piece.text)
                    if piece.last:
                        document = Document(text="".join(parts), id=f"{name}#{count.documents}")
                        self.stat_update("documents")
                        self.update_doc_stats(document)
                        parts = []
                        yield document
            for kind, n in count.left_out.items():
                self.stat_update(f"{LEFT_OUT}{kind}", value=n)


class ReadTask(PipelineStep):
    """Reads what the same task of another stage has written; nothing where it had nothing to write."""

    type, name = "READER", "read again"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of task `rank`."""
        import gzip
        import json

        path = Path(self.folder, f"{rank:05d}.jsonl.gz")
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for line in file:
                    found = json.loads(line)
                    yield Document(text=found["text"], id=found["id"])


class RightLanguage(BaseFilter):
    """Keeps texts of a language, told by its frequent words or by a fastText model."""

    name = "language"

    def __init__(self, settings: Any, exclusion_writer: Any) -> None:
        super().__init__(exclusion_writer)
        self.settings = settings
        self.words = frozenset(settings.stop_words)
        self.model: Any = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Tell whether a text stays, and why not."""
        if not self.settings.model:
            found = self.words.intersection(WORD.findall(doc.text.lower()))
            return True if len(found) >= self.settings.min_stop_words else (False, "few_stop_words")
        if self.model is None:
            import fasttext

            self.model = fasttext.load_model(self.settings.model)
        labels, scores = self.model.predict(doc.text.replace("\n", " "))
        language = labels[0].removeprefix("__label__")
        if language not in self.settings.languages:
            return False, f"is_{language}"
        return True if scores[0] >= self.settings.min_score else (False, "unsure")


def text_of(doc: Document) -> str:
    """Return what makes a document the same as another."""
    return doc.text


text_of.__annotations__["return"] = str  # datatrove compares with the type; the name is all that is here
