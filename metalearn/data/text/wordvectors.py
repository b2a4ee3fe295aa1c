"""Vectors of texts as means of the token vectors that the package wordllama ships.

The package (version 0.4, MIT, extra `text`) has 32,000 vectors of length 256 and the
tokenizer that belongs to them. Both files are read here, without importing the package: its
own loader looks in another folder than the one that it is installed with, and would then
download. `pip install --no-deps 'wordllama==0.4.*'` is enough.

Of the tokenizer: a text becomes "▁" before each word, in place of spaces. Pieces are joined
in the order of the stored merges (byte-pair encoding). A character that is no token becomes
its bytes. Unlike there, "<s>" in a text is text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.core import optional
from metalearn.core.cost import in_bytes
from metalearn.data.images.splits import parsed
from metalearn.data.text.plain import check_texts

WEIGHTS = "weights/l2_supercat_256.safetensors"
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
_TENSOR = "embedding.weight"
_DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_MOST_BYTES = 2**30  # of a file; the vectors take 16 MiB
_MOST_HEADER = 2**20  # bytes; the header of one tensor takes a hundred
_REMEDY = "Install the package again: pip install --force-reinstall 'wordllama==0.4.*'"
_SPACE = "▁"
# No token has a space behind a letter, so pieces of such words are never joined.
_PIECE = re.compile(f"{_SPACE}*[^{_SPACE}]+|{_SPACE}+")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WordVectors:
    """Function `texts -> float32 [I, D]`: unit vectors, centred on the training texts.

    Attributes:
      vectors: Vector of each token, float32 `[V, D]`.
      tokens: Number of each token.
      ranks: Rank of each pair of pieces that is joined.
      mean: Mean unit vector of the training texts, float32 `[D]`.
      sha256: Digests of the two files.
    """

    vectors: np.ndarray
    tokens: Mapping[str, int]
    ranks: Mapping[tuple[str, str], int]
    mean: np.ndarray
    sha256: tuple[str, str]

    @property
    def num_features(self) -> int:
        """Length D of a vector."""
        return self.vectors.shape[1]

    @property
    def about(self) -> dict[str, Any]:
        """Name and digests of the files, as JSON values."""
        return {"name": "wordllama", "version": 1, "sha256": list(self.sha256)}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return _unit(self.pooled(texts) - self.mean)

    def pooled(self, texts: Sequence[str]) -> np.ndarray:
        """Mean of the token vectors of each text, with length 1."""
        ids = self.token_ids(texts)
        return _unit(np.stack([self.vectors[row].mean(0) for row in ids]))

    def token_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Numbers of the tokens of each text."""
        known: dict[str, list[int]] = {}
        found = []
        for text in check_texts(texts):
            row: list[int] = []
            for piece in _PIECE.findall(_SPACE + text.replace(" ", _SPACE)):
                if piece not in known:
                    known[piece] = list(self._ids(piece))
                row += known[piece]
            found.append(np.asarray(row, np.int32))
        return found

    def share_of_bytes(self, texts: Sequence[str]) -> float:
        """Share of tokens that are bytes of characters without a vector of their own."""
        ids = np.concatenate(self.token_ids(texts))
        single = [number for name, number in self.tokens.items() if _is_byte(name)]
        return float(np.isin(ids, single).mean())

    def _ids(self, piece: str) -> Iterator[int]:
        for part in _joined(list(piece), self.ranks):
            if part in self.tokens:
                yield self.tokens[part]
            else:  # halves of pairs of surrogates have bytes too
                for byte in part.encode("utf-8", "surrogatepass"):
                    yield self.tokens[f"<0x{byte:02X}>"]


def word_vectors(
    texts: Sequence[str], *, dim: int = 256, folder: Path | str | None = None
) -> WordVectors:
    """Fits the centre of pooled token vectors to the texts of meta-training.

    Args:
      texts: The training texts; their classes do not matter.
      dim: Length of the vectors, up to 256. The first numbers of a vector serve alone, as
        they were trained to.
      folder: Folder of the package wordllama; that of the installation if None.

    Returns:
      A function `texts -> float32 [I, dim]`.

    Raises:
      MissingPackage: wordllama is not installed; names the extra.
      FileNotFoundError: the package has no such files.
      TypeError: something else than texts.
      ValueError: a file is damaged, a text is empty, or `dim` is out of range.
    """
    folder = _installed() if folder is None else Path(folder)
    vectors, seal = read_vectors(folder / WEIGHTS)
    if type(dim) is not int or not 2 <= dim <= vectors.shape[1]:
        raise ValueError(
            f"dim is {dim!r}; expected a length of vectors from 2 to {vectors.shape[1]}."
        )
    tokens, ranks, other = read_tokenizer(folder / TOKENIZER, len(vectors))
    found = WordVectors(
        vectors=np.ascontiguousarray(vectors[:, :dim]),
        tokens=tokens,
        ranks=ranks,
        mean=np.zeros((dim,), np.float32),
        sha256=(seal, other),
    )
    share = found.share_of_bytes(texts)
    if share > 0.1:
        warnings.warn(
            f"{share:.0%} of the tokens are single bytes, which say little: the word "
            "vectors do not know the language or the script of these texts. Hashed "
            "features serve any language.",
            stacklevel=2,
        )
    return dataclasses.replace(found, mean=found.pooled(texts).mean(0))


def read_vectors(path: Path) -> tuple[np.ndarray, str]:
    """The vectors of a safetensors file, float32 `[V, D]`, and the digest of the file.

    The format: eight bytes with the length of a header, the header (JSON with dtype, shape
    and place of each tensor), and the numbers.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: the file is damaged or too large, or has another tensor.
    """
    data, seal = _read(path)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _MOST_HEADER):
        raise ValueError(f"{path} is no safetensors file of {len(data)} bytes. {_REMEDY}")
    body = data[8 + length :]
    try:
        told = json.loads(data[8 : 8 + length])[_TENSOR]
        dtype, (rows, dim) = _DTYPES[told["dtype"]], told["shape"]
        start, end = told["data_offsets"]
        fits = all(type(n) is int and n >= 0 for n in (rows, dim, start, end))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"the header of {path} cannot be used ({type(error).__name__}: {error}); "
            f"expected the tensor {_TENSOR!r} [V, D] of {' or '.join(_DTYPES)}. {_REMEDY}"
        ) from error
    if not fits or end - start != rows * dim * dtype.itemsize or end > len(body):
        raise ValueError(
            f"{path} says that {_TENSOR} [{rows}, {dim}] is in bytes {start} to {end} of "
            f"{len(body)}; expected as many as it takes. {_REMEDY}"
        )
    found = np.frombuffer(body[start:end], dtype).reshape(rows, dim).astype(np.float32)
    if not found.size or not np.isfinite(found).all():
        raise ValueError(f"{path} holds no vectors, or some are not finite. {_REMEDY}")
    return found, seal


def read_tokenizer(
    path: Path, num_vectors: int
) -> tuple[dict[str, int], dict[tuple[str, str], int], str]:
    """Tokens, ranks of the pairs that are joined, and the digest of a tokenizer file.

    Args:
      path: JSON file of the library tokenizers, with byte-pair encoding.
      num_vectors: Number of vectors; tokens have numbers below it.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: the file is damaged or too large, or is of another kind of tokenizer.
    """
    data, seal = _read(path)
    content = parsed(path, data, f"the tokenizer of wordllama 0.4. {_REMEDY}")
    try:
        model = content["model"]
        tokens = dict(model["vocab"])
        pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
        kind = (model["type"], bool(model["byte_fallback"]), content["pre_tokenizer"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be used ({type(error).__name__}: {error}); expected a "
            f"tokenizer with vocabulary and merges. {_REMEDY}"
        ) from error
    wrong = [
        name
        for name, number in tokens.items()
        if type(number) is not int or not 0 <= number < num_vectors
    ]
    wrong += [f"<0x{b:02X}>" for b in range(256) if f"<0x{b:02X}>" not in tokens]
    wrong += [t for t in tokens if _SPACE in t.lstrip(_SPACE)]
    wrong += [str(p) for p in pairs if len(p) != 2 or "".join(map(str, p)) not in tokens]
    if wrong or kind != ("BPE", True, None):
        raise ValueError(
            f"{path} is a tokenizer of another kind {kind}, or has tokens without a vector "
            f"or pairs without a token, such as {wrong[:3]}; expected that of wordllama "
            f"0.4 with {num_vectors} vectors. {_REMEDY}"
        )
    return tokens, {pair: rank for rank, pair in enumerate(pairs)}, seal


def _joined(parts: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Parts of a piece, joined pair by pair in the order of the ranks."""
    last = len(ranks)
    while len(parts) > 1:
        best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, last))
        if best not in ranks:
            return parts
        # All such pairs at once, from the left: no pair of what they make has a lower rank.
        joined, place = [], 0
        while place < len(parts):
            pair = tuple(parts[place : place + 2])
            joined.append("".join(pair) if pair == best else parts[place])
            place += 2 if pair == best else 1
        parts = joined
    return parts


def _installed() -> Path:
    """Folder of the installed package, which is not imported."""
    optional.check("for word vectors", "wordllama")
    spec = importlib.util.find_spec("wordllama")
    places = list((spec and spec.submodule_search_locations) or [])
    return Path(places[0] if places else "wordllama")


def _read(path: Path) -> tuple[bytes, str]:
    """The bytes of a file, and the digest of these very bytes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected the files of wordllama 0.4. {_REMEDY}"
        )
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(
            f"{path} takes {in_bytes(size)}; expected at most {in_bytes(_MOST_BYTES)}, and "
            f"the files of wordllama 0.4. {_REMEDY}"
        )
    data = path.read_bytes()
    return data, hashlib.sha256(data).hexdigest()


def _is_byte(token: str) -> bool:
    return re.fullmatch("<0x[0-9A-F]{2}>", token) is not None


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)
