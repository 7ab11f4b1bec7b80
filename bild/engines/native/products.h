// Products of inputs with weights in three precisions, on vectors of sixteen.
//
// Weights are read once a forward and little is done with them, so that the time is the memory's:
// they stay as they are stored, and a row is read once for all tokens of the forward. With float32
// weights all is float32. With bfloat16 weights the inputs of products are rounded to bfloat16 too,
// with int8 weights (one scale a row) to int8 (one scale a token), where the processor multiplies
// these faster; sums stay float32.
//
// It needs GCC or Clang and nothing but the C++ library. All of it is for one translation unit.
//
// Letters: T tokens of this forward, K columns. Rows and columns are multiples of 16.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

// (rows, columns), rows in groups of 16; of a group, for every 4 bytes of columns, its 16 rows
// together. The embedding alone is row-major.
struct Matrix {
  const char* data;
  const float* scales;  // of the rows; int8 only
  const int32_t* sums;  // of the rows; int8 only
  int32_t type;
  int32_t columns;
};

namespace {

constexpr int kLanes = 16;
constexpr int kTogether = 12;  // tokens that one pass over weights serves
constexpr int kAhead = 16384;  // bytes to prefetch ahead, of all groups of rows together
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

template <class V>
inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

inline float sum(Floats v) {
  typedef float Four __attribute__((vector_size(16)));
  Four parts[4];
  std::memcpy(parts, &v, sizeof v);
  const Four s = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// e^x for x <= 0, to about 2 ulp (Cephes' expf); 0 below -87.
inline Floats exp_negative(Floats x) {
  const Floats zero = {}, low = zero - 87.0f;
  const Ints tiny = x < low;
  x = tiny ? low : x;
  const Floats n = __builtin_convertvector(
      __builtin_convertvector(x * 1.44269504088896341f - 0.5f, Ints), Floats);
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &power, sizeof scale);
  return tiny ? zero : p * scale;
}

// ------------------------------------------------------------------------ weights

enum Type : int32_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };

template <int type>
inline Floats widen(const char* row, int64_t i) {
  static_assert(type != kInt8, "int8 is multiplied as it is");
  if constexpr (type == kFloat32) return load<Floats>(row + 4 * i);
  const Words bits = __builtin_convertvector(load<Halves>(row + 2 * i), Words) << 16;
  Floats v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// Sixteen integers from -128 to 255, as bytes.
inline void store_bytes(char* p, Ints v) {
#ifdef __AVX512F__
  const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)v);
#else
  const Bytes bytes = __builtin_convertvector(v, Bytes);
#endif
  std::memcpy(p, &bytes, sizeof bytes);
}

// float32 -> bfloat16, rounded to nearest even.
inline void store_halves(char* p, Floats v) {
#ifdef __AVX512BF16__
  const __m256bh halves = _mm512_cvtneps_pbh((__m512)v);
#else
  const Words bits = load<Words>(&v);
  const Halves halves = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Halves);
#endif
  std::memcpy(p, &halves, sizeof halves);
}

constexpr int64_t size_of(int type) { return type == kFloat32 ? 4 : type == kBFloat16 ? 2 : 1; }

// x (n), n a multiple of 16, as float32 or bfloat16.
void convert(const float* x, int64_t n, int type, char* to) {
  if (type == kFloat32)
    std::memcpy(to, x, 4 * n);
  else
    for (int64_t i = 0; i < n; i += kLanes) store_halves(to + 2 * i, load<Floats>(x + i));
}

// ------------------------------------------------------------------------ products

// How weights of a type are multiplied. A step takes `columns` columns of 16 rows, 64 bytes that
// lie together, and the same columns of one token's input, 4 bytes that go to all lanes: a lane is
// a row, so that sums need no adding up across lanes.
template <int type>
struct Kernel;

template <>
struct Kernel<kFloat32> {
  typedef Floats Vector;
  static constexpr int columns = 1;
  static Vector input(const char* p) {
    float x;
    std::memcpy(&x, p, 4);
    return Floats{} + x;
  }
  static Vector multiply(Vector s, Vector w, Vector x) { return s + w * x; }
  static Floats finish(Vector s, const Matrix&, int64_t, float) { return s; }
};

template <>
struct Kernel<kBFloat16> {
  static constexpr int columns = 2;
#ifdef __AVX512BF16__
  typedef __m512 Vector;
  static Vector input(const char* p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return (__m512)_mm512_set1_epi32(pair);
  }
  static Vector multiply(Vector s, Vector w, Vector x) {
    return _mm512_dpbf16_ps(s, (__m512bh)x, (__m512bh)w);
  }
  static Floats finish(Vector s, const Matrix&, int64_t, float) { return (Floats)s; }
#else
  typedef Floats Vector;
  static Vector input(const char* p) { return Kernel<kFloat32>::input(p); }  // the pair's bits
  static Vector multiply(Vector s, Vector w, Vector x) {
    const Words pairs = load<Words>(&w), inputs = load<Words>(&x);
    const Words low = pairs << 16, high = pairs & 0xffff0000u;
    const Words x_low = inputs << 16, x_high = inputs & 0xffff0000u;
    return s + load<Floats>(&low) * load<Floats>(&x_low) +
           load<Floats>(&high) * load<Floats>(&x_high);
  }
  static Floats finish(Vector s, const Matrix&, int64_t, float) { return s; }
#endif
};

template <>
struct Kernel<kInt8> {
  static constexpr int columns = 4;
  typedef Ints Vector;
  static Vector input(const char* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return Ints{} + four;
  }
#ifdef __AVX512VNNI__  // multiplies unsigned by signed: inputs are stored plus 128
  static constexpr int offset = 128;
  static Vector multiply(Vector s, Vector w, Vector x) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)s, (__m512i)x, (__m512i)w);
  }
#else
  static constexpr int offset = 0;
  static Vector multiply(Vector s, Vector w, Vector x) {
    for (int shift = 24; shift >= 0; shift -= 8)  // the four bytes of a lane, sign extended
      s += ((Ints)((Words)w << shift) >> 24) * ((Ints)((Words)x << shift) >> 24);
    return s;
  }
#endif
  static Floats finish(Vector s, const Matrix& w, int64_t n, float input_scale) {
    const Ints sums = s - offset * load<Ints>(w.sums + n);
    return __builtin_convertvector(sums, Floats) * load<Floats>(w.scales + n) * input_scale;
  }
};

// The input of products, (T, K), as weights of some type are multiplied by it.
struct Input {
  const char* data;
  int64_t stride;       // bytes from token to token
  const float* scales;  // of the tokens; int8 only
  int tokens;
};

// Floats that `prepare` needs for inputs of T tokens and at most K columns.
int64_t prepared_floats(int64_t tokens, int64_t columns) {
  return tokens * (1 + columns + kLanes);
}

// x (T, K), rounded into `buffer` as weights of the type are multiplied by it.
Input prepare(int type, const float* x, int64_t columns, int tokens, float* buffer) {
  // A cache line lies between rows: if they began at multiples of 4096 bytes, as widths like to,
  // all of them would want the same few lines of the processor's first cache.
  const int64_t stride = columns * size_of(type) + 4 * kLanes;
  char* data = reinterpret_cast<char*>(buffer + tokens);
  for (int t = 0; t < tokens; ++t) {
    const float* row = x + t * columns;
    char* to = data + t * stride;
    if (type == kFloat32) {
      std::memcpy(to, row, 4 * columns);
      continue;
    }
    if (type == kBFloat16) {
      for (int64_t k = 0; k < columns; k += kLanes) store_halves(to + 2 * k, load<Floats>(row + k));
      continue;
    }
    Floats top = {}, odd = {};
    for (int64_t k = 0; k < columns; k += kLanes) {
      const Floats v = load<Floats>(row + k), size = v < 0 ? -v : v;
      top = size > top ? size : top;
      odd += v * 0;  // a damaged model's NaN goes on
    }
    float largest = 0;
    for (int i = 0; i < kLanes; ++i) largest = std::max(largest, top[i]);
    buffer[t] = largest / 127 + sum(odd);
    const float inverse = largest > 0 ? 127 / largest : 0;
    for (int64_t k = 0; k < columns; k += kLanes) {
      const Floats v = load<Floats>(row + k) * inverse, half = Floats{} + 0.5f;
      store_bytes(to + k, __builtin_convertvector(v + (v < 0 ? -half : half), Ints) +
                              Kernel<kInt8>::offset);
    }
  }
  return {data, stride, type == kInt8 ? buffer : nullptr, tokens};
}

// out[t][n] = (or +=) sum over k of W[n][k] x[t][k]: G groups of 16 rows from n, T tokens from t0.
// Where x has fewer tokens, the last one is computed again.
template <int type, int G, int T>
inline void block(const Matrix& w, int64_t n, const Input& x, int t0, float* out,
                  int64_t out_stride, bool add) {
  typedef Kernel<type> K;
  typedef typename K::Vector Vector;
  constexpr int64_t step = 4 * kLanes;
  const int64_t steps = w.columns / K::columns, group = steps * step;
  const char* rows = w.data + n / kLanes * group;
  const char* inputs[T];
  Vector sums[G][T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    inputs[t] = x.data + std::min(t0 + t, x.tokens - 1) * x.stride;
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) sums[g][t] = Vector{};
  }
  constexpr int64_t each = kAhead / std::max(G, 2) / step * step;
  const int64_t near = steps - each / step;  // from there on what is ahead is the next G groups'
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t ahead = k < near ? each : each + (G - 1) * group;
    Vector weights[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      const char* at = rows + g * group + k * step;
      __builtin_prefetch(at + ahead, 0, 2);  // to L2; to L1 fewer can be under way
      weights[g] = load<Vector>(at);
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const Vector input = K::input(inputs[t] + 4 * k);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) sums[g][t] = K::multiply(sums[g][t], weights[g], input);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    if (t0 + t >= x.tokens) break;
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      const int64_t row = n + g * kLanes;
      float* o = out + (t0 + t) * out_stride + row;
      const Floats y = K::finish(sums[g][t], w, row, x.scales == nullptr ? 1 : x.scales[t0 + t]);
      store(o, add ? load<Floats>(o) + y : y);
    }
  }
}

// A few tokens, T at a time; rows G groups at a time, then fewer. The sums fill the registers: a
// weight is then loaded once for T products, an input once for G.
template <int type, int G, int T>
void panels(const Matrix& w, int64_t begin, int64_t end, const Input& x, float* out,
            int64_t out_stride, bool add) {
  int64_t n = begin;
  for (; n + G * kLanes <= end; n += G * kLanes)
    for (int t = 0; t < x.tokens; t += T) block<type, G, T>(w, n, x, t, out, out_stride, add);
  if constexpr (G > 1) panels<type, (G > 4 ? 4 : 1), T>(w, n, end, x, out, out_stride, add);
}

// The widest block as a function of its own: inlined beside others it runs out of registers.
template <int type, int G>
[[gnu::noinline]] void widest_block(const Matrix& w, int64_t n, const Input& x, int t0, float* out,
                                    int64_t out_stride, bool add) {
  block<type, G, kTogether>(w, n, x, t0, out, out_stride, add);
}

// All tokens by G groups of rows from n, in as few passes as `kTogether` allows, each about as wide
// as the others: a block wider than what is left would repeat the last token.
template <int type, int G>
void passes(const Matrix& w, int64_t n, const Input& x, float* out, int64_t out_stride, bool add) {
  for (int t = 0; t < x.tokens;) {
    const int left = x.tokens - t, count = (left + kTogether - 1) / kTogether;
    const int width = (left + count - 1) / count;
    if (width <= 6) {
      block<type, G, 6>(w, n, x, t, out, out_stride, add);
      t += 6;
    } else if (width <= 8) {
      block<type, G, 8>(w, n, x, t, out, out_stride, add);
      t += 8;
    } else if (width <= 10) {
      block<type, G, 10>(w, n, x, t, out, out_stride, add);
      t += 10;
    } else {
      widest_block<type, G>(w, n, x, t, out, out_stride, add);
      t += kTogether;
    }
  }
}

template <int type>
void product(const Matrix& w, int64_t begin, int64_t end, const Input& x, float* out,
             int64_t out_stride, bool add) {
  if (x.tokens <= 0) return;
  // float32 weights take the memory longest: two tokens by half as many sums would wait for one
  // another, and seven or eight by two groups of rows would read from too few places at a time.
  constexpr bool widest = type == kFloat32;
  if (x.tokens <= (widest ? 8 : 6)) {
    const auto with = x.tokens == 1   ? panels<type, 4, 1>
                      : x.tokens == 2 ? panels<type, 4, widest ? 4 : 2>
                      : x.tokens <= 4 ? panels<type, 4, 4>
                      : x.tokens <= 6 ? panels<type, 4, 6>
                                      : panels<type, 3, 8>;
    return with(w, begin, end, x, out, out_stride, add);
  }
  int64_t n = begin;
  for (; n + 2 * kLanes <= end; n += 2 * kLanes) passes<type, 2>(w, n, x, out, out_stride, add);
  if (n < end) passes<type, 1>(w, n, x, out, out_stride, add);
}

// Rows begin..end of W x, multiples of 16, for every token, to (or added to) out (T, out_stride).
void product(const Matrix& w, int64_t begin, int64_t end, const Input& x, float* out,
             int64_t out_stride, bool add = false) {
  if (w.type == kFloat32) product<kFloat32>(w, begin, end, x, out, out_stride, add);
  if (w.type == kBFloat16) product<kBFloat16>(w, begin, end, x, out, out_stride, add);
  if (w.type == kInt8) product<kInt8>(w, begin, end, x, out, out_stride, add);
}

}  // namespace
