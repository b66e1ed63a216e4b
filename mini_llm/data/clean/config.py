"""Every threshold of cleaning, under the name of the paper that found it; a section that is null is left out."""

from __future__ import annotations

from pydantic import Field

from mini_llm.config import Config


class Pii(Config):
    """What names a person is replaced: addresses of mail and of machines (FineWeb, arXiv 2406.17557)."""

    emails: bool = True
    ips: bool = True


class Language(Config):
    """The language of a text, by its frequent words; or by a fastText model, where a file of one is given."""

    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    min_stop_words: int = Field(2, ge=0, le=100)  # different ones in a text
    model: str = ""  # lid.176.bin
    languages: tuple[str, ...] = ("en",)  # that stay, as the model calls them
    min_score: float = Field(0.65, ge=0, le=1)


class GopherRepetition(Config):
    """Text that repeats itself: table A1 of Gopher (arXiv 2112.11446)."""

    dup_line_frac: float = Field(0.3, ge=0, le=1)
    dup_para_frac: float = Field(0.3, ge=0, le=1)
    dup_line_char_frac: float = Field(0.2, ge=0, le=1)
    dup_para_char_frac: float = Field(0.2, ge=0, le=1)
    top_n_grams: dict[int, float] = Field({2: 0.2, 3: 0.18, 4: 0.16})
    dup_n_grams: dict[int, float] = Field({5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})


class GopherQuality(Config):
    """Text that is not prose: section A1.1 of Gopher (arXiv 2112.11446)."""

    min_doc_words: int = Field(50, ge=1)
    max_doc_words: int = Field(100_000, ge=1)
    min_avg_word_length: int = Field(3, ge=0)
    max_avg_word_length: int = Field(10, ge=1)
    max_symbol_word_ratio: float = Field(0.1, ge=0)
    max_bullet_lines_ratio: float = Field(0.9, ge=0, le=1)
    max_ellipsis_lines_ratio: float = Field(0.3, ge=0, le=1)
    max_non_alpha_words_ratio: float = Field(0.8, ge=0, le=1)  # at least so many words have a letter


class C4(Config):
    """Lines and pages that are no sentences: C4 (arXiv 1910.10683), as FineWeb uses it: lines may end as they like."""

    filter_no_terminal_punct: bool = False
    min_num_sentences: int = Field(5, ge=-1)
    min_words_per_line: int = Field(3, ge=-1)
    max_word_length: int = Field(1000, ge=-1)
    remove_citations: bool = True
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = False
    filter_policy: bool = True


class FineWeb(Config):
    """Lists and menus: the three rules of FineWeb (arXiv 2406.17557, section 3.6)."""

    line_punct_thr: float = Field(0.12, ge=0, le=1)
    short_line_thr: float = Field(0.67, ge=0, le=1)
    short_line_length: int = Field(30, ge=1)
    char_duplicates_ratio: float = Field(0.01, ge=0, le=1)
    new_line_ratio: float = Field(0.3, ge=0)


class MinHash(Config):
    """Near duplicates, by n-grams of words in buckets of hashes: FineWeb's 14 of 8 find 0.8 alike 92 times of 100."""

    n_grams: int = Field(5, ge=1, le=50)
    buckets: int = Field(14, ge=1, le=200)
    hashes: int = Field(8, ge=1, le=100)
    seed: int = Field(1, ge=0)


class CleanConfig(Config):
    """What `mini-llm clean SOURCES --config FILE KEY=VALUE ...` reads."""

    fix_unicode: bool = True  # text that was decoded wrongly, by ftfy
    pii: Pii | None = Field(default_factory=lambda: Pii.model_validate({}))
    language: Language | None = Field(default_factory=lambda: Language.model_validate({}))
    gopher_repetition: GopherRepetition | None = Field(default_factory=lambda: GopherRepetition.model_validate({}))
    gopher_quality: GopherQuality | None = Field(default_factory=lambda: GopherQuality.model_validate({}))
    c4: C4 | None = Field(default_factory=lambda: C4.model_validate({}))
    fineweb: FineWeb | None = Field(default_factory=lambda: FineWeb.model_validate({}))
    exact_duplicates: bool = True
    minhash: MinHash | None = Field(default_factory=lambda: MinHash.model_validate({}))
    decontaminate_n_grams: int = Field(13, ge=1, le=100)  # words in a row that a text may not share with an item
