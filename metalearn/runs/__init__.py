"""Runs: each has a folder, and functions to train, evaluate, predict, report and draw."""

from metalearn.runs.folder import (
    Run,
    check_folder,
    load,
    start,
    stored_data_dir,
    write_json,
)
from metalearn.runs.prediction import ImagePredictions, predict
from metalearn.runs.run import (
    best,
    check_images,
    checkpoint_step,
    draw,
    judge,
    results,
    same_test_data,
    train,
)

__all__ = [
    "ImagePredictions",
    "Run",
    "best",
    "check_folder",
    "check_images",
    "checkpoint_step",
    "draw",
    "judge",
    "load",
    "predict",
    "results",
    "same_test_data",
    "start",
    "stored_data_dir",
    "train",
    "write_json",
]
