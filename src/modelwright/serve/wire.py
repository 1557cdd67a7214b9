"""How a part of a request is read: strict types, nothing ignored in silence, and faults that name the field.

A known field that we do not honour may only be absent, null or hold its neutral value; an unknown one may not come.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Neutral = dict[str, tuple[Any, ...]]
"""Known fields that we do not honour, each with the values that ask for nothing."""


class Wire(BaseModel):
    """A part of a request: strict types, no unknown fields, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_we_do_not_honour(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        _sound(tree)
        for name, neutral in cls.neutral.items():
            value = tree.get(name)
            if value is None or any(type(value) is type(good) and value == good for good in neutral):
                continue
            allowed = f" (only {' or '.join(map(repr, neutral))})" if neutral else ""
            raise fault("{param} is not supported by this server{allowed}", name, allowed=allowed)
        return {name: value for name, value in tree.items() if name not in cls.neutral}


Somebody = Annotated[str, Field(max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Whom a client asks for, in its own words: told in logs and traces."""


class TextPart(Wire):
    """A text in a list of parts."""

    type: Literal["text"]
    text: str


IMAGE = r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}"
"""An image in its own address. No other addresses: who asks us could have an engine's server fetch what is not meant for it."""


class ImageAddress(Wire):
    url: str = Field(pattern=f"^{IMAGE}$")
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Wire):
    """An image in a list of parts."""

    type: Literal["image_url"]
    image_url: ImageAddress


MOST_LEVELS = 100
"""Of lists and objects in one another."""


def _sound(value: Any, level: int = 0) -> None:
    """Half of a surrogate pair, which JSON can spell, is no text that a tokenizer takes; endless nesting is an attack."""
    if level > MOST_LEVELS:
        raise fault("more than {most} levels of lists and objects", most=str(MOST_LEVELS))
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise fault("a text holds {half}, half of a character", half=f"U+{ord(value[error.start]):X}") from None
    elif isinstance(value, dict):
        for name, part in value.items():
            _sound(name)
            _sound(part, level + 1)
    elif isinstance(value, list):
        for part in value:
            _sound(part, level + 1)


def fault(message: str, param: str | None = None, **words: str) -> PydanticCustomError:
    """A fault of the request. `param`: the field, below the place where it is raised; `{word}` in the message is filled in."""
    return PydanticCustomError("unsupported", message, {**words, **({"param": param} if param else {})})


_NO_ENGINE = {"image_url": "images", "input_image": "images", "image": "images", "input_audio": "sound", "audio": "sound",
              "video_url": "video", "file": "files", "input_file": "files", "document": "files"}  # fmt: skip


def text_of(value: Any) -> Any:
    """The text of a content given as parts; other sorts of part (images, sound, files) are refused."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in _NO_ENGINE:
            raise fault("a part of type {kind} is not supported: no engine of this server takes {what}", kind=repr(kind),
                        what=_NO_ENGINE[kind])  # fmt: skip
        if kind != "text" or set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise fault('only parts of the form {form} are supported', form='{"type": "text", "text": "…"}')  # fmt: skip
        texts.append(part["text"])
    return "".join(texts)


def content_of(value: Any) -> Any:
    """A user's text, or the list of parts where images are among them."""
    if not isinstance(value, list) or not any(isinstance(part, dict) and part.get("type") == "image_url" for part in value):
        return text_of(value)
    texts = [part for part in value if not (isinstance(part, dict) and part.get("type") == "image_url")]
    text_of(texts)  # which says what is wrong with them
    for part in value:
        if part["type"] == "image_url":
            _check_image(part.get("image_url"))
    return value


def _check_image(image: Any) -> None:
    if not isinstance(image, dict) or not isinstance(image.get("url"), str) or not re.fullmatch(IMAGE, image["url"]):
        raise fault("an image comes within the request: {form}", form='{"image_url": {"url": "data:image/png;base64,…"}}')
    if set(image) > {"url", "detail"} or image.get("detail") not in (None, "auto", "low", "high"):
        raise fault("of an image only url and detail (auto, low or high) are known")


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_OURS = re.compile(r"str|int|float|bool|dict|[A-Z]\w*|.*[-\[].*", re.DOTALL)
"""What pydantic calls the parts of a union: types, classes, `constrained-str`, `list[int]`. No field of ours is called so."""


def explain(errors: Sequence[Any]) -> tuple[str, str | None]:
    """The first of pydantic's errors as a message and the field's name, such as `messages[0].content`. Of a field that may be one
    thing or another, what is wrong where it came nearest to one of them."""
    place = list(errors[0]["loc"])
    fork = next((at for at, part in enumerate(place) if isinstance(part, str) and _OURS.fullmatch(part)), len(place))
    error = max((one for one in errors if list(one["loc"][:fork]) == place[:fork]), key=lambda one: len(one["loc"]))
    place = list(error["loc"])
    if place and place[0] == "body":
        place = place[1:]
    named = (error.get("ctx") or {}).get("param")
    if named is not None:
        place.append(named)
    param = ""
    unknown = error["type"] == "extra_forbidden"
    for at, part in enumerate(place):
        if isinstance(part, str) and _OURS.fullmatch(part) and not (unknown and at == len(place) - 1):
            continue
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    if error["type"] == "json_invalid":
        return "the request's body is not valid JSON", None
    if unknown:
        return f"unknown field: {param}", param
    if error["type"] == "missing":
        return f"missing field: {param or 'a JSON body'}", param or None
    return f"{param}: {error['msg']}" if param else str(error["msg"]), param or None
