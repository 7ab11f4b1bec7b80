"""The structures and functions of `native/t5.cpp`, as ctypes has them."""

from __future__ import annotations

import ctypes

from bild.engines import build

PRECISIONS = {"float32": 0, "bfloat16": 1, "int8": 2}
ACTIVATIONS = {"relu": 0, "gelu_new": 1, "gelu": 2, "silu": 3}
MULTIPLE = 16  # of widths and positions
MAX_TOKENS = 16  # of one forward; longer feeds go in pieces

Int, Float, Double, Pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_double, ctypes.c_void_p


class CMatrix(ctypes.Structure):
    _fields_ = (
        *((n, Pointer) for n in ("data", "scales", "sums")),
        *((n, Int) for n in ("type", "columns")),
    )


class CAttention(ctypes.Structure):
    _fields_ = (("norm", Pointer), *((n, CMatrix) for n in "qkvo"))


class CFeedForward(ctypes.Structure):
    _fields_ = (("norm", Pointer), *((n, CMatrix) for n in ("into", "gate", "out")))


class CLayer(ctypes.Structure):
    _fields_ = (
        ("own", CAttention),
        ("cross", CAttention),
        ("feed", CFeedForward),
        ("bias", Pointer),
    )


class CModel(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(CLayer)),
        *((n, Int) for n in ("layer_count", "width", "heads", "head_width", "feed_width")),
        *((n, Int) for n in ("source_width", "vocabulary", "activation", "threads")),
        ("epsilon", Float),
        ("output_scale", Float),
        ("final_norm", Pointer),
        ("embedding", CMatrix),
        ("head", CMatrix),
        ("ids", Pointer),
    )


class CPace(ctypes.Structure):
    _fields_ = (("seconds", Double * 16), ("state", Int * 4))


class CSession(ctypes.Structure):
    _fields_ = (
        *((n, Int) for n in ("capacity", "length", "source", "source_stride", "cross_type")),
        *((n, Pointer) for n in ("keys", "values", "cross_keys", "cross_values")),
        *((n, Pointer) for n in ("logits", "scratch")),
        *((n, CPace) for n in ("forwards", "sources")),
    )


class CFallback(ctypes.Structure):
    _fields_ = (("kind", Int), ("setting", Double))


class CAcceptance(ctypes.Structure):
    _fields_ = (("kind", Int), ("first_far_only", Int), ("setting", Double), ("second", Double))


class CAsk(ctypes.Structure):
    _fields_ = (
        ("model", ctypes.POINTER(CModel)),
        ("session", ctypes.POINTER(CSession)),
        ("pending", ctypes.POINTER(Int)),
        *((n, Int) for n in ("count", "limit", "eos_count")),
        ("fallback", CFallback),
        ("eos", ctypes.POINTER(Int)),
        *((n, Int) for n in ("drafted_count", "first_row")),
        *((n, ctypes.POINTER(Int)) for n in ("drafted", "tokens")),
        *((n, ctypes.POINTER(Double)) for n in ("probabilities", "distances", "entropies")),
        ("ranks", ctypes.POINTER(Int)),
        ("product", Double),
        *((n, Int) for n in ("written_count", "forwards")),
    )


class CTogether(ctypes.Structure):
    _fields_ = (
        *((n, Pointer) for n in ("logits", "scratch")),
        *((n, Int) for n in ("tokens", "positions")),
        *((n, CPace) for n in ("drafts", "verdicts")),
    )


class CRoundTime(ctypes.Structure):
    _fields_ = (
        *((n, Double) for n in ("drafted", "verified")),
        *((n, Int) for n in ("forwards", "width")),
    )


ROUND_COUNTS = (
    *("fallbacks", "rollbacks", "rolled_back_tokens", "drafted_tokens", "full_windows"),
    *("verifications", "verified_tokens", "guesses", "guesses_held"),
)


class CRounds(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.POINTER(CModel)) for n in ("large_model", "small_model")),
        *((n, ctypes.POINTER(CSession)) for n in ("large", "small")),
        ("tokens", ctypes.POINTER(Int)),
        ("times", ctypes.POINTER(CRoundTime)),
        ("eos", ctypes.POINTER(Int)),
        *((n, Int) for n in ("eos_count", "count", "checked", "max_length", "until")),
        ("fallback", CFallback),
        ("acceptance", CAcceptance),
        ("spent", Double),
        *((n, Int) for n in ("window", "lookahead")),
        ("least", Double),
        *((n, Int) for n in ("last_guess", "checks_end", "large_after_cut")),
        *((n, Int) for n in ("small_turn", "ended", "rounds")),
        *((n, Int) for n in ("large_forwards", "small_forwards", "large_fed", "small_fed")),
        *((n, Int) for n in ("damaged", "position", *ROUND_COUNTS)),
    )


STRUCTURES = (
    *(CMatrix, CLayer, CModel, CSession, CAsk, CTogether, CRoundTime, CRounds),
    *(CFallback, CAcceptance),
)


def load() -> ctypes.CDLL:
    """The compiled functions, with the types of their arguments.

    Raises:
        BildError: as `build.load`.
    """
    calls = build.load().calls
    model, session = ctypes.POINTER(CModel), ctypes.POINTER(CSession)
    calls.bild_t5_layout.argtypes = (ctypes.POINTER(Int), Int)
    calls.bild_t5_layout.restype = Int
    _check_layout(calls)
    calls.bild_t5_scratch_floats.argtypes = (model, session)
    calls.bild_t5_scratch_floats.restype = ctypes.c_int64
    calls.bild_t5_encode_floats.argtypes = (model, Int, Int)
    calls.bild_t5_encode_floats.restype = ctypes.c_int64
    calls.bild_t5_encode.argtypes = (model, session, Pointer, Int, Int, Pointer, Pointer)
    calls.bild_t5_encode.restype = None
    calls.bild_t5_begin.argtypes = (model, session, Pointer)
    calls.bild_t5_begin.restype = None
    calls.bild_t5_feed.argtypes = (model, session, Pointer, Int, Pointer)
    calls.bild_t5_feed.restype = None
    calls.bild_t5_draft.argtypes = (
        *(model, session, Pointer, Int, Int, ctypes.POINTER(CFallback)),
        *(Pointer, Int, Pointer, Pointer, Pointer),
    )
    calls.bild_t5_draft.restype = Int
    calls.bild_t5_verify.argtypes = (
        *(model, session, Pointer, Int, Pointer, Int, Int),
        *(Pointer, Pointer, Pointer, Pointer, Pointer),
    )
    calls.bild_t5_verify.restype = None
    rounds, together = ctypes.POINTER(CRounds), ctypes.POINTER(CTogether)
    calls.bild_t5_rounds.argtypes, calls.bild_t5_rounds.restype = (rounds,), None
    calls.bild_t5_rounds_together.argtypes = (together, together, ctypes.POINTER(rounds), Int)
    calls.bild_t5_rounds_together.restype = None
    calls.bild_t5_together_floats.argtypes = (model, Int, Int)
    calls.bild_t5_together_floats.restype = ctypes.c_int64
    for what in ("feed", "draft", "verify"):
        call = getattr(calls, f"bild_t5_{what}_together")
        call.argtypes = (together, ctypes.POINTER(CAsk), Int)
        call.restype = None
    return calls


def _check_layout(calls: ctypes.CDLL) -> None:
    """Both sides must have the same structures and limits, or one overwrites the other's memory."""
    ours = [*map(ctypes.sizeof, STRUCTURES), MULTIPLE, MAX_TOKENS]
    theirs = (Int * len(ours))()
    count = calls.bild_t5_layout(theirs, len(ours))
    found = count, theirs[:]
    assert found == (len(ours), ours), f"t5.cpp has {count}: {theirs[:]}, Python {ours}"
