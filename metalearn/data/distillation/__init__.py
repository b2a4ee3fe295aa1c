"""Labelled examples of any kind with a part that is kept for a quiz."""

from metalearn.data.distillation.parts import PARTS, QuizSet, check_set, divided
from metalearn.data.distillation.reading import SETS, load_quiz_set

__all__ = ["PARTS", "SETS", "QuizSet", "check_set", "divided", "load_quiz_set"]
