"""Checks: is this answer right? Pure functions of the answer and of a right one, for rewards, pairs and evaluation.

The reference is an answer as it should be. A check of form asks for what the reference shows: as many items, as few
words, the same keys. All are strict: 1 is right, 0 is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from mini_llm.errors import UserError, did_you_mean

WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")  # Mini-LLM and don't are one word each
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")
BULLET = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+(.*\S)")


def exact(answer: str, reference: str) -> bool:
    """The same text; white space around it does not count."""
    return answer.strip() == reference.strip()


def words(answer: str, reference: str) -> bool:
    """The same words in the same order, whatever case and signs they are written with."""
    return words_of(answer) == words_of(reference)


def letters(answer: str, reference: str) -> bool:
    """The same letters after the last colon, whatever stands between them: c a t and c-a-t are the same."""
    return _letters(answer) == _letters(reference)


def number(answer: str, reference: str) -> bool:
    """The last number is the same."""
    return _last_number(answer) is not None and _last_number(answer) == _last_number(reference)


def names(answer: str, reference: str) -> bool:
    """It has all names and numbers of the reference: words with a capital that begin no sentence, and "I" is none."""
    wanted = names_of(reference)
    return bool(wanted) and set(wanted) <= set(WORD.findall(answer))


def begins(answer: str, reference: str) -> bool:
    """The first word is the same: Yes or No, for instance."""
    return bool(words_of(answer)) and words_of(answer)[:1] == words_of(reference)[:1]


def ends(answer: str, reference: str) -> bool:
    """The last word is the same, after at least one other."""
    return len(words_of(answer)) > 1 and words_of(answer)[-1:] == words_of(reference)[-1:]


def one_word(answer: str, reference: str) -> bool:
    """One word, whichever."""
    return len(answer.split()) == 1 and len(words_of(answer)) == 1


def n_words(answer: str, reference: str) -> bool:
    """As many words as the reference has."""
    return len(words_of(answer)) == len(words_of(reference))


def at_most(answer: str, reference: str) -> bool:
    """No more words than the reference has, and at least one."""
    return 0 < len(words_of(answer)) <= len(words_of(reference))


def capitals(answer: str, reference: str) -> bool:
    """Nothing but capital letters, and at least one."""
    return answer.isupper()


def small(answer: str, reference: str) -> bool:
    """Nothing but small letters, and at least one."""
    return answer.islower()


def capital_words(answer: str, reference: str) -> bool:
    """The reference's words, all in capitals."""
    return answer.isupper() and words(answer, reference)


def without_e(answer: str, reference: str) -> bool:
    """Words without the letter e."""
    return bool(words_of(answer)) and "e" not in answer.lower()


def quoted(answer: str, reference: str) -> bool:
    """It begins and ends with a double quotation mark, and has something within."""
    text = answer.strip()
    return len(text) > 2 and text[0] == text[-1] == '"' and bool(words_of(text))


def items(answer: str, reference: str) -> bool:
    """A list of as many items as the reference has, one a line with a dash or a number, no two the same."""
    found = items_of(answer)
    lines = [line for line in answer.splitlines() if line.strip()]
    return len(found) == len(lines) == len(items_of(reference)) and len({item.lower() for item in found}) == len(found)


def json_object(answer: str, reference: str) -> bool:
    """A JSON object equal to the reference; the order of keys does not count."""
    found = _object(answer)
    return found is not None and found == _object(reference)


def json_keys(answer: str, reference: str) -> bool:
    """A JSON object with the keys of the reference, whatever their values."""
    found, wanted = _object(answer), _object(reference)
    return found is not None and wanted is not None and found.keys() == wanted.keys()


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return WORD.findall(text.lower())


def names_of(text: str) -> list[str]:
    """Return the numbers and the words with a capital that begin no sentence."""
    found, begins_sentence = [], True
    for place in WORD.finditer(text):
        word = place[0]
        if word[0].isdigit() or (word[0].isupper() and word != "I" and not begins_sentence):
            found.append(word)
        begins_sentence = text[place.end() :].lstrip("\"')]")[:1] in set(".!?\n")
    return found


def items_of(text: str) -> list[str]:
    """Return the items of a list: lines that begin with a dash, a star or a number."""
    return [found[1] for line in text.splitlines() if (found := BULLET.fullmatch(line))]


def _letters(text: str) -> str:
    return "".join(c for c in text.rpartition(":")[2].lower() if c.isalnum())


def _last_number(text: str) -> str | None:
    found = NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _strict(check: Callable[[str, str], bool]) -> Callable[[str, str], float]:
    return lambda answer, reference: float(check(answer, reference))


CHECKS: dict[str, Callable[[str, str], float]] = {
    check.__name__.removesuffix("_object"): _strict(check)
    for check in (
        *(exact, words, letters, number, names, begins, ends, one_word, n_words, at_most),
        *(capitals, small, capital_words, without_e, quoted, items, json_object, json_keys),
    )
}


def check_named(name: str, place: str = "") -> Callable[[str, str], float]:
    """Return a check by its name.

    Raises:
        UserError: there is none of that name; `place` says where it was asked for.
    """
    if name not in CHECKS:
        where = f"{place}: " if place else ""
        raise UserError(f"{where}no check '{name}'{did_you_mean(name, CHECKS)}", f"known: {', '.join(CHECKS)}")
    return CHECKS[name]
