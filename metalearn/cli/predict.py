"""The command `metalearn predict`: one's own images, by the examples in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from metalearn import runs
from metalearn.apps.images import pictures
from metalearn.cli import options as cli_options
from metalearn.cli.console import note, print_json, quiet_stdout, say
from metalearn.core import files
from metalearn.runs import environment


def predict(argv: list[str]) -> int:
    """Classifies images by the examples of a folder; see `metalearn predict --help`."""
    options = cli_options.parse(cli_options.PredictOptions, argv, "predict")
    for name in ("support", "images"):
        if not getattr(options, name):
            raise ValueError(
                f"predict needs --{name}. Write: metalearn predict RUN --support FOLDER "
                "--images FILES, where FOLDER holds class/image.png."
            )
    if options.out is not None:
        pictures.check_path(options.out)
        _check_not_read(Path(options.out), [*options.images, options.support])
    with quiet_stdout(options.json):
        found = _predict(options)
    if options.json:
        print_json(found)
    else:
        say(_in_words(found))
    return 0


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
    counts = np.bincount(images.labels)
    return {
        "run": str(run.folder),
        "recipe": run.name,
        "learner": result.learner,
        "image_shape": list(images.queries.shape[1:]),
        "inverted": images.inverted,
        "transductive": result.transductive,
        "support": {n: int(c) for n, c in zip(images.class_names, counts, strict=True)},
        "images": result.rows(),
        "picture": options.out,
    }


def _in_words(found: dict[str, Any]) -> str:
    height, width, channels = found["image_shape"]
    kind = "grey" if channels == 1 else "colour"
    support = ", ".join(f"{name} {number}" for name, number in found["support"].items())
    lines = [
        f"{found['run']}: {found['learner']} on {width}x{height} {kind} images; support: "
        f"{support}\n"
    ]
    rows = found["images"]
    width = max(len(row["file"]) for row in rows)
    wide = max(len(row["class"]) for row in rows)
    for row in rows:
        lines.append(
            f"  {row['file']:<{width}}  {row['class']:<{wide}}  {row['probability']:6.1%}"
        )
    if found["inverted"]:
        lines.append(
            f"\nLight and dark of {found['inverted']} images were swapped, for the run was "
            "trained on light strokes on a dark ground (--invert no leaves them)."
        )
    if found["transductive"]:
        note(
            "Note: the prediction of an image depended on the others that were given with "
            "it, as the run uses statistics of the batch."
        )
    if found["picture"]:
        lines.append(f"\n  {found['picture']}")
    return "\n".join(lines)
