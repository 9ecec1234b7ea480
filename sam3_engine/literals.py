"""Read lists that users type, or that ``str()`` writes."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
from collections.abc import Iterable
from typing import Any

_NUMBERS_ONLY = re.compile(r"[\s\d.,eE+\-()\[\]]*")
_UNUSUAL = {
    tokenize.NUMBER: re.compile(r"_|^0[xXoObB]"),
    tokenize.STRING: re.compile(
        r"""^[a-zA-Z]|(?<!\\)(?:\\\\)*\\(?:[^\\'"abfnrtvxuUN0-7\n\r]|[4-7][0-7][0-7])"""  # a prefix, or a bad escape
    ),
    tokenize.COMMENT: re.compile(""),
}
_SIGNIFICANT = (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP, tokenize.COMMENT)
_NUMPY_SCALAR = re.compile(
    r"""\bnp\.(?:(?:float|u?int)\d+\((?P<number>[^()]*)\)|(?P<boolean>True|False)_"""
    r"""|str_\((?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\))"""
)


class RepeatedKeyError(ValueError):
    """A dictionary that has a key twice; Python and JSON would silently keep the last value.

    Attributes:
        key: the key.
    """

    def __init__(self, key: object) -> None:
        super().__init__(f"{key!r} twice")
        self.key = key


def read_literal(text: str) -> Any:
    """Read a JSON value, or a Python literal as ``str()`` writes it.

    What ``str()`` writes for a list of NumPy's numbers, booleans and strings (``[np.float64(1.5)]``) is read as plain
    values. Nothing is evaluated.

    Args:
        text: for example ``[[1, 2], [3, 4]]``, ``((1, 2),)``, ``['shoe', "person"]``, ``{"shoe": 0.3}`` or ``1``.

    Returns:
        Lists, tuples, dictionaries, strings, numbers, booleans and None, nested as written.

    Raises:
        ValueError: the text is neither; a :class:`RepeatedKeyError` if a key is repeated.
    """
    for candidate in (text, _NUMPY_SCALAR.sub(_plain_scalar, text)):
        try:
            return json.loads(candidate, object_pairs_hook=_dictionary)
        except RepeatedKeyError:
            raise
        except (ValueError, RecursionError):
            pass
        try:
            return _read_python(candidate.strip())
        except RepeatedKeyError:
            raise
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
            pass
    raise ValueError("not a JSON value or a Python literal")


def _plain_scalar(found: re.Match[str]) -> str:
    return found["number"] or found["boolean"] or found["string"] or ""


def _dictionary(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    dictionary: dict[Any, Any] = {}
    for key, value in pairs:
        if key in dictionary:
            raise RepeatedKeyError(key)
        dictionary[key] = value
    return dictionary


def _read_python(text: str) -> Any:
    if not _NUMBERS_ONLY.fullmatch(text):
        _refuse_what_str_never_writes(text)
    node = ast.parse(text, mode="eval").body
    if isinstance(node, ast.Tuple) and node.elts and _start(node.elts[0]) == _start(node):
        raise ValueError("a tuple without parentheses")
    value = ast.literal_eval(node)
    for part in ast.walk(node):
        if isinstance(part, ast.Dict):
            _dictionary((ast.literal_eval(key), None) for key in part.keys if key)
    return value


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _refuse_what_str_never_writes(text: str) -> None:
    """Refuse comments, numbers such as ``0x10`` and ``1_000``, and strings side by side.

    Python joins such strings, but more likely a comma is missing. Also refuse what the parser would warn about: to turn
    its warnings off would affect other threads.
    """
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type in _SIGNIFICANT]
    for token in tokens:
        if token.type in _UNUSUAL and _UNUSUAL[token.type].search(token.string):
            raise ValueError(f"unexpected {token.string}")
    for token, after in itertools.pairwise(tokens):
        if token.type == after.type == tokenize.STRING:
            raise ValueError("strings without a comma between them")
        if token.type == tokenize.NUMBER and after.start == token.end and after.string.isalpha():
            raise ValueError(f"unexpected {after.string} after a number")
