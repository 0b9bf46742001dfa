"""Augmentation written as text, for the command line: ``AddBackgroundNoise('noises', p=1), Gain(p=1)``.

The text is read as Python but never run: names of transforms, their arguments, numbers, text, lists, and nothing else.
"""

from __future__ import annotations

import ast
from typing import Any

import avloader.augment
from avloader.augment.bank import ImpulseResponseBank, SoundBank
from avloader.augment.base import Node
from avloader.augment.compose import Compose
from avloader.augment.noise import AddBackgroundNoise, Mix
from avloader.augment.room import ApplyImpulseResponse

__all__ = ["parse_augment", "transform_names"]

_BANKS: dict[type[Node], type[SoundBank] | type[ImpulseResponseBank]] = {
    AddBackgroundNoise: SoundBank,
    Mix: SoundBank,
    ApplyImpulseResponse: ImpulseResponseBank,
}


def transform_names() -> list[str]:
    """The names that the text may hold."""
    found = (getattr(avloader.augment, name) for name in avloader.augment.__all__)
    return [
        kind.__name__ for kind in found if issubclass(kind, Node) and not getattr(kind, "__abstractmethods__", None)
    ]


def parse_augment(text: str, *, sample_rate: int) -> Node:
    """The transform that the text names; of several, with commas between them, all in order.

    Where a transform takes a bank of sounds, the text has the path of a file or folder.

    Args:
        text: Such as ``Gain(p=1), OneOf([LowPassFilter(p=1), ApplyImpulseResponse('rooms', p=1)])``.
        sample_rate: Of the sound that it is for, and of its banks.

    Raises:
        ValueError: The text is not what is said above, or a transform refuses its arguments.
        MediaError: A file of a bank cannot be read.
    """
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(
            f"augmentation {text!r} cannot be read: {reason}; write Gain(p=1), or several with commas"
        ) from None
    parts = body.elts if isinstance(body, ast.Tuple) else [body]
    nodes = [_value(part, text, sample_rate) for part in parts]
    for node, part in zip(nodes, parts, strict=True):
        if not isinstance(node, Node):
            raise ValueError(f"augmentation {text!r}: {ast.unparse(part)} is no transform; write Gain(p=1)")
    if not nodes:
        raise ValueError(f"augmentation {text!r} names no transform; write Gain(p=1)")
    return nodes[0] if len(nodes) == 1 else Compose(nodes)


def _value(part: ast.expr, text: str, sample_rate: int) -> Any:
    """What a part of the text stands for."""
    if isinstance(part, ast.Call):
        return _transform(part, text, sample_rate)
    if isinstance(part, (ast.List, ast.Tuple)):
        values = [_value(element, text, sample_rate) for element in part.elts]
        return values if isinstance(part, ast.List) else tuple(values)
    if isinstance(part, ast.Name) and part.id in transform_names():
        raise ValueError(f"augmentation {text!r}: {part.id} needs brackets: {part.id}()")
    try:
        return ast.literal_eval(part)
    except ValueError:
        raise ValueError(
            f"augmentation {text!r}: {ast.unparse(part)} is neither a transform nor a number, text or list; transforms "
            f"are {', '.join(transform_names())}"
        ) from None


def _transform(call: ast.Call, text: str, sample_rate: int) -> Node:
    name = ast.unparse(call.func)
    if name not in transform_names():
        raise ValueError(f"augmentation {text!r}: there is no {name}; transforms are {', '.join(transform_names())}")
    kind: type[Node] = getattr(avloader.augment, name)
    if any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"augmentation {text!r}: {name} takes no **; name the arguments")
    positional = [_value(argument, text, sample_rate) for argument in call.args]
    named = {str(keyword.arg): _value(keyword.value, text, sample_rate) for keyword in call.keywords}
    bank = _BANKS.get(kind)
    if bank is not None:
        key = "responses" if bank is ImpulseResponseBank else "sounds"
        path = positional[0] if positional else named.get(key)
        if not isinstance(path, str):
            raise ValueError(f"augmentation {text!r}: {name} needs the path of a file or folder: {name}('sounds')")
        sounds = bank.from_files(path, sample_rate=sample_rate)
        positional, named = [sounds, *positional[1:]], {other: named[other] for other in named if other != key}
    try:
        return kind(*positional, **named)
    except (TypeError, ValueError) as error:
        message = str(error).replace("__init__()", "").replace(f"{name}. ", f"{name} ")
        raise ValueError(f"augmentation {text!r}: {name}: {message}") from None
