"""What the Hub's inference API says of image classification: a request's body in, an answer's JSON out.

The words are those of the schemas `image-classification/spec` in the package @huggingface/tasks. Kept apart from
the server, since nothing here knows HTTP.
"""

import base64
import binascii
import json
import re
from dataclasses import dataclass

import numpy as np

from oct_hf.errors import OCTError, did_you_mean

FUNCTIONS = ("softmax", "sigmoid", "none")


class RequestError(OCTError):
    """A request can't be answered as it is; the text is the answer's `error`."""


@dataclass(frozen=True)
class Query:
    """One image to classify, and how.

    Attributes:
        image: the encoded file.
        top_k: this many labels, the most probable first; all where None.
        function_to_apply: from logits to scores, one of `FUNCTIONS`; the model's own where None.
    """

    image: bytes
    top_k: int | None = None
    function_to_apply: str | None = None


def read_query(body: bytes) -> Query:
    """The query that a body holds: JSON where it begins with a brace, which no image does, and an image otherwise.

    The Content-Type isn't asked: clients send images with a wrong one or none.

    Raises:
        RequestError: the JSON is none or has a wrong field, or `inputs` is an address or no base64.
    """
    if body[:64].lstrip()[:1] != b"{":
        return Query(body)
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON ({error})") from None
    if not isinstance(fields.get("inputs"), str):
        raise RequestError("inputs must be the image as a base64 string")
    return Query(_image(fields["inputs"]), **_parameters(fields.get("parameters")))


def answer(labels: tuple[str, ...], logits: np.ndarray, query: Query, own: str = "softmax") -> list[dict]:
    """`[{"label", "score"}, …]`, the highest score first, of one image's logits `(labels,)`.

    `own` of `FUNCTIONS` is what the model's logits take where the query names nothing.
    """
    scores = _scores(logits.astype(np.float64), query.function_to_apply or own)
    best = np.argsort(-scores, kind="stable")[: query.top_k]
    return [{"label": labels[i], "score": float(scores[i])} for i in best]


def _image(inputs: str) -> bytes:
    if inputs.startswith("data:"):
        header, _, inputs = inputs.partition(",")
        if not header.endswith(";base64"):
            raise RequestError("inputs is a data: URL that isn't base64")
    elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", inputs):
        raise RequestError("inputs is an address, and this server fetches none: send the image itself, as base64")
    try:
        return base64.b64decode("".join(inputs.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"inputs is no base64 ({error})") from None


def _parameters(given) -> dict:
    """The fields of `Query` that `parameters` sets; null is the same as not given."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise RequestError("parameters must be an object")
    known = ("top_k", "function_to_apply")
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in known:
            raise RequestError(f"no parameter {name!r}{did_you_mean(name, known)}; there are {' and '.join(known)}")
    top_k = given.get("top_k", 1)
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise RequestError(f"top_k must be a whole number from 1, and is {top_k!r:.40}")
    if given.get("function_to_apply", "none") not in FUNCTIONS:
        raise RequestError(
            f"function_to_apply must be {', '.join(FUNCTIONS)}, and is {given['function_to_apply']!r:.40}"
        )
    return given


def _scores(logits: np.ndarray, function: str) -> np.ndarray:
    if function == "softmax":
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()
    return 1 / (1 + np.exp(-logits)) if function == "sigmoid" else logits


_INPUT = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {"type": "string", "description": "The image as base64, or as a base64 data: URL. No address."},
        "parameters": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {
                "top_k": {
                    "type": ["integer", "null"],
                    "minimum": 1,
                    "description": "Only the most probable; all labels where not given.",
                },
                "function_to_apply": {
                    "enum": [*FUNCTIONS, None],
                    "description": "From logits to scores; where not given softmax, or sigmoid of a model of signs.",
                },
            },
        },
    },
}
_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_OUTPUT = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["label", "score"],
        "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
    },
}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}

REQUEST_BODY = {
    "required": True,
    "description": "The image file itself, under any Content-Type or none, or JSON. What it is, is told by its bytes.",
    "content": {"image/*": _IMAGE, "application/octet-stream": _IMAGE, "application/json": {"schema": _INPUT}},
}


def responses(errors: dict[int, str]) -> dict:
    """OpenAPI's `responses`: the answer, and `{"error": …}` under each status of `errors` with its description."""
    answers = {200: ("Labels and scores, the highest score first.", _OUTPUT)}
    answers |= {status: (text, _ERROR) for status, text in errors.items()}
    return {
        status: {"description": text, "content": {"application/json": {"schema": schema}}}
        for status, (text, schema) in answers.items()
    }
