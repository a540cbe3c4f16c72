"""Write pez/words.txt.xz, a list of words and their frequencies, from wordfreq (pip install wordfreq).

python -m jobs.list_words
"""

import collections
import lzma
import math

from pez.words import _LIST, is_letters

ENGLISH, OTHERS = 26, 40
"""minimum frequency in tenths of the Zipf scale; 30 = once per million words"""
HEADER = "# Words by use, in tenths of the Zipf scale. From wordfreq 3.1 by Robyn Speer, CC BY-SA 4.0.\n"


def main() -> None:
    import wordfreq

    english = _words(wordfreq.get_frequency_dict("en", "large"), ENGLISH)
    others: dict[str, int] = {}
    for language in sorted(set(wordfreq.available_languages("small")) - {"en"}):
        for word, tenths in _words(wordfreq.get_frequency_dict(language, "small"), OTHERS).items():
            others[word] = max(tenths, others.get(word, 0))
    text = f"{HEADER}english\n{_lines(english)}others\n{_lines(others)}"
    _LIST.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(english)} English words and {len(others)} of other languages in {_LIST}")


def _words(use: dict[str, float], least: int) -> dict[str, int]:
    tenths = {word: round((math.log10(share) + 9) * 10) for word, share in use.items()}
    return {word: value for word, value in tenths.items() if value >= least and is_letters(word)}


def _lines(words: dict[str, int]) -> str:
    by_use = collections.defaultdict(list)
    for word, tenths in words.items():
        by_use[tenths].append(word)
    return "".join(f"{tenths} {' '.join(sorted(by_use[tenths]))}\n" for tenths in sorted(by_use, reverse=True))


if __name__ == "__main__":
    main()
