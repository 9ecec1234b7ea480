"""Read lists that users type, or that ``str()`` writes."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
import warnings
from typing import Any

from .host_state import ignore_warnings

_SUSPICIOUS = re.compile(r"['\"#_]|0[xXoObB]")
_UNUSUAL_NUMBER = re.compile(r"_|^0[xXoObB]")
_NUMPY_NUMBER = re.compile(r"\bnp\.(?:float|u?int)\d+\(([^()]*)\)")


def read_literal(text: str) -> Any:
    """Read a JSON value, or a Python literal as ``str()`` writes it.

    Numbers that numpy computed (``np.float64(1.5)``) are read as plain numbers. Nothing is evaluated.

    Args:
        text: for example ``[[1, 2], [3, 4]]``, ``((1, 2),)``, ``['shoe', "person"]`` or ``1``.

    Returns:
        Lists, tuples, strings, numbers, booleans and None, nested as written.

    Raises:
        ValueError: the text is neither.
    """
    for candidate in (text, _NUMPY_NUMBER.sub(r"\1", text)):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            pass
        try:
            return _read_python(candidate.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
            pass
    raise ValueError("not a JSON value or a Python literal")


def _read_python(text: str) -> Any:
    with ignore_warnings():
        warnings.simplefilter("error")  # Python does not write what it warns about
        node = ast.parse(text, mode="eval").body
        value = ast.literal_eval(node)
    if isinstance(node, ast.Tuple) and node.elts and _start(node.elts[0]) == _start(node):
        raise ValueError("a tuple without parentheses")
    if _SUSPICIOUS.search(text):
        _refuse_what_str_never_writes(text)
    return value


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _refuse_what_str_never_writes(text: str) -> None:
    """Refuse comments, numbers such as ``0x10`` and ``1_000``, and strings side by side.

    Python joins such strings, but more likely a comma is missing.
    """
    kinds = (tokenize.STRING, tokenize.NUMBER, tokenize.OP, tokenize.COMMENT)
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type in kinds]
    for token in tokens:
        if token.type == tokenize.COMMENT or (token.type == tokenize.NUMBER and _UNUSUAL_NUMBER.search(token.string)):
            raise ValueError(f"unexpected {token.string}")
    if any(a.type == b.type == tokenize.STRING for a, b in itertools.pairwise(tokens)):
        raise ValueError("strings without a comma between them")
