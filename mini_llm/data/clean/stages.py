"""The stages of cleaning, each a pipeline of datatrove: filters, exact duplicates, near duplicates, what was in a test.

Exact duplicates first: a hash of the text finds most of them for almost nothing. Finding duplicates needs all
signatures at once, so it parts the work into stages; within one, tasks are independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm.data.clean.config import CleanConfig


@dataclass(frozen=True)
class Stage:
    """A pipeline, and how many tasks share it."""

    name: str
    tasks: int
    steps: list[Any]


def stages(
    config: CleanConfig, groups: list[list[str]], text_column: str, work: Path, grams: Path | None
) -> list[Stage]:
    """Return all stages. They write to `work`; the last one's documents are in `work/kept`.

    `grams` is a folder of hashes of word rows that no text may share.
    """
    from datatrove.pipeline.writers import JsonlWriter

    from mini_llm.data.clean.steps import ReadGroup, ReadTask

    n, result = len(groups), []
    steps: list[Any] = [ReadGroup(groups, text_column), *_filters(config, work)]
    here = "filtered"

    def write(folder: str) -> Any:
        return JsonlWriter(str(work / folder), output_filename="${rank}.jsonl.gz")

    if config.exact_duplicates:
        more, find, drop = _exact(work)
        result.append(Stage("filter", n, [*steps, write(here), more]))
        result.append(Stage("find exact duplicates", 1, [find]))
        steps, here = [ReadTask(str(work / here)), drop], "distinct"
    if config.minhash is not None:
        more, buckets, cluster, drop = _minhash(config, work)
        result.append(Stage("sign" if config.exact_duplicates else "filter", n, [*steps, write(here), more]))
        result.append(Stage("find near duplicates", config.minhash.buckets, [buckets]))
        result.append(Stage("group near duplicates", 1, [cluster]))
        steps = [ReadTask(str(work / here)), drop]
    if grams is not None:
        steps.append(_decontaminate(config, work, grams))
    result.append(Stage("write", n, [*steps, write("kept")]))
    return result


def dropped(work: Path, why: str) -> Any:
    """Return the writer of what a step leaves out."""
    from datatrove.pipeline.writers import JsonlWriter

    return JsonlWriter(str(work / "dropped" / why), output_filename="${rank}.jsonl.gz")


def _filters(config: CleanConfig, work: Path) -> list[Any]:
    from datatrove.pipeline import filters, formatters

    from mini_llm.data.clean.steps import RightLanguage, Words

    steps: list[Any] = []
    if config.fix_unicode:
        steps.append(formatters.FTFYFormatter())
    if config.pii is not None:
        steps.append(formatters.PIIFormatter(remove_emails=config.pii.emails, remove_ips=config.pii.ips))
    if config.language is not None:
        steps.append(RightLanguage(config.language, dropped(work, "language")))
    if (repetition := config.gopher_repetition) is not None:
        settings = repetition.model_dump()
        for key in ("top_n_grams", "dup_n_grams"):
            settings[key] = tuple(settings[key].items())
        writer = dropped(work, "gopher_repetition")
        steps.append(filters.GopherRepetitionFilter(**settings, exclusion_writer=writer, language=Words()))
    if config.gopher_quality is not None:
        writer = dropped(work, "gopher_quality")
        settings = {
            **config.gopher_quality.model_dump(),
            "min_stop_words": None,
        }  # the language's section asks for them
        steps.append(filters.GopherQualityFilter(**settings, exclusion_writer=writer, language=Words()))
    if config.c4 is not None:
        writer = dropped(work, "c4")
        steps.append(filters.C4QualityFilter(**config.c4.model_dump(), exclusion_writer=writer, language=Words()))
    if config.fineweb is not None:
        writer = dropped(work, "fineweb")
        steps.append(
            filters.FineWebQualityFilter(**config.fineweb.model_dump(), exclusion_writer=writer, language=Words())
        )
    return steps


def _hashes() -> Any:
    """Return which hash: datatrove's other one refuses texts since xxhash 4."""
    from datatrove.utils.hashing import HashConfig

    return HashConfig(precision=64, hash_fc="sha1")


def _exact(work: Path) -> tuple[Any, Any, Any]:
    from datatrove.pipeline.dedup import ExactDedupConfig, ExactDedupFilter, ExactDedupSignature, ExactFindDedups

    from mini_llm.data.clean.steps import text_of

    config = ExactDedupConfig(content_getter=text_of, hash_config=_hashes())
    signatures, found = str(work / "exact-signatures"), str(work / "exact-duplicates")
    return (
        ExactDedupSignature(signatures, config),
        ExactFindDedups(signatures, found, config, lines_to_buffer=1000),
        ExactDedupFilter(found, config, dropped(work, "exact_duplicates")),
    )


def _minhash(config: CleanConfig, work: Path) -> tuple[Any, Any, Any, Any]:
    from datatrove.pipeline import dedup

    from mini_llm.data.clean.steps import Words

    assert config.minhash is not None
    settings = dedup.MinhashConfig(
        n_grams=config.minhash.n_grams,
        num_buckets=config.minhash.buckets,
        hashes_per_bucket=config.minhash.hashes,
        seed=config.minhash.seed,
        hash_config=_hashes(),
    )
    signatures, pairs, groups = (str(work / f"minhash-{name}") for name in ("signatures", "pairs", "groups"))
    return (
        dedup.MinhashDedupSignature(signatures, settings, language=Words()),
        # All of a bucket at once: five lines at a time are slow where files are far away.
        dedup.MinhashDedupBuckets(signatures, pairs, config=settings, lines_to_buffer=1000),
        dedup.MinhashDedupCluster(pairs, groups, settings),
        dedup.MinhashDedupFilter(groups, dropped(work, "near_duplicates")),
    )


def _decontaminate(config: CleanConfig, work: Path, grams: Path) -> Any:
    from datatrove.pipeline.decont import NGramsDecontConfig, NGramsDecontFilter

    from mini_llm.data.clean.steps import Words

    settings = NGramsDecontConfig(n_grams=config.decontaminate_n_grams, hash_config=_hashes())
    return NGramsDecontFilter(str(grams), settings, dropped(work, "contaminated"), language=Words())


def write_grams(texts: list[str], config: CleanConfig, folder: Path) -> int:
    """Write the hashes of all rows of words of some texts, as the filter reads them; return how many there are."""
    import numpy as np
    from datatrove.utils.hashing import create_hash_func
    from datatrove.utils.text import TextNormConfig, ngrams, simplify_text

    from mini_llm.data.clean.steps import Words

    words, norm, settings = Words(), TextNormConfig(), _hashes()
    of = create_hash_func(settings)
    rows = {
        of(" ".join(row))
        for text in texts
        for row in ngrams(words.word_tokenize(simplify_text(text, norm)), config.decontaminate_n_grams)
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.array(sorted(rows), dtype=settings.np_descr).tofile(folder / "items.index.hashes")
    return len(rows)
