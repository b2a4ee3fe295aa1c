"""Sets of short texts, and vectors of texts that need no download."""

from metalearn.data.text.hashing import HashedTexts, hashed_texts
from metalearn.data.text.sets import SETS, TextClasses, TextSet, labelled_texts, load_texts
from metalearn.data.text.wordvectors import WordVectors, word_vectors

__all__ = [
    "SETS",
    "HashedTexts",
    "TextClasses",
    "TextSet",
    "WordVectors",
    "hashed_texts",
    "labelled_texts",
    "load_texts",
    "word_vectors",
]
