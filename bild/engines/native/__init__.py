"""T5 in machine code: compiles `t5.cpp` on the machine it runs on, and calls it.

The library is built once for a machine, compiler and version of the source, and kept in
`$BILD_CACHE`, else in `$XDG_CACHE_HOME/bild` or `~/.cache/bild`. The compiler is `$CXX`, else the
first of c++, g++, clang++ that is there.

Letters used for shapes: S source tokens, T fed tokens, P positions the cache holds, D model width,
H heads, C width of a head, V vocabulary.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from bild.engines.base import Draft, Verdict, check_ids
from bild.errors import BildError

if TYPE_CHECKING:
    from bild.engines.t5 import T5Stack

SOURCE = Path(__file__).with_name("t5.cpp")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared")
# Tried in turn: a compiler may lack OpenMP (then one thread) or not know its own processor.
OPTIONAL_FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ())

PRECISIONS = {"float32": 0, "bfloat16": 1, "int8": 2}
ACTIVATIONS = {"relu": 0, "gelu_new": 1, "gelu": 2, "silu": 3}
NORMS = ("self_norm", "cross_norm", "feed_norm")
MATRICES = ("q", "k", "v", "o", *(f"cross_{n}" for n in "qkvo"), "in", "gate", "out")
MULTIPLE = 16  # of widths and positions
MAX_TOKENS = 16  # of one forward; longer feeds go in pieces


# ------------------------------------------------------------------------------ compiling


def find_compiler() -> str | None:
    """The C++ compiler to use, or None."""
    named = os.environ.get("CXX")
    if named is not None:
        return named if shutil.which(shlex.split(named)[0]) else None
    return next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)


@cache
def load() -> ctypes.CDLL:
    """The library, compiled if it is not there yet.

    Raises:
        BildError: there is no compiler, or it fails; its first line of complaint is quoted.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BildError(
            "no C++ compiler found for the compiled engine: install g++ or clang++, "
            "name one in CXX, or use compile=False"
        )
    version = subprocess.run(
        [*shlex.split(compiler), "--version"], capture_output=True, text=True, check=False
    ).stdout
    parts = (SOURCE.read_text(), repr((FLAGS, OPTIONAL_FLAGS)), compiler, version, _processor())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = _cache_folder() / f"t5-{key}.so"
    if not path.is_file():
        _compile(shlex.split(compiler), path)
    return _declare(ctypes.CDLL(str(path)))


def _cache_folder() -> Path:
    named = os.environ.get("BILD_CACHE")
    if named is not None:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bild"


def _processor() -> str:
    """What `-march=native` depends on: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    )


def _compile(compiler: list[str], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=path.parent)
    except OSError as error:
        raise BildError(
            f"cannot write the compiled engine to {path.parent} ({error.strerror}); "
            "name another folder in BILD_CACHE, or use compile=False"
        ) from error
    try:
        made = Path(folder) / path.name
        for extra in OPTIONAL_FLAGS:
            command = [*compiler, *FLAGS, *extra, str(SOURCE), "-o", str(made)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                os.replace(made, path)  # two processes may compile at once; either's will do
                return
        complaint = (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[0]
        raise BildError(
            f"the C++ compiler {compiler[0]!r} cannot compile the engine: {complaint}; "
            "name another one in CXX, or use compile=False"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------ the C side

_int, _float, _pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((n, _pointer) for n in ("data", "scales", "sums")),
        *((n, _int) for n in ("type", "columns")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((n, _pointer) for n in NORMS),
        *((n, _Matrix) for n in MATRICES),
        ("bias", _pointer),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((n, _int) for n in ("layer_count", "width", "heads", "head_width", "feed_width")),
        *((n, _int) for n in ("vocabulary", "activation", "threads")),
        ("epsilon", _float),
        ("output_scale", _float),
        ("final_norm", _pointer),
        ("embedding", _Matrix),
        ("head", _Matrix),
    )


class _Session(ctypes.Structure):
    _fields_ = (
        *((n, _int) for n in ("capacity", "length", "source", "source_stride")),
        *((n, _int) for n in ("cross_type",)),
        *((n, _pointer) for n in ("keys", "values", "cross_keys", "cross_values")),
        *((n, _pointer) for n in ("logits", "scratch")),
    )


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    model, session = ctypes.POINTER(_Model), ctypes.POINTER(_Session)
    library.bild_t5_layout.argtypes = (ctypes.POINTER(_int),)
    library.bild_t5_layout.restype = None
    layout = (_int * 6)()
    library.bild_t5_layout(layout)
    ours = (*map(ctypes.sizeof, (_Matrix, _Layer, _Model, _Session)), MULTIPLE, MAX_TOKENS)
    assert layout[:] == list(ours), f"t5.cpp has {layout[:]}, Python {ours}"
    library.bild_t5_scratch_floats.argtypes = (model, session)
    library.bild_t5_scratch_floats.restype = ctypes.c_int64
    library.bild_t5_encode_floats.argtypes = (model, _int, _int)
    library.bild_t5_encode_floats.restype = ctypes.c_int64
    library.bild_t5_encode.argtypes = (model, _pointer, _int, _int, *(_pointer,) * 3)
    library.bild_t5_encode.restype = None
    library.bild_t5_begin.argtypes = (model, session, _pointer)
    library.bild_t5_begin.restype = None
    library.bild_t5_feed.argtypes = (model, session, _pointer, _int, _pointer)
    library.bild_t5_feed.restype = None
    library.bild_t5_draft.argtypes = (
        *(model, session, _pointer, _int, _int, ctypes.c_double),
        *(_pointer, _int, _pointer, _pointer, _pointer),
    )
    library.bild_t5_draft.restype = _int
    library.bild_t5_verify.argtypes = (
        *(model, session, _pointer, _int, _pointer, _int, _int),
        *(_pointer, _pointer, _pointer),
    )
    library.bild_t5_verify.restype = None
    return library


# ------------------------------------------------------------------------------ model, sequence


class NativeStack:
    """A T5 encoder's or decoder's weights as the library wants them.

    They are copied: the kernels read them in an order of their own.

    Args:
        weights: the parameters, on the CPU.
        precision: "float32", "bfloat16" or "int8".

    Raises:
        BildError: no compiler, or widths the library cannot take.
    """

    def __init__(self, weights: T5Stack, precision: str) -> None:
        self.library = load()
        self.weights = weights
        self.precision = precision
        self._alive: list[Tensor] = []  # what the structures below point to
        layers = (_Layer * len(weights.layers))()
        for c_layer, layer in zip(layers, weights.layers, strict=True):
            for name in NORMS:
                if name in layer:
                    setattr(c_layer, name, self._keep(layer[name].float()))
            for name in MATRICES:
                if layer.get(name) is not None:
                    setattr(c_layer, name, self._matrix(layer[name], precision))
        self.layers = layers
        self.struct = _Model(
            layers=layers,
            layer_count=len(layers),
            width=weights.width,
            heads=weights.heads,
            head_width=weights.head_width,
            feed_width=weights.layers[0]["in"].shape[0],
            activation=ACTIVATIONS[weights.activation],
            epsilon=weights.epsilon,
            output_scale=weights.output_scale,
            final_norm=self._keep(weights.final_norm.float()),
            embedding=_Matrix(
                data=self._keep(weights.embedding),
                type=PRECISIONS[str(weights.embedding.dtype).removeprefix("torch.")],
                columns=weights.width,
            ),
        )
        if weights.is_decoder:
            self.struct.head = self._matrix(weights.head, precision)
        self._biases: dict[int, list[Tensor]] = {}

    def layers_with_bias(self, capacity: int) -> Any:
        """The layers with their position biases (H, P) for caches of `capacity` positions."""
        if capacity not in self._biases:
            self._biases[capacity] = self.weights.position_bias(capacity)
        layers = type(self.layers).from_buffer_copy(self.layers)
        for c_layer, bias in zip(layers, self._biases[capacity], strict=True):
            c_layer.bias = bias.data_ptr()
        return layers

    def encode(self, tokens: Sequence[int], hidden: Tensor | None = None) -> Tensor:
        """An encoder's states (S, D) of S source tokens; of those `hidden` (S,) none is seen."""
        size = len(tokens)
        positions = -(-size // 128) * 128  # few different ones: their biases are kept
        struct = _Model.from_buffer_copy(self.struct)
        struct.threads = torch.get_num_threads()
        layers = self.layers_with_bias(positions)
        struct.layers = layers
        states = buffer(size, self.weights.width)
        scratch = buffer(self.library.bild_t5_encode_floats(struct, size, positions))
        mask = None if hidden is None else buffer(size).zero_().masked_fill_(hidden, -torch.inf)
        self.library.bild_t5_encode(
            *(struct, self.ids(tokens), size, positions),
            *(None if mask is None else mask.data_ptr(), states.data_ptr(), scratch.data_ptr()),
        )
        return states

    def ids(self, tokens: Sequence[int]) -> Any:
        """Token ids as the library reads them, which does not check them itself."""
        check_ids(tokens, self.weights.embedding.shape[0], "embeddings")
        return _ints(tokens)

    def _matrix(self, weight: Tensor, precision: str) -> _Matrix:
        """A weight (rows, columns), rows padded with zeros to a multiple of 16, as kernels read it:
        in groups of 16 rows; of a group, for every 4 bytes of columns, its 16 rows together."""
        scales = sums = None
        weight = functional.pad(weight, (0, 0, 0, -len(weight) % MULTIPLE))
        if precision == "int8":
            scale = (weight.float().abs().amax(1) / 127).clamp(min=1e-12)  # one a row
            weight = (weight.float() / scale[:, None]).round().to(torch.int8)
            scales, sums = self._keep(scale), self._keep(weight.sum(1, dtype=torch.int32))
        else:
            weight = weight.to(getattr(torch, precision))
        rows, columns = weight.shape
        together = 4 // weight.element_size()
        groups = weight.view(rows // MULTIPLE, MULTIPLE, columns // together, together)
        data = self._keep(groups.transpose(1, 2))
        return _Matrix(data, scales, sums, PRECISIONS[precision], columns)

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()


class NativeSession:
    """One sequence: its caches, and calls into the library.

    Args:
        model: the weights; many sessions may share them.
        vocab_size: score only the first so many ids.
    """

    def __init__(self, model: NativeStack, vocab_size: int) -> None:
        self._model = model
        self._library = model.library
        self._struct = _Model.from_buffer_copy(model.struct)
        self._struct.vocabulary = vocab_size
        self._struct.threads = torch.get_num_threads()
        # The source is read by every forward, beside the weights: in half precision with them.
        exact = model.precision == "float32"
        self._cross_type = torch.float32 if exact else torch.bfloat16
        self._session = _Session(cross_type=PRECISIONS["float32" if exact else "bfloat16"])
        self._cache: tuple[Tensor, Tensor]  # per layer (H, P / 16, C, 16) and (H, P, C)
        self._row = -(-vocab_size // MULTIPLE) * MULTIPLE  # of the logits
        self._logits = buffer(MAX_TOKENS, self._row)
        self._session.logits = self._logits.data_ptr()

    def begin(self, states: Tensor) -> None:
        """Start a sequence over the encoder's states (S, D)."""
        w = self._model.weights
        states = states.float().contiguous()
        size = len(states)
        stride = -(-size // MULTIPLE) * MULTIPLE
        shape = len(w.layers), w.heads, stride, w.head_width
        self._cross = [buffer(*shape, dtype=self._cross_type) for _ in range(2)]
        self._session.source, self._session.source_stride = size, stride
        self._session.cross_keys, self._session.cross_values = (t.data_ptr() for t in self._cross)
        if self._session.capacity:
            self._allocate_scratch()  # another source, perhaps a longer one
        else:
            self._reserve(1)
        self._library.bild_t5_begin(self._struct, self._session, states.data_ptr())

    def feed(self, length: int, tokens: Sequence[int]) -> Tensor:
        """Logits (T, V) of `tokens`, fed after the first `length` cached ones."""
        self._move_to(length, len(tokens))
        logits = buffer(len(tokens), self._row)
        self._library.bild_t5_feed(
            self._struct, self._session, self._model.ids(tokens), len(tokens), logits.data_ptr()
        )
        return logits[:, : self._struct.vocabulary]

    def draft(
        self,
        length: int,
        pending: Sequence[int],
        limit: int,
        threshold: float,
        eos_token_ids: Collection[int],
    ) -> Draft:
        """`Decoder.draft`, after the first `length` cached tokens."""
        self._move_to(length, len(pending) + limit)
        written, probabilities = (_int * limit)(), (ctypes.c_double * limit)()
        written_count = _int()
        count = self._library.bild_t5_draft(
            *(
                self._struct,
                self._session,
                self._model.ids(pending),
                len(pending),
                limit,
                threshold,
            ),
            *(_ints(eos_token_ids), len(eos_token_ids), written, probabilities),
            ctypes.byref(written_count),
        )
        kept = written_count.value
        unsure = written[kept] if count > kept else None
        return Draft(written[:kept], probabilities[:count], unsure)

    def verify(
        self, length: int, pending: Sequence[int], drafted: Sequence[int], first_row: int
    ) -> Verdict:
        """`Decoder.verify`, after the first `length` cached tokens."""
        self._move_to(length, len(pending))
        check_ids(drafted, self._struct.vocabulary, "scored tokens")
        rows = len(pending) - first_row
        tokens, probabilities = (_int * rows)(), (ctypes.c_double * rows)()
        distances = (ctypes.c_double * len(drafted))()
        self._library.bild_t5_verify(
            *(self._struct, self._session, self._model.ids(pending), len(pending)),
            *(_ints(drafted), len(drafted), first_row, tokens, probabilities, distances),
        )
        return Verdict(tokens[:], probabilities[:], distances[:])

    def _move_to(self, length: int, more: int) -> None:
        self._session.length = length
        self._reserve(length + more)

    def _reserve(self, length: int) -> None:
        old = self._session.capacity
        if length <= old:
            return
        w = self._model.weights
        capacity = max(128, -(-2 * length // MULTIPLE) * MULTIPLE)
        keys, values = (buffer(len(w.layers), w.heads, capacity, w.head_width) for _ in "kv")
        if old:  # positions lie in blocks of 16, those of keys too
            keys[:, :, :old], values[:, :, :old] = self._cache
        self._cache = keys, values
        self._layers = self._model.layers_with_bias(capacity)
        self._struct.layers = self._layers
        self._session.capacity = capacity
        self._session.keys, self._session.values = keys.data_ptr(), values.data_ptr()
        self._allocate_scratch()

    def _allocate_scratch(self) -> None:
        floats = self._library.bild_t5_scratch_floats(self._struct, self._session)
        self._scratch = buffer(floats)
        self._session.scratch = self._scratch.data_ptr()


def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for the library to read and write.

    All of it is made here: `torch.empty` alone follows the process's default dtype and device,
    which another thread may change at any time (transformers does while it loads a model), and
    the library would then run past the end of what it was given.
    """
    return torch.empty(shape, dtype=dtype, device="cpu")


def _ints(values: Collection[int]) -> Any:
    return (_int * len(values))(*values)
