// T5 on a CPU, one sequence at a time: the encoder, and the decoder by a few tokens, logits out.
// bild/decoders/native compiles this file on the machine it runs on and calls the functions at
// its end; it needs GCC or Clang and nothing but the C++ library.
//
// Decoding reads every weight once a forward and does little with it, so that the time is the
// memory's: weights stay as they are stored, and a row is read once for all tokens of the forward.
// With float32 weights all is float32. With bfloat16 weights the inputs of products are rounded to
// bfloat16 too, with int8 weights (one scale a row) to int8 (one scale a token), where the
// processor multiplies these faster; sums, attention, norms and the residual stream stay float32.
//
// Letters: T tokens of this forward, D model width, H heads, C width of a head, F feed-forward
// width, V vocabulary, S source tokens, P positions the cache holds. C, D, F and P are multiples
// of 16.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int kLanes = 16;
constexpr int kMaxTokens = 16;  // of one forward; longer feeds go in pieces
constexpr int kTogether = 12;   // tokens that one pass over weights serves
constexpr int kQueries = 4;     // that one pass over keys and values serves
constexpr int kAhead = 4096;    // bytes to prefetch ahead in each group of rows
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

}  // namespace

extern "C" {

// (rows, columns), rows in groups of 16; of a group, for every 4 bytes of columns, its 16 rows
// together. The embedding alone is row-major.
struct Matrix {
  const char* data;
  const float* scales;  // of the rows; int8 only
  const int32_t* sums;  // of the rows; int8 only
  int32_t type;
  int32_t columns;
};

struct Layer {
  const float *self_norm, *cross_norm, *feed_norm;  // (D)
  Matrix q, k, v, o;                                 // (H C, D) x 3, (D, H C)
  Matrix cross_q, cross_k, cross_v, cross_o;         // the same; a decoder's only
  Matrix in, gate, out;                              // (F, D) x 2, (D, F); gate: in GeGLU only
  const float* bias;  // (H, P) by position of the key, the query standing at P - 1;
                      // an encoder's (H, 2 P - 1), with keys after it too
};

struct Model {
  const Layer* layers;
  int32_t layer_count, width, heads, head_width, feed_width, vocabulary;
  int32_t activation;  // 0 relu, 1 gelu (tanh), 2 gelu (erf), 3 silu
  int32_t threads;
  float epsilon, output_scale;
  const float* final_norm;
  Matrix embedding, head;
};

struct Session {
  int32_t capacity;                       // P
  int32_t length;                         // tokens cached
  int32_t source, source_stride;          // S, and S rounded up to a multiple of 16
  int32_t cross_type;                     // of what is cached of the source: float32 or bfloat16
  float *keys, *values;                   // per layer (H, P / 16, C, 16) and (H, P, C)
  char *cross_keys, *cross_values;        // the same of the source, with source_stride for P
  float* logits;                          // (kMaxTokens, V rounded up to 16)
  float* scratch;                         // bild_t5_scratch_floats() of them
};
}

namespace {

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
  const int64_t near = steps - kAhead / step;  // from there on what is ahead is the next G groups'
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t ahead = k < near ? kAhead : kAhead + (G - 1) * group;
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

// All tokens, T at a time; rows G groups at a time, then fewer. The sums fill the registers: a
// weight is then loaded once for T products, an input once for G.
template <int type, int G, int T>
void panels(const Matrix& w, int64_t begin, int64_t end, const Input& x, float* out,
            int64_t out_stride, bool add) {
  int64_t n = begin;
  for (; n + G * kLanes <= end; n += G * kLanes)
    for (int t = 0; t < x.tokens; t += T) block<type, G, T>(w, n, x, t, out, out_stride, add);
  if constexpr (G > 1) panels<type, (G > 4 ? 4 : 1), T>(w, n, end, x, out, out_stride, add);
}

template <int type>
void product(const Matrix& w, int64_t begin, int64_t end, const Input& x, float* out,
             int64_t out_stride, bool add) {
  if (x.tokens <= 0) return;
  const int passes = (x.tokens + kTogether - 1) / kTogether;
  const int tokens = (x.tokens + passes - 1) / passes;
  const auto with = tokens == 1   ? panels<type, 8, 1>
                    : tokens == 2 ? panels<type, 8, 2>
                    : tokens <= 4 ? panels<type, 4, 4>
                    : tokens <= 6 ? panels<type, 4, 6>
                    : tokens <= 8 ? panels<type, 2, 8>
                    : tokens <= 10 ? panels<type, 2, 10>
                                   : panels<type, 2, kTogether>;
  with(w, begin, end, x, out, out_stride, add);
}

// Rows begin..end of W x, multiples of 16, for every token, to (or added to) out (T, out_stride).
void product(const Matrix& w, int64_t begin, int64_t end, const Input& x, float* out,
             int64_t out_stride, bool add = false) {
  if (w.type == kFloat32) product<kFloat32>(w, begin, end, x, out, out_stride, add);
  if (w.type == kBFloat16) product<kBFloat16>(w, begin, end, x, out, out_stride, add);
  if (w.type == kInt8) product<kInt8>(w, begin, end, x, out, out_stride, add);
}

// ------------------------------------------------------------------------ layers

// T5LayerNorm: no mean, no bias. Every thread makes the whole of it for itself.
void normalize(const float* x, const float* weight, float epsilon, int width, int tokens,
               float* out) {
  for (int t = 0; t < tokens; ++t, x += width, out += width) {
    Floats squares = {};
    for (int i = 0; i < width; i += kLanes) {
      const Floats v = load<Floats>(x + i);
      squares += v * v;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / width + epsilon);
    for (int i = 0; i < width; i += kLanes)
      store(out + i, load<Floats>(x + i) * scale * load<Floats>(weight + i));
  }
}

// softmax(scores) over the first `count`; those after them, up to the multiple of 16 at or after
// `end`, become 0. Returns 1 / sum; the weights stay unnormalised.
float soften(float* scores, int count, int end) {
  for (int j = count; j < end || j % kLanes; ++j)
    scores[j] = -std::numeric_limits<float>::infinity();
  Floats tops = Floats{} - std::numeric_limits<float>::infinity(), total = {};
  for (int j = 0; j < end; j += kLanes) {
    const Floats v = load<Floats>(scores + j);
    tops = v > tops ? v : tops;
  }
  float top = tops[0];
  for (int i = 1; i < kLanes; ++i) top = std::max(top, tops[i]);
  for (int j = 0; j < end; j += kLanes) {
    const Floats p = exp_negative(load<Floats>(scores + j) - top);
    store(scores + j, p);
    total += p;
  }
  return 1.0f / sum(total);
}

// What the queries of one head see: keys (P / 16, C, 16) and values (P, C) of the first `count`
// positions, and each query one more than the one before it if `causal`. The first query's biases
// by position, the second's are one earlier, and so on; or none. `mask` is added to all scores.
struct View {
  const char *keys, *values;
  int count;
  bool causal;
  const float *bias, *mask;
};

// Queries (T, stride) of one head, Q at a time, then fewer -> out (T, stride).
template <int type, int Q = kQueries>
void attend(const float* queries, int T, int64_t stride, View view, int C, float* scores,
            int64_t scores_stride, float* out) {
  int t = 0;
  for (; t + Q <= T; t += Q, queries += Q * stride, out += Q * stride) {
    const int end = view.count + (view.causal ? Q - 1 : 0);
    for (int j = 0; j < end; j += kLanes) {
      Floats even[Q] = {}, odd[Q] = {};
      for (int c = 0; c < C; c += 2) {
        const Floats a = widen<type>(view.keys, int64_t(j) * C + c * kLanes);
        const Floats b = widen<type>(view.keys, int64_t(j) * C + (c + 1) * kLanes);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          even[q] += a * queries[q * stride + c];
          odd[q] += b * queries[q * stride + c + 1];
        }
      }
      for (int q = 0; q < Q; ++q) store(scores + q * scores_stride + j, even[q] + odd[q]);
    }
    float scales[Q];
    for (int q = 0; q < Q; ++q) {
      float* row = scores + q * scores_stride;
      const int count = view.count + (view.causal ? q : 0);
      if (view.bias != nullptr)
        for (int j = 0; j < count; ++j) row[j] += view.bias[j - q];
      if (view.mask != nullptr)
        for (int j = 0; j < count; ++j) row[j] += view.mask[j];
      scales[q] = soften(row, count, end);
    }
    for (int c = 0; c < C; c += kLanes) {
      Floats even[Q] = {}, odd[Q] = {};
      int j = 0;
      for (; j + 2 <= end; j += 2) {
        const Floats a = widen<type>(view.values, int64_t(j) * C + c);
        const Floats b = widen<type>(view.values, int64_t(j + 1) * C + c);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          even[q] += a * scores[q * scores_stride + j];
          odd[q] += b * scores[q * scores_stride + j + 1];
        }
      }
      for (; j < end; ++j)
        for (int q = 0; q < Q; ++q)
          even[q] += widen<type>(view.values, int64_t(j) * C + c) * scores[q * scores_stride + j];
      for (int q = 0; q < Q; ++q) store(out + q * stride + c, (even[q] + odd[q]) * scales[q]);
    }
    view.count += view.causal ? Q : 0;
    if (view.bias != nullptr) view.bias -= Q;
  }
  if constexpr (Q > 1)
    attend<type, Q / 2>(queries, T - t, stride, view, C, scores, scores_stride, out);
}

// x sigmoid(z) is silu with z = x, and the tanh form of gelu with z = 2 sqrt(2 / pi) (x + ...).
inline Floats activate(Floats x, int kind) {
  const Floats zero = {};
  if (kind == 0) return x < 0 ? zero : x;
  if (kind == 2) {
    for (int i = 0; i < kLanes; ++i) x[i] *= 0.5f * (1.0f + std::erf(x[i] * 0.7071067811865476f));
    return x;
  }
  const Floats z = kind == 1 ? x * (1.5957691216057308f + 0.0713548162726009f * x * x) : x;
  const Floats p = exp_negative(z < 0 ? z : -z);
  return x * (z < 0 ? p : zero + 1.0f) / (p + 1.0f);
}

struct Best {
  int32_t token;
  float logit;
  float sum;  // of e^(logit of v - logit), over v: 1 / sum is the token's probability
};

int64_t rounded_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Keys (T, stride) of one head, to positions start.. of (P / 16, C, 16).
void store_keys(const float* x, int T, int64_t stride, int C, int start, float* keys) {
  for (int t = 0; t < T; ++t) {
    const int64_t position = start + t;
    float* to = keys + position / kLanes * kLanes * C + position % kLanes;
    for (int c = 0; c < C; ++c) to[c * kLanes] = x[t * stride + c];
  }
}

// Keys and values of one layer: (H, P / 16, C, 16) and (H, P, C).
struct Cache {
  float *keys, *values;
  int64_t positions;
};

// One thread of a team.
struct Thread {
#ifdef _OPENMP
  const int index = omp_get_thread_num(), count = omp_get_num_threads();
#else
  const int index = 0, count = 1;
#endif

  // This thread's part of n rows, in steps of `step`.
  void share(int64_t n, int64_t step, int64_t& begin, int64_t& end) const {
    const int64_t steps = (n + step - 1) / step;
    begin = std::min(n, steps * index / count * step);
    end = std::min(n, steps * (index + 1) / count * step);
  }
};

// A thread and its part in the work on T tokens. The team shares some arrays; between writing a
// part of one and reading all of it everybody waits for everybody.
struct Worker : Thread {
  const Model& m;
  const int T;
  float* const x;  // (T, D), the residual stream
  const int D = m.width, C = m.head_width, F = m.feed_width, HC = m.heads * C;
  const int type = m.layers[0].q.type;
  const int64_t positions;  // that a query sees at most, a multiple of 16
  int64_t d0, d1, f0, f1, h0, h1;
  float *query, *context, *feed, *gated;  // shared: (T, H C) x 2, (T, F) x 2
  float *normed, *scores, *rounded;       // its own: (T, D), (kQueries, positions), of `prepare`

  Worker(const Model& model, int tokens, float* stream, int64_t seen, float* scratch)
      : m(model), T(tokens), x(stream), positions(seen) {
    share(D, kLanes, d0, d1);
    share(F, kLanes, f0, f1);
    share(m.heads, 1, h0, h1);
    query = scratch;
    context = query + int64_t(T) * HC;
    feed = context + int64_t(T) * HC;
    gated = feed + int64_t(T) * F;
    normed = gated + int64_t(T) * F + index * own_floats(m, T, positions);
    scores = normed + int64_t(T) * D;
    rounded = scores + kQueries * positions;
  }

  static int64_t own_floats(const Model& m, int64_t T, int64_t positions) {
    const int64_t widest = std::max({m.width, m.feed_width, m.heads * m.head_width});
    return T * m.width + kQueries * positions + prepared_floats(T, widest);
  }

  // The scratch memory of a team.
  static int64_t floats(const Model& m, int64_t T, int64_t positions) {
    const int64_t shared = 2 * int64_t(m.heads) * m.head_width + 2 * int64_t(m.feed_width);
    return T * shared + m.threads * own_floats(m, T, positions);
  }

  // Rows `tokens` of the embedding, to x.
  void embed(const int32_t* tokens) const {
    const Matrix& e = m.embedding;
    for (int t = 0; t < T; ++t) {
      const char* row = e.data + int64_t(tokens[t]) * e.columns * size_of(e.type);
      for (int64_t d = d0; d < d1; d += kLanes)
        store(x + int64_t(t) * D + d,
              e.type == kFloat32 ? widen<kFloat32>(row, d) : widen<kBFloat16>(row, d));
    }
#pragma omp barrier
  }

  Input normalized(const float* weight) const {
    normalize(x, weight, m.epsilon, D, T, normed);
    return prepare(type, normed, D, T, rounded);
  }

  // x += W y, y (T, K) being made by all.
  void add(const Matrix& w, const float* y) const {
#pragma omp barrier
    product(w, d0, d1, prepare(type, y, w.columns, T, rounded), x, D, true);
#pragma omp barrier
  }

  // A thread makes the queries, keys and values of its own heads, so that it need not wait for the
  // others before it attends. The tokens stand at `start` and after it. `mask` is (T), 0 or -inf.
  void self_attention(const Layer& layer, const Cache& cache, int start, bool causal,
                      const float* mask = nullptr) const {
    const Input input = normalized(layer.self_norm);
    const int64_t P = cache.positions, biases = causal ? P : 2 * P - 1;
    product(layer.q, h0 * C, h1 * C, input, query, HC);
    product(layer.k, h0 * C, h1 * C, input, context, HC);
    for (int64_t h = h0; h < h1; ++h)
      store_keys(context + h * C, T, HC, C, start, cache.keys + h * P * C);
    product(layer.v, h0 * C, h1 * C, input, context, HC);
    for (int64_t h = h0; h < h1; ++h) {
      const float* keys = cache.keys + h * P * C;
      float* values = cache.values + h * P * C;
      for (int64_t t = 0; t < T; ++t)
        std::memcpy(values + (start + t) * C, context + t * HC + h * C, 4 * C);
      const View view = {reinterpret_cast<const char*>(keys), reinterpret_cast<char*>(values),
                         start + (causal ? 1 : T), causal, layer.bias + h * biases + P - 1 - start,
                         mask};
      attend<kFloat32>(query + h * C, T, HC, view, C, scores, positions, context + h * C);
    }
    add(layer.o, context);
  }

  // Over keys and values (H, source_stride, C) of the source.
  void cross_attention(const Layer& layer, const Session& s, const char* keys,
                       const char* values) const {
    product(layer.cross_q, h0 * C, h1 * C, normalized(layer.cross_norm), query, HC);
    const auto over = s.cross_type == kFloat32 ? attend<kFloat32> : attend<kBFloat16>;
    const int64_t head = int64_t(s.source_stride) * C * size_of(s.cross_type);
    for (int64_t h = h0; h < h1; ++h)
      over(query + h * C, T, HC, {keys + h * head, values + h * head, s.source, false, nullptr, nullptr},
           C, scores, positions, context + h * C);
    add(layer.cross_o, context);
  }

  void feed_forward(const Layer& layer) const {
    const Input input = normalized(layer.feed_norm);
    const bool gate = layer.gate.data != nullptr;
    product(layer.in, f0, f1, input, feed, F);
    if (gate) product(layer.gate, f0, f1, input, gated, F);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t i = t * F + f0; i < t * F + f1; i += kLanes) {
        const Floats y = activate(load<Floats>(feed + i), m.activation);
        store(feed + i, gate ? y * load<Floats>(gated + i) : y);
      }
    add(layer.out, feed);
  }
};

// Where the arrays of one decoder forward lie in the scratch memory; with none, how much that is.
struct Scratch {
  float* x;       // (T, D)
  Best* parts;    // (threads, T)
  float* shared;  // a team's
  int64_t positions, floats;

  Scratch(const Model& m, const Session& s) {
    const int64_t T = kMaxTokens;
    positions = std::max(s.capacity, s.source_stride);
    x = s.scratch;
    parts = reinterpret_cast<Best*>(x + T * m.width);
    shared = reinterpret_cast<float*>(parts + m.threads * T);
    floats = shared - x + Worker::floats(m, T, positions);
  }
};

// Feeds T <= kMaxTokens tokens. Rows first_row.. of the logits are made, (T - first_row, V rounded
// up), and for each of them the best token.
void forward(const Model& m, Session& s, const int32_t* tokens, int T, int first_row,
             float* logits, Best* best) {
  const int64_t V = m.vocabulary, stride = rounded_up(V);
  const int rows = T - first_row;
  const Scratch scratch(m, s);

#pragma omp parallel num_threads(m.threads)
  {
    const Worker worker(m, T, scratch.x, scratch.positions, scratch.shared);
    const int64_t D = worker.D, cached = int64_t(worker.HC) * s.capacity;
    const int64_t crossed = int64_t(worker.HC) * s.source_stride * size_of(s.cross_type);
    worker.embed(tokens);
    for (int64_t l = 0; l < m.layer_count; ++l) {
      const Layer& layer = m.layers[l];
      worker.self_attention(layer, {s.keys + l * cached, s.values + l * cached, s.capacity},
                            s.length, true);
      worker.cross_attention(layer, s, s.cross_keys + l * crossed, s.cross_values + l * crossed);
      worker.feed_forward(layer);
    }

    // The head; of each row, this thread's part of the best token and of the sum.
    float* normed = worker.normed;
    normalize(scratch.x + first_row * D, m.final_norm, m.epsilon, D, rows, normed);
    for (int64_t i = 0; i < rows * D; ++i) normed[i] *= m.output_scale;
    int64_t v0, v1;
    worker.share(stride, kLanes, v0, v1);
    product(m.head, v0, v1, prepare(worker.type, normed, D, rows, worker.rounded), logits, stride);
    v1 = std::min(v1, V);
    for (int r = 0; r < rows; ++r) {
      const float* row = logits + r * stride;
      Best part = {int32_t(v0), -std::numeric_limits<float>::infinity(), 0};
      for (int64_t v = v0; v < v1; ++v)
        if (row[v] > part.logit) part.logit = row[v], part.token = int32_t(v);
      Floats sums = {};
      int64_t v = v0;
      for (; v + kLanes <= v1; v += kLanes)
        sums += exp_negative(load<Floats>(row + v) - part.logit);
      for (; v < v1; ++v) part.sum += std::exp(row[v] - part.logit);
      part.sum += sum(sums);
      scratch.parts[worker.index * kMaxTokens + r] = part;
    }
#pragma omp barrier
#pragma omp single
    for (int r = 0; r < rows; ++r) {
      const auto part = [&](int i) { return scratch.parts[i * kMaxTokens + r]; };
      Best b = part(0);
      for (int i = 1; i < worker.count; ++i)
        if (part(i).logit > b.logit) b = part(i);
      float total = 0;
      for (int i = 0; i < worker.count; ++i)
        total += part(i).sum * std::exp(part(i).logit - b.logit);
      best[r] = {b.token, b.logit, total};
    }
  }
  s.length += T;
}

// Floats that `begin` needs: keys or values (S, H C), the states as inputs of products, and a
// head's keys for each thread.
int64_t begin_floats(const Model& m, const Session& s) {
  const int64_t S = s.source, C = m.head_width;
  return S * m.heads * C + prepared_floats(S, m.width) + m.threads * C * s.source_stride;
}

// Cross-attention keys and values of every layer, from the encoder's states (S, D).
void begin(const Model& m, const Session& s, const float* states) {
  const int64_t S = s.source, C = m.head_width, HC = m.heads * C;
  const int64_t head = s.source_stride * C, size = size_of(s.cross_type);
  float* made = s.scratch;
  float* rounded = made + S * HC;
  const Input input = prepare(m.layers[0].q.type, states, m.width, S, rounded);
#pragma omp parallel num_threads(m.threads)
  {
    const Thread thread;
    int64_t h0, h1;
    thread.share(m.heads, 1, h0, h1);
    float* transposed = rounded + prepared_floats(S, m.width) + thread.index * head;
    for (int64_t l = 0; l < m.layer_count; ++l) {
      const Layer& layer = m.layers[l];
      product(layer.cross_k, h0 * C, h1 * C, input, made, HC);
      for (int64_t h = h0; h < h1; ++h) {
        store_keys(made + h * C, S, HC, C, 0, transposed);
        convert(transposed, head, s.cross_type, s.cross_keys + (l * m.heads + h) * head * size);
      }
      product(layer.cross_v, h0 * C, h1 * C, input, made, HC);
      for (int64_t h = h0; h < h1; ++h) {
        char* values = s.cross_values + (l * m.heads + h) * head * size;
        for (int64_t j = 0; j < S; ++j)
          convert(made + j * HC + h * C, C, s.cross_type, values + j * C * size);
      }
    }
  }
}

// Floats that `encode` needs beside its output: keys and values of one layer, and a team's.
int64_t encode_floats(const Model& m, int64_t S, int64_t P) {
  return 2 * int64_t(m.heads) * m.head_width * P + Worker::floats(m, S, P);
}

// The encoder: tokens (S) -> states (S, D). Biases are (H, 2 P - 1), P >= S; the mask is (S) or none.
void encode(const Model& m, const int32_t* tokens, int S, int64_t P, const float* mask, float* x,
            float* scratch) {
  const int64_t size = int64_t(m.heads) * m.head_width * P;
  const Cache cache = {scratch, scratch + size, P};
#pragma omp parallel num_threads(m.threads)
  {
    const Worker worker(m, S, x, P, scratch + 2 * size);
    worker.embed(tokens);
    for (int l = 0; l < m.layer_count; ++l) {
      worker.self_attention(m.layers[l], cache, 0, false, mask);
      worker.feed_forward(m.layers[l]);
    }
    int64_t t0, t1;
    worker.share(S, 1, t0, t1);
    float* part = x + t0 * m.width;
    normalize(part, m.final_norm, m.epsilon, m.width, int(t1 - t0), part);
  }
}

// Of the best token; NaN where the model is damaged, and the token then means nothing.
double probability(const Best& b) { return 1.0 / b.sum; }

}  // namespace

extern "C" {

// What the caller has to know the same: sizes of the structures above, and two limits.
void bild_t5_layout(int32_t* layout) {
  const int32_t sizes[] = {sizeof(Matrix),  sizeof(Layer), sizeof(Model),
                           sizeof(Session), kLanes,        kMaxTokens};
  std::memcpy(layout, sizes, sizeof sizes);
}

int64_t bild_t5_encode_floats(const Model* m, int32_t source, int32_t positions) {
  return encode_floats(*m, source, positions);
}

// The encoder's states (S, D) of S tokens; `positions` is P of its biases. `mask` is (S), 0 for
// tokens and -inf for padding, or null.
void bild_t5_encode(const Model* m, const int32_t* tokens, int32_t source, int32_t positions,
                    const float* mask, float* states, float* scratch) {
  if (source > 0) encode(*m, tokens, source, positions, mask, states, scratch);
}

int64_t bild_t5_scratch_floats(const Model* m, const Session* s) {
  return std::max(Scratch(*m, *s).floats, begin_floats(*m, *s));
}

// Starts a sequence over the encoder's states (S, D).
void bild_t5_begin(const Model* m, Session* s, const float* states) {
  if (s->source > 0) begin(*m, *s, states);
  s->length = 0;
}

// Feeds `count` tokens; their logits go to `logits`, (count, V rounded up to 16).
void bild_t5_feed(const Model* m, Session* s, const int32_t* tokens, int32_t count, float* logits) {
  Best best[kMaxTokens];
  for (int32_t i = 0; i < count; i += kMaxTokens)
    forward(*m, *s, tokens + i, std::min(kMaxTokens, count - i), 0,
            logits + i * rounded_up(m->vocabulary), best);
}

// Feeds `pending` and writes greedily (Decoder.draft): up to `limit` tokens, up to an
// end-of-sequence id, or until a probability is below `threshold` or NaN. `written` and
// `probabilities` have room for `limit`; a token that is not written stands after those that are.
// Returns the number of probabilities: one a forward.
int32_t bild_t5_draft(const Model* m, Session* s, const int32_t* pending, int32_t count,
                      int32_t limit, double threshold, const int32_t* eos, int32_t eos_count,
                      int32_t* written, double* probabilities, int32_t* written_count) {
  *written_count = 0;
  if (count <= 0) return 0;
  for (int32_t i = 0; i < limit; ++i) {
    Best best = {};
    for (int32_t at = 0, T; at < count; at += T) {
      T = std::min(kMaxTokens, count - at);
      forward(*m, *s, pending + at, T, T - 1, s->logits, &best);
    }
    probabilities[i] = probability(best);
    written[i] = best.token;
    if (!(probabilities[i] >= threshold)) return i + 1;
    *written_count = i + 1;
    pending = written + i;
    count = 1;
    if (std::find(eos, eos + eos_count, best.token) != eos + eos_count) return i + 1;
  }
  return limit;
}

// Feeds `pending` and judges the drafted tokens (Decoder.verify). `tokens` and `probabilities`
// have room for count - first_row, `distances` for drafted_count.
void bild_t5_verify(const Model* m, Session* s, const int32_t* pending, int32_t count,
                    const int32_t* drafted, int32_t drafted_count, int32_t first_row,
                    int32_t* tokens, double* probabilities, double* distances) {
  Best best[kMaxTokens];
  for (int32_t at = 0, T; at < count; at += T) {
    T = std::min(kMaxTokens, count - at);
    const int32_t first = std::min(std::max(first_row - at, 0), T - 1);
    forward(*m, *s, pending + at, T, first, s->logits, best);
    for (int32_t r = std::max(first_row, at + first); r < at + T; ++r) {
      const Best& b = best[r - at - first];
      const int32_t i = r - first_row;
      tokens[i] = b.token;
      probabilities[i] = probability(b);
      if (i < drafted_count)
        distances[i] = double(b.logit) + std::log(double(b.sum)) -
                       s->logits[(r - at - first) * rounded_up(m->vocabulary) + drafted[i]];
    }
  }
}
}
