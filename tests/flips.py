"""One flipped bit, and what else happens to files, for every kind of stored file."""

import contextlib
import random

FLIPS = 100


def flipped(files, seed, num=FLIPS):
    """Flips one bit at `num` random places over all files, and undoes it each time.

    Every file has its turn, however small; yields the file with the bit.
    """
    files, rng = sorted(f for f in files if f.stat().st_size), random.Random(seed)
    for i in range(num):
        file = files[i % len(files)]
        content = file.read_bytes()
        place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        changed = bytearray(content)
        changed[place] ^= bit
        file.write_bytes(changed)
        yield file
        file.write_bytes(content)


def cut(files):
    """Each file in turn cut in half, emptied and gone; yields the file and what it is."""
    for file in sorted(files):
        content = file.read_bytes()
        for what, left in (("half", content[: len(content) // 2]), ("empty", b"")):
            file.write_bytes(left)
            yield file, what
        file.unlink()
        yield file, "gone"
        file.write_bytes(content)


@contextlib.contextmanager
def largest_file(size):
    """No file may grow beyond `size` bytes: a full disk that needs no disk of its own."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
