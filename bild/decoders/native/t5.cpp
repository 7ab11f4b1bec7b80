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
constexpr int kMaxTokens = 64;  // of one forward
constexpr int kAhead = 1024;    // bytes to prefetch ahead in each group of rows
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

inline uint16_t round_to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

constexpr int64_t size_of(int type) { return type == kFloat32 ? 4 : type == kBFloat16 ? 2 : 1; }

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
  int32_t cross_type;                     // float32 or bfloat16
  int32_t max_tokens;                     // T at most; longer feeds go in pieces
  float *keys, *values;                   // per layer (H, C, P) and (H, P, C)
  char *cross_keys, *cross_values;        // per layer (H, C, source_stride) and (S, H, C)
  float* logits;                          // (max_tokens, V rounded up to 16)
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
  static Vector multiply(Vector s, const char* w, Vector x) { return s + load<Floats>(w) * x; }
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
  static Vector multiply(Vector s, const char* w, Vector x) {
    return _mm512_dpbf16_ps(s, (__m512bh)_mm512_loadu_si512(w), (__m512bh)x);
  }
  static Floats finish(Vector s, const Matrix&, int64_t, float) { return (Floats)s; }
#else
  typedef Floats Vector;
  static Vector input(const char* p) { return Kernel<kFloat32>::input(p); }  // the pair's bits
  static Vector multiply(Vector s, const char* w, Vector x) {
    const Words pairs = load<Words>(w), inputs = load<Words>(&x);
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
  static Vector multiply(Vector s, const char* w, Vector x) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)s, (__m512i)x, _mm512_loadu_si512(w));
  }
#else
  static constexpr int offset = 0;
  static Vector multiply(Vector s, const char* w, Vector x) {
    const Ints rows = load<Ints>(w);
    for (int shift = 24; shift >= 0; shift -= 8)  // the four bytes of a lane, sign extended
      s += ((Ints)((Words)rows << shift) >> 24) * ((Ints)((Words)x << shift) >> 24);
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
int64_t prepared_floats(int64_t tokens, int64_t columns) { return tokens * (1 + columns / 2); }

// x (T, K), rounded into `buffer` as weights of the type are multiplied by it.
Input prepare(int type, const float* x, int64_t columns, int tokens, float* buffer) {
  if (type == kFloat32) return {reinterpret_cast<const char*>(x), 4 * columns, nullptr, tokens};
  const int64_t stride = columns * size_of(type);
  char* data = reinterpret_cast<char*>(buffer + tokens);
  for (int t = 0; t < tokens; ++t) {
    const float* row = x + t * columns;
    char* to = data + t * stride;
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
  return {data, stride, buffer, tokens};
}

// out[t][n] = (or +=) sum over k of W[n][k] x[t][k]: G groups of 16 rows from n, T tokens from t0.
template <int type, int G, int T>
inline void block(const Matrix& w, int64_t n, const Input& x, int t0, float* out,
                  int64_t out_stride, bool add) {
  typedef Kernel<type> K;
  typename K::Vector sums[G][T];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[g][t] = typename K::Vector{};
  constexpr int64_t step = 4 * kLanes;
  const int64_t steps = w.columns / K::columns, group = steps * step;
  const char* rows = w.data + n / kLanes * group;
  const char* input = x.data + t0 * x.stride;
  for (int64_t k = 0; k < steps; ++k) {
    typename K::Vector xs[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) xs[t] = K::input(input + t * x.stride + 4 * k);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      const char* at = rows + g * group + k * step;
      __builtin_prefetch(at + kAhead);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sums[g][t] = K::multiply(sums[g][t], at, xs[t]);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const int64_t row = n + g * kLanes;
      float* o = out + (t0 + t) * out_stride + row;
      const Floats y = K::finish(sums[g][t], w, row, x.scales == nullptr ? 1 : x.scales[t0 + t]);
      store(o, add ? load<Floats>(o) + y : y);
    }
}

template <int type, int G>
inline void tokens_by_four(const Matrix& w, int64_t n, const Input& x, float* out,
                           int64_t out_stride, bool add) {
  int t = 0;
  for (; t + 4 <= x.tokens; t += 4) block<type, G, 4>(w, n, x, t, out, out_stride, add);
  if (x.tokens - t == 3) block<type, G, 3>(w, n, x, t, out, out_stride, add);
  if (x.tokens - t == 2) block<type, G, 2>(w, n, x, t, out, out_stride, add);
  if (x.tokens - t == 1) block<type, G, 1>(w, n, x, t, out, out_stride, add);
}

template <int type>
void product(const Matrix& w, int64_t begin, int64_t end, const Input& x, float* out,
             int64_t out_stride, bool add) {
  int64_t n = begin;
  if (x.tokens == 1)
    for (; n + 8 * kLanes <= end; n += 8 * kLanes)
      block<type, 8, 1>(w, n, x, 0, out, out_stride, add);
  for (; n + 4 * kLanes <= end; n += 4 * kLanes)
    tokens_by_four<type, 4>(w, n, x, out, out_stride, add);
  for (; n < end; n += kLanes) tokens_by_four<type, 1>(w, n, x, out, out_stride, add);
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

// softmax(scores) for `count` of them; what lies between count and the next multiple of 16 is
// overwritten. Returns 1 / sum; the weights stay unnormalised.
float soften(float* scores, int count) {
  for (int j = count; j % kLanes; ++j) scores[j] = -std::numeric_limits<float>::infinity();
  float top = scores[0];
  for (int j = 1; j < count; ++j) top = std::max(top, scores[j]);
  Floats total = {};
  for (int j = 0; j < count; j += kLanes) {
    const Floats p = exp_negative(load<Floats>(scores + j) - top);
    store(scores + j, p);
    total += p;
  }
  return 1.0f / sum(total);
}

// One head, one query: keys (C, key_stride) and values (., value_stride) of `type`, over the first
// `count` positions; bias (count) is added where there is one.
template <int type>
void attend(const float* query, const char* keys, int64_t key_stride, const char* values,
            int64_t value_stride, int count, int head_width, const float* bias, float* scores,
            float* out) {
  for (int j = 0; j < count; j += kLanes) {
    Floats even = {}, odd = {};
    for (int c = 0; c < head_width; c += 2) {
      even += widen<type>(keys, c * key_stride + j) * query[c];
      odd += widen<type>(keys, (c + 1) * key_stride + j) * query[c + 1];
    }
    store(scores + j, even + odd);
  }
  if (bias != nullptr)
    for (int j = 0; j < count; ++j) scores[j] += bias[j];
  const float scale = soften(scores, count);
  for (int c = 0; c < head_width; c += kLanes) {
    Floats even = {}, odd = {};
    int j = 0;
    for (; j + 2 <= count; j += 2) {
      even += widen<type>(values, j * value_stride + c) * scores[j];
      odd += widen<type>(values, (j + 1) * value_stride + c) * scores[j + 1];
    }
    if (j < count) even += widen<type>(values, j * value_stride + c) * scores[j];
    store(out + c, (even + odd) * scale);
  }
}

inline float activate(float x, int kind) {
  switch (kind) {
    case 0: return std::max(x, 0.0f);
    case 1: return 0.5f * x * (1.0f + std::tanh(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case 2: return 0.5f * x * (1.0f + std::erf(x * 0.7071067811865476f));
    default: return x / (1.0f + std::exp(-x));
  }
}

struct Best {
  int32_t token;
  float logit;
  float sum;  // of e^(logit of v - logit), over v: 1 / sum is the token's probability
};

int64_t rounded_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// The widest input of a product.
int64_t widest(const Model& m) {
  return std::max(std::max(m.width, m.feed_width), m.heads * m.head_width);
}

// A thread's own: normed (T, D), scores (P or S), rounded inputs.
int64_t thread_floats(const Model& m, const Session& s) {
  return int64_t(s.max_tokens) * m.width + std::max(s.capacity, s.source_stride) +
         prepared_floats(s.max_tokens, widest(m));
}

// Where the arrays of one forward lie in the scratch memory; with none, how much that is.
struct Scratch {
  float *x, *query, *context, *feed, *gated, *threads;
  Best* parts;  // (threads, T)
  int64_t floats;

  Scratch(const Model& m, const Session& s) {
    const int64_t T = s.max_tokens, inner = int64_t(m.heads) * m.head_width;
    x = s.scratch;                   // (T, D), the residual stream
    query = x + T * m.width;         // (T, H C)
    context = query + T * inner;     // (T, H C)
    feed = context + T * inner;      // (T, F)
    gated = feed + T * m.feed_width;  // (T, F)
    threads = gated + T * m.feed_width;
    float* end = threads + m.threads * thread_floats(m, s);
    parts = reinterpret_cast<Best*>(end);
    floats = end - x + m.threads * T * int64_t(sizeof(Best) / sizeof(float));
  }
};

// One thread of the team, and its share of the work.
struct Worker {
#ifdef _OPENMP
  const int index = omp_get_thread_num(), count = omp_get_num_threads();
#else
  const int index = 0, count = 1;
#endif

  // This worker's part of n rows, in steps of `step`.
  void share(int64_t n, int64_t step, int64_t& begin, int64_t& end) const {
    const int64_t steps = (n + step - 1) / step;
    begin = std::min(n, steps * index / count * step);
    end = std::min(n, steps * (index + 1) / count * step);
  }
};

// Rows `tokens` of the embedding, columns d0..d1 of them, to x (T, D).
void embed(const Model& m, const int32_t* tokens, int T, int64_t d0, int64_t d1, float* x) {
  const Matrix& e = m.embedding;
  for (int t = 0; t < T; ++t) {
    const char* row = e.data + int64_t(tokens[t]) * e.columns * size_of(e.type);
    for (int64_t d = d0; d < d1; d += kLanes)
      store(x + int64_t(t) * m.width + d,
            e.type == kFloat32 ? widen<kFloat32>(row, d) : widen<kBFloat16>(row, d));
  }
}

// Rows f0..f1 of the feed-forward's inner layer, to feed (T, F).
void feed_inner(const Model& m, const Layer& layer, const Input& normed, int64_t f0, int64_t f1,
                float* feed, float* gated) {
  const int F = m.feed_width;
  product(layer.in, f0, f1, normed, feed, F);
  if (layer.gate.data != nullptr) product(layer.gate, f0, f1, normed, gated, F);
  for (int t = 0; t < normed.tokens; ++t)
    for (int64_t f = f0; f < f1; ++f) {
      float& y = feed[int64_t(t) * F + f];
      y = activate(y, m.activation);
      if (layer.gate.data != nullptr) y *= gated[int64_t(t) * F + f];
    }
}

// Columns of x (T, H C) that belong to a head, (C, stride): keys stand so.
void transpose(const float* x, int T, int64_t x_stride, int C, float* out, int64_t stride) {
  for (int t = 0; t < T; ++t)
    for (int c = 0; c < C; ++c) out[c * stride + t] = x[t * x_stride + c];
}

// Feeds T <= max_tokens tokens. Rows first_row.. of the logits are made, (T - first_row, V rounded
// up), and for each of them the best token.
void forward(const Model& m, Session& s, const int32_t* tokens, int T, int first_row,
             float* logits, Best* best) {
  const int D = m.width, C = m.head_width, F = m.feed_width, HC = m.heads * C;
  const int64_t P = s.capacity, V = m.vocabulary, stride = rounded_up(V);
  const int start = s.length, rows = T - first_row;
  const Scratch scratch(m, s);
  float *x = scratch.x, *query = scratch.query, *context = scratch.context, *feed = scratch.feed,
        *gated = scratch.gated;

#pragma omp parallel num_threads(m.threads)
  {
    const Worker worker;
    float* normed = scratch.threads + worker.index * thread_floats(m, s);  // (T, D)
    float* scores = normed + int64_t(s.max_tokens) * D;
    float* rounded = scores + std::max(s.capacity, s.source_stride);
    const int type = m.layers[0].q.type;
    int64_t d0, d1, f0, f1, h0, h1, v0, v1;
    worker.share(D, kLanes, d0, d1);
    worker.share(F, kLanes, f0, f1);
    worker.share(m.heads, 1, h0, h1);
    worker.share(stride, kLanes, v0, v1);

    embed(m, tokens, T, d0, d1, x);
#pragma omp barrier

    for (int l = 0; l < m.layer_count; ++l) {
      const Layer& layer = m.layers[l];

      // Self-attention. A thread makes the queries, keys and values of its own heads, so that
      // it need not wait for the others before it attends.
      normalize(x, layer.self_norm, m.epsilon, D, T, normed);
      Input input = prepare(type, normed, D, T, rounded);
      product(layer.q, h0 * C, h1 * C, input, query, HC);
      product(layer.k, h0 * C, h1 * C, input, context, HC);
      for (int64_t h = h0; h < h1; ++h)
        transpose(context + h * C, T, HC, C, s.keys + (l * int64_t(m.heads) + h) * C * P + start, P);
      product(layer.v, h0 * C, h1 * C, input, context, HC);
      for (int64_t h = h0; h < h1; ++h) {
        const int64_t at = (l * int64_t(m.heads) + h) * C * P;
        float* values = s.values + at;
        for (int t = 0; t < T; ++t)
          std::memcpy(values + (start + t) * int64_t(C), context + int64_t(t) * HC + h * C, 4 * C);
        for (int t = 0; t < T; ++t)
          attend<kFloat32>(query + int64_t(t) * HC + h * C, reinterpret_cast<char*>(s.keys + at), P,
                           reinterpret_cast<char*>(values), C, start + t + 1, C,
                           layer.bias + h * P + P - 1 - start - t, scores, context + int64_t(t) * HC + h * C);
      }
#pragma omp barrier
      product(layer.o, d0, d1, prepare(type, context, HC, T, rounded), x, D, true);
#pragma omp barrier

      // Cross-attention, over keys and values made once a source.
      normalize(x, layer.cross_norm, m.epsilon, D, T, normed);
      input = prepare(type, normed, D, T, rounded);
      product(layer.cross_q, h0 * C, h1 * C, input, query, HC);
      for (int64_t h = h0; h < h1; ++h) {
        const int64_t head = l * int64_t(m.heads) + h, size = size_of(s.cross_type);
        const char* keys = s.cross_keys + head * C * s.source_stride * size;
        const char* values = s.cross_values + (l * int64_t(s.source) * HC + h * C) * size;
        const auto over = s.cross_type == kFloat32 ? attend<kFloat32> : attend<kBFloat16>;
        for (int t = 0; t < T; ++t)
          over(query + int64_t(t) * HC + h * C, keys, s.source_stride, values, HC, s.source, C,
               nullptr, scores, context + int64_t(t) * HC + h * C);
      }
#pragma omp barrier
      product(layer.cross_o, d0, d1, prepare(type, context, HC, T, rounded), x, D, true);
#pragma omp barrier

      // Feed-forward.
      normalize(x, layer.feed_norm, m.epsilon, D, T, normed);
      input = prepare(type, normed, D, T, rounded);
      feed_inner(m, layer, input, f0, f1, feed, gated);
#pragma omp barrier
      product(layer.out, d0, d1, prepare(type, feed, F, T, rounded), x, D, true);
#pragma omp barrier
    }

    // The head; of each row, this thread's part of the best token and of the sum.
    normalize(x + int64_t(first_row) * D, m.final_norm, m.epsilon, D, rows, normed);
    for (int64_t i = 0; i < int64_t(rows) * D; ++i) normed[i] *= m.output_scale;
    product(m.head, v0, v1, prepare(type, normed, D, rows, rounded), logits, stride);
    v1 = std::min(v1, V);
    for (int r = 0; r < rows; ++r) {
      const float* row = logits + r * stride;
      Best part = {int32_t(v0), -std::numeric_limits<float>::infinity(), 0};
      for (int64_t v = v0; v < v1; ++v)
        if (row[v] > part.logit) part.logit = row[v], part.token = int32_t(v);
      Floats sums = {};
      int64_t v = v0;
      for (; v + kLanes <= v1; v += kLanes) sums += exp_negative(load<Floats>(row + v) - part.logit);
      for (; v < v1; ++v) part.sum += std::exp(row[v] - part.logit);
      part.sum += sum(sums);
      scratch.parts[worker.index * s.max_tokens + r] = part;
    }
#pragma omp barrier
#pragma omp single
    for (int r = 0; r < rows; ++r) {
      const auto part = [&](int i) { return scratch.parts[i * s.max_tokens + r]; };
      Best b = part(0);
      for (int i = 1; i < worker.count; ++i)
        if (part(i).logit > b.logit) b = part(i);
      float total = 0;
      for (int i = 0; i < worker.count; ++i) total += part(i).sum * std::exp(part(i).logit - b.logit);
      best[r] = {b.token, b.logit, total};
    }
  }
  s.length = start + T;
}

void put(float x, int type, char* p, int64_t i) {
  if (type == kFloat32)
    reinterpret_cast<float*>(p)[i] = x;
  else
    reinterpret_cast<uint16_t*>(p)[i] = round_to_bfloat16(x);
}

// Cross-attention keys and values of every layer, from the encoder's states (S, D).
void begin(const Model& m, const Session& s, const float* states) {
  const int D = m.width, C = m.head_width, HC = m.heads * C, S = s.source;
  const int64_t size = size_of(s.cross_type);
  float* made = s.scratch;  // (S, H C)
  const Input input = prepare(m.layers[0].q.type, states, D, S, made + int64_t(S) * HC);
#pragma omp parallel num_threads(m.threads)
  {
    const Worker worker;
    int64_t h0, h1;
    worker.share(m.heads, 1, h0, h1);
    for (int l = 0; l < m.layer_count; ++l) {
      const Layer& layer = m.layers[l];
      char* keys = s.cross_keys + l * int64_t(HC) * s.source_stride * size;
      char* values = s.cross_values + l * int64_t(HC) * S * size;
      product(layer.cross_k, h0 * C, h1 * C, input, made, HC);
      for (int64_t i = h0 * C; i < h1 * C; ++i)
        for (int j = 0; j < s.source_stride; ++j)
          put(j < S ? made[int64_t(j) * HC + i] : 0, s.cross_type, keys, i * s.source_stride + j);
      product(layer.cross_v, h0 * C, h1 * C, input, made, HC);
      for (int j = 0; j < S; ++j)
        for (int64_t i = h0 * C; i < h1 * C; ++i)
          put(made[int64_t(j) * HC + i], s.cross_type, values, int64_t(j) * HC + i);
    }
  }
}

// How many floats `encode` needs beside its output: query, context, keys, values, feed, gated,
// and per thread the normed states, one query's scores and the rounded inputs.
int64_t encode_floats(const Model& m, int64_t S) {
  const int64_t inner = int64_t(m.heads) * m.head_width, stride = rounded_up(S);
  return S * (3 * inner + 2 * int64_t(m.feed_width)) + inner * stride +
         m.threads * (S * m.width + stride + prepared_floats(S, widest(m)));
}

// The encoder: tokens (S) -> states (S, D). Biases are (H, 2 P - 1), P >= S.
void encode(const Model& m, const int32_t* tokens, int S, int64_t P, float* x, float* scratch) {
  const int D = m.width, C = m.head_width, F = m.feed_width, HC = m.heads * C;
  const int64_t stride = rounded_up(S), n = S;
  float *query = scratch, *context = query + n * HC, *values = context + n * HC,
        *keys = values + n * HC, *feed = keys + HC * stride, *gated = feed + n * F,
        *own = gated + n * F;
#pragma omp parallel num_threads(m.threads)
  {
    const Worker worker;
    int64_t d0, d1, f0, f1, h0, h1;
    worker.share(D, kLanes, d0, d1);
    worker.share(F, kLanes, f0, f1);
    worker.share(m.heads, 1, h0, h1);
    float* normed = own + worker.index * (n * D + stride + prepared_floats(n, widest(m)));
    float* scores = normed + n * D;
    float* rounded = scores + stride;
    const int type = m.layers[0].q.type;
    embed(m, tokens, S, d0, d1, x);
#pragma omp barrier
    for (int l = 0; l < m.layer_count; ++l) {
      const Layer& layer = m.layers[l];
      normalize(x, layer.self_norm, m.epsilon, D, S, normed);
      Input input = prepare(type, normed, D, S, rounded);
      product(layer.q, h0 * C, h1 * C, input, query, HC);
      product(layer.k, h0 * C, h1 * C, input, context, HC);
      product(layer.v, h0 * C, h1 * C, input, values, HC);
      for (int64_t h = h0; h < h1; ++h) {
        transpose(context + h * C, S, HC, C, keys + h * C * stride, stride);
        for (int64_t t = 0; t < S; ++t)
          attend<kFloat32>(query + t * HC + h * C, reinterpret_cast<char*>(keys + h * C * stride),
                           stride, reinterpret_cast<char*>(values + h * C), HC, S, C,
                           layer.bias + h * (2 * P - 1) + P - 1 - t, scores,
                           context + t * HC + h * C);
      }
#pragma omp barrier
      product(layer.o, d0, d1, prepare(type, context, HC, S, rounded), x, D, true);
#pragma omp barrier
      normalize(x, layer.feed_norm, m.epsilon, D, S, normed);
      input = prepare(type, normed, D, S, rounded);
      feed_inner(m, layer, input, f0, f1, feed, gated);
#pragma omp barrier
      product(layer.out, d0, d1, prepare(type, feed, F, S, rounded), x, D, true);
#pragma omp barrier
    }
    int64_t t0, t1;
    worker.share(S, 1, t0, t1);
    normalize(x + t0 * D, m.final_norm, m.epsilon, D, int(t1 - t0), x + t0 * D);
  }
}

// Of the best token; NaN where the model is damaged, and the token then means nothing.
double probability(const Best& b) { return 1.0 / b.sum; }

}  // namespace

extern "C" {

int64_t bild_t5_encode_floats(const Model* m, int32_t source) { return encode_floats(*m, source); }

// The encoder's states (S, D) of S tokens; `positions` is P of its biases.
void bild_t5_encode(const Model* m, const int32_t* tokens, int32_t source, int32_t positions,
                    float* states, float* scratch) {
  encode(*m, tokens, source, positions, states, scratch);
}

int64_t bild_t5_scratch_floats(const Model* m, const Session* s) {
  const int64_t begin = int64_t(s->source) * m->heads * m->head_width;
  return std::max(Scratch(*m, *s).floats, begin + prepared_floats(s->source, m->width));
}

// Starts a sequence over the encoder's states (S, D).
void bild_t5_begin(const Model* m, Session* s, const float* states) {
  begin(*m, *s, states);
  s->length = 0;
}

// Feeds `count` tokens; their logits go to `logits`, (count, V rounded up to 16).
void bild_t5_feed(const Model* m, Session* s, const int32_t* tokens, int32_t count, float* logits) {
  Best best[kMaxTokens];
  for (int32_t i = 0; i < count; i += s->max_tokens)
    forward(*m, *s, tokens + i, std::min(s->max_tokens, count - i), 0,
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
  for (int32_t i = 0; i < limit; ++i) {
    Best best = {};
    for (int32_t at = 0, T; at < count; at += T) {
      T = std::min(s->max_tokens, count - at);
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
    T = std::min(s->max_tokens, count - at);
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
