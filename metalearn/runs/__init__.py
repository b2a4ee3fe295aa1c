"""Runs: each has a folder, and functions to train, evaluate, predict, report and draw."""

from metalearn.runs.folder import (
    Run,
    check_folder,
    load,
    read_results,
    start,
    stored_data_dir,
    write_json,
)
from metalearn.runs.prediction import (
    ImagePredictions,
    TextPredictions,
    predict,
    predict_texts,
)
from metalearn.runs.run import (
    best,
    check_images,
    checkpoint_step,
    draw,
    judge,
    judged_tasks,
    results,
    same_test_data,
    train,
    trained_on,
)
from metalearn.training.checkpoint import one_writer

__all__ = [
    "ImagePredictions",
    "Run",
    "TextPredictions",
    "best",
    "check_folder",
    "check_images",
    "checkpoint_step",
    "draw",
    "judge",
    "judged_tasks",
    "load",
    "one_writer",
    "read_results",
    "predict",
    "predict_texts",
    "results",
    "same_test_data",
    "start",
    "stored_data_dir",
    "train",
    "trained_on",
    "write_json",
]
