"""A sparse matrix times many tokens, compiled by numba for the processor at hand.

The inputs of a tile of tokens are transposed, so that one vector register holds 16 tokens (with
AVX-512; LLVM divides these vectors where registers are shorter). A kept weight then costs one
multiplication and addition for every 16 tokens, with an operand from the cache:

    y[r, :] += w[r, k] * x[k, :]        x: (K, 48 tokens), y: (R, 48 tokens)

The sums of a row stay in registers for a whole block of columns. Every element of the output adds
its products in the order of the columns, one by one: the result does not depend on the tile, the
batch, or the number of threads. LLVM's vectors are written out here, since its vectorizer does not
keep the sums of such a loop in registers.
"""

import warnings
from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from hf_cyclprune.inference.blocked import BLOCK

_INT, _LONG, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_SIDE = 8  # of a square that is transposed in registers


def _address(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Return the address of an element of an array."""
    return builder.gep(context.make_array(kind)(context, builder, value=array).data, [offset])


def _part(builder: Any, address: Any, offset: Any, size: int) -> Any:
    """Return the address of a vector that begins `offset` elements further on."""
    vector = ir.VectorType(_FLOAT, size)
    return builder.bitcast(builder.gep(address, [offset]), vector.as_pointer())


def _shuffle(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    """Return the elements of two vectors, of which `order` holds the numbers."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(order)), order))


def _splat(builder: Any, number: Any, size: int) -> Any:
    """Return a vector that repeats a number."""
    nothing = ir.Constant(ir.VectorType(_FLOAT, size), ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(_INT, 0))
    return _shuffle(builder, first, nothing, [0] * size)


def _widen(builder: Any, number: Any, kind: Any) -> Any:
    """Return a stored value as float32; see `blocked` for the kinds."""
    if kind == types.float32:
        return number
    bits = builder.sext(number, _INT)
    if kind == types.int16:  # a bfloat16 is the upper half of a float32
        return builder.bitcast(builder.shl(bits, ir.Constant(_INT, 16)), _FLOAT)
    # a float16's exponent counts from -15, that of a float32 from -127; not every processor has
    # an instruction for it
    bits = builder.and_(builder.shl(bits, ir.Constant(_INT, 13)), ir.Constant(_INT, 0x8FFFE000))
    return builder.fmul(builder.bitcast(bits, _FLOAT), ir.Constant(_FLOAT, 2.0**112))


@intrinsic
def _transpose(_: Any, x: Any, at: Any, stride: Any, y: Any, to: Any, step: Any) -> Any:
    """Transpose a square of 8 x 8 elements from one array into another."""
    index = types.intp
    signature = types.void(x, index, index, y, index, index)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = _address(context, builder, signature.args[0], args[0], args[1])
        target = _address(context, builder, signature.args[3], args[3], args[4])
        numbers = [ir.Constant(_LONG, i) for i in range(_SIDE)]
        places = [_part(builder, start, builder.mul(args[2], i), _SIDE) for i in numbers]
        rows = [builder.load(place, align=4) for place in places]
        halves = [[i // 2 + i % 2 * _SIDE for i in range(j, j + _SIDE)] for j in (0, _SIDE)]
        for _ in range(3):  # three perfect shuffles of all 64 elements are a transposition
            pairs = zip(rows[: _SIDE // 2], rows[_SIDE // 2 :], strict=True)
            rows = [_shuffle(builder, a, b, half) for a, b in pairs for half in halves]
        for row, i in zip(rows, numbers, strict=True):
            builder.store(row, _part(builder, target, builder.mul(args[5], i), _SIDE), align=4)
        return context.get_dummy_value()

    return signature, generate


def _new_dot(width: int) -> Any:
    """Build the innermost loop: the kept weights of one row and block, for `width` tokens."""
    size = min(width, 16)
    parts = [ir.Constant(_LONG, start) for start in range(0, width, size)]
    vector = ir.VectorType(_FLOAT, size)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, positions, start, stop, x, x_at, y, y_at = args
        kinds, zero = signature.args, ir.Constant(_LONG, 0)
        value = _address(context, builder, kinds[0], values, zero)
        position = _address(context, builder, kinds[1], positions, zero)
        inputs = _address(context, builder, kinds[4], x, x_at)
        outputs = _address(context, builder, kinds[6], y, y_at)
        fma_type = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, fma_type, f"llvm.fmuladd.v{size}f32")
        places = [_part(builder, outputs, part, size) for part in parts]
        sums = [cgutils.alloca_once_value(builder, builder.load(p, align=4)) for p in places]
        with cgutils.for_range_slice(builder, start, stop, ir.Constant(_LONG, 1)) as (i, _):
            stored = builder.load(builder.gep(value, [i]))
            weight = _splat(builder, _widen(builder, stored, kinds[0].dtype), size)
            column = builder.zext(builder.load(builder.gep(position, [i])), _LONG)
            row = builder.gep(inputs, [builder.mul(column, ir.Constant(_LONG, width))])
            for total, part in zip(sums, parts, strict=True):
                operand = builder.load(_part(builder, row, part, size), align=4)
                args = [weight, operand, builder.load(total)]
                builder.store(builder.call(fma, args), total)
        for total, place in zip(sums, places, strict=True):
            builder.store(builder.load(total), place, align=4)
        return context.get_dummy_value()

    @intrinsic
    def dot(_: Any, v: Any, p: Any, start: Any, stop: Any, x: Any, xa: Any, y: Any, ya: Any) -> Any:
        index = types.intp
        return types.void(v, p, index, index, x, index, y, index), generate

    return dot


def _compile(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function at its first call, or load what an earlier process compiled."""
    try:
        compiled = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder to write to
        warnings.warn(
            "numba can write to none of its cache folders, so that every process compiles the "
            "sparse kernel again, in some seconds. Set NUMBA_CACHE_DIR to a folder of yours.",
            stacklevel=2,
        )
        compiled = njit(nogil=True)(function)
    return cast("Callable[..., None]", compiled)


def _new_rows(width: int) -> Any:
    """Build the loop over blocks and rows for a tile of `width` tokens."""
    dot = _new_dot(width)

    def multiply(weight: Any, first: int, last: int, x: Any, x_at: int, y: Any, y_at: int) -> None:
        values, positions, starts, bias = weight
        for r in range(first, last):
            for i in range(width):
                y[y_at + (r - first) * width + i] = bias[r]
        for block in range((starts.size - 1) // bias.size):
            place = x_at + block * BLOCK * width
            for r in range(first, last):
                i = block * bias.size + r
                at = y_at + (r - first) * width
                dot(values, positions, starts[i], starts[i + 1], x, place, y, at)

    return njit(nogil=True)(multiply)


_rows_8, _rows_16, _rows_32, _rows_48 = map(_new_rows, (8, 16, 32, 48))


@njit(nogil=True)
def _flip(
    x: Any, at: int, stride: int, rows: int, columns: int, y: Any, to: int, step: int
) -> None:
    """Transpose rows x columns elements from one array into another, in squares where it can."""
    for i in range(0, rows, _SIDE):
        for j in range(0, columns, _SIDE):
            source, target = at + i * stride + j, to + j * step + i
            if i + _SIDE <= rows and j + _SIDE <= columns:
                _transpose(x, source, stride, y, target, step)
            else:
                for k in range(min(_SIDE, rows - i)):
                    for m in range(min(_SIDE, columns - j)):
                        y[target + m * step + k] = x[source + k * stride + m]


def _multiply(
    x: Any, out: Any, tokens: Any, rows: Any, weight: Any, x_tile: Any, y_tile: Any
) -> None:
    """Write the outputs of these tokens and rows, both (first, last).

    Args:
        x, out: float32, flat, of all tokens.
        weight: values, positions, starts and bias.
        x_tile, y_tile: memory for the inputs and outputs of 48 tokens, and where it begins.
    """
    num_tokens = tokens[1] - tokens[0]
    (first, last), num_rows = rows, weight[3].size
    num_columns = x.size * num_rows // out.size
    (x_rows, x_at), (y_rows, y_at) = x_tile, y_tile
    done = 0
    while done < num_tokens:
        left = num_tokens - done
        # 49 to 64 tokens are two tiles of 32
        width = 48 if left > 64 or 32 < left <= 48 else 32 if left > 16 else 16 if left > 8 else 8
        size = min(width, left)
        token = tokens[0] + done
        if size < width:  # the other lanes are not read, but may hold numbers that are slow
            x_rows[x_at : x_at + num_columns * width] = 0.0
        _flip(x, token * num_columns, num_columns, size, num_columns, x_rows, x_at, width)
        if width == 48:
            _rows_48(weight, first, last, x_rows, x_at, y_rows, y_at)
        elif width == 32:
            _rows_32(weight, first, last, x_rows, x_at, y_rows, y_at)
        elif width == 16:
            _rows_16(weight, first, last, x_rows, x_at, y_rows, y_at)
        else:
            _rows_8(weight, first, last, x_rows, x_at, y_rows, y_at)
        to = token * num_rows + first
        _flip(y_rows, y_at, width, last - first, size, out, to, num_rows)
        done += width


multiply_tokens = _compile(_multiply)
