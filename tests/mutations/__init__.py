"""Wrong implementations of the learners, each of which a quick test must refuse."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One change of one file of the package.

    Attributes:
      learner: Name of the learner's constructor in the registry.
      file: Path relative to `metalearn/`.
      old: Text that occurs exactly once in the file.
      new: Text that takes its place.
      test: Pytest node id, relative to `tests/`, of a quick test that must fail.
    """

    learner: str
    file: str
    old: str
    new: str
    test: str
