"""The command `metalearn predict`: one's own images or texts, by a few examples."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn import runs
from metalearn.apps.images import pictures
from metalearn.apps.text.own import read_lines
from metalearn.cli import options as cli_options
from metalearn.cli.console import note, print_json, quiet_stdout, say
from metalearn.core import files
from metalearn.runs import environment


def predict(argv: list[str]) -> int:
    """Classifies images or texts by a few examples; see `metalearn predict --help`."""
    options = cli_options.parse(cli_options.PredictOptions, argv, "predict")
    of_texts = bool(options.texts) or options.texts_in is not None
    _check(options, of_texts)
    if options.out is not None:
        pictures.check_path(options.out)
        _check_not_read(Path(options.out), [*options.images, options.support])
    with quiet_stdout(options.json):
        found = _predict_texts(options) if of_texts else _predict(options)
    if options.json:
        print_json(found)
    else:
        say(_in_words(found))
    return 0


def _check(options: cli_options.PredictOptions, of_texts: bool) -> None:
    """Raises a `ValueError` if options are missing, or do not go together."""
    if not options.support or not (options.images or of_texts):
        missing = "--images or --texts" if options.support else "--support"
        raise ValueError(
            f"predict needs {missing}. Write: metalearn predict RUN --support FOLDER "
            "--images FILES, where FOLDER holds class/image.png, or metalearn predict RUN "
            "--support FILE.csv --texts TEXT."
        )
    given = {
        "--images": bool(options.images),
        "--out": options.out is not None,
        "--invert": options.invert != "auto",
        **{
            f"--{field.name.replace('_', '-')}": getattr(options, field.name) is not None
            for field in dataclasses.fields(cli_options.LimitOptions)
        },
    }
    for name in (name for name, is_given in given.items() if of_texts and is_given):
        raise ValueError(f"{name} is of images, and texts are given; leave one out.")
    if options.data_dir is not None and not of_texts:
        raise ValueError("--data-dir is read for texts alone; leave it out.")


def _check_not_read(out: Path, read: list[str]) -> None:
    """Raises a `ValueError` if the picture would replace a file that is read."""
    place = Path(os.path.realpath(out))
    for given in (Path(os.path.realpath(path)) for path in read):
        if out.exists() and (place == given or given in place.parents):
            raise ValueError(
                f"out is '{out}', one of the images that are read; expected another file, "
                "since the picture would replace it."
            )


def _predict(options: cli_options.PredictOptions) -> dict[str, Any]:
    run = cli_options.load_run(options.run)
    environment.connect(devices=1)
    environment.enable_compilation_cache()
    with options.around(), cli_options.reading_run(run.folder):
        result = runs.predict(
            run, support=options.support, images=options.images, invert=options.invert
        )
    images = result.images
    if options.out is not None:
        title = f"Predictions of {result.learner} by the examples in {options.support}"
        with files.writing(options.out, kept="Nothing else was to be written."):
            pictures.predictions(options.out, images, result.probabilities, title=title)
    return {
        **_about(run, result, images.class_names, images.labels),
        "image_shape": list(images.queries.shape[1:]),
        "inverted": images.inverted,
        "images": result.rows(),
        "picture": options.out,
    }


def _predict_texts(options: cli_options.PredictOptions) -> dict[str, Any]:
    run = cli_options.load_run(options.run)
    texts = list(options.texts)
    if options.texts_in is not None:
        texts += read_lines(options.texts_in)
    environment.connect(devices=1)
    environment.enable_compilation_cache()
    with cli_options.reading_run(run.folder):
        result = runs.predict_texts(
            run, support=options.support, texts=texts, data_dir=options.data_dir
        )
    about = _about(run, result, result.texts.class_names, result.texts.labels)
    return {**about, "texts": result.rows()}


def _about(
    run: runs.Run,
    result: runs.ImagePredictions | runs.TextPredictions,
    names: Sequence[str],
    labels: np.ndarray,
) -> dict[str, Any]:
    counts = np.bincount(labels)
    return {
        "run": str(run.folder),
        "recipe": run.name,
        "learner": result.learner,
        "transductive": result.transductive,
        "support": {n: int(c) for n, c in zip(names, counts, strict=True)},
    }


def _in_words(found: dict[str, Any]) -> str:
    kind = "text" if "texts" in found else "file"
    rows = found["texts"] if kind == "text" else found["images"]
    what = "texts"
    if kind == "file":
        height, width, channels = found["image_shape"]
        what = f"{width}x{height} {'grey' if channels == 1 else 'colour'} images"
    support = ", ".join(f"{name} {number}" for name, number in found["support"].items())
    lines = [f"{found['run']}: {found['learner']} on {what}; support: {support}\n"]
    shown = [row[kind] if kind == "file" else _short(row[kind]) for row in rows]
    width = max(map(len, shown))
    wide = max(len(row["class"]) for row in rows)
    for row, given in zip(rows, shown, strict=True):
        lines.append(
            f"  {given:<{width}}  {row['class']:<{wide}}  {row['probability']:6.1%}"
        )
    if found.get("inverted"):
        lines.append(
            f"\nLight and dark of {found['inverted']} images were swapped, for the run was "
            "trained on light strokes on a dark ground (--invert no leaves them)."
        )
    if found["transductive"]:
        note(
            "Note: each prediction depended on the other inputs that were given with it, "
            "as the run uses statistics of the batch."
        )
    if found.get("picture"):
        lines.append(f"\n  {found['picture']}")
    return "\n".join(lines)


def _short(text: str) -> str:
    """A text on one line of at most 60 characters, none of which moves the cursor."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= 60 else line[:59] + "…"
