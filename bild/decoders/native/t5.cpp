// T5 on a CPU, one sequence at a time: the encoder, and the decoder by a few tokens, logits out.
// bild/decoders/native compiles this file on the machine it runs on and calls the functions at
// its end; it needs GCC or Clang and nothing but the C++ library.
//
// Decoding reads every weight once a forward and does little with it, so that the time is the
// memory's. Weights stay as they are stored (float32, bfloat16, or int8 with one scale a row) and
// are widened in registers; a row is read once for all tokens of the forward. Activations, sums
// and the self-attention cache are float32.
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
inline Floats weights(const char* row, int64_t i) {
  if constexpr (type == kFloat32) return load<Floats>(row + 4 * i);
  if constexpr (type == kBFloat16) {
    const Words bits = __builtin_convertvector(load<Halves>(row + 2 * i), Words) << 16;
    Floats v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
  }
#ifdef __AVX512F__  // GCC 12 makes scalar code of the portable line
  return reinterpret_cast<Floats>(
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(
          reinterpret_cast<const __m128i*>(row + i)))));
#else
  return __builtin_convertvector(__builtin_convertvector(load<Bytes>(row + i), Ints), Floats);
#endif
}

constexpr int64_t size_of(int type) { return type == kFloat32 ? 4 : type == kBFloat16 ? 2 : 1; }

}  // namespace

extern "C" {

struct Matrix {  // (rows, columns), row-major
  const char* data;
  const float* scales;  // a row, int8 only
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
  float* logits;                          // (max_tokens, V)
  float* scratch;                         // bild_t5_scratch_floats() of them
};
}

namespace {

// ------------------------------------------------------------------------ products

// out[t][n] = (or +=) scale of row n * sum over k of W[n][k] x[t][k], for `R` rows and `T` tokens.
template <int type, int R, int T>
inline void block(const Matrix& w, int64_t n, const float* x, int64_t x_stride, float* out,
                  int64_t out_stride, bool add) {
  Floats sums[R][T];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[r][t] = Floats{};
  const char* first = w.data + n * w.columns * size_of(type);
  const int64_t row_bytes = w.columns * size_of(type);
  for (int64_t k = 0; k < w.columns; k += kLanes) {
    Floats xs[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) xs[t] = load<Floats>(x + t * x_stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Floats v = weights<type>(first + r * row_bytes, k);
      __builtin_prefetch(first + (r + R) * row_bytes + k * size_of(type));  // the next block
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sums[r][t] += v * xs[t];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const float scale = type == kInt8 ? w.scales[n + r] : 1.0f;
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      float* o = out + t * out_stride + n + r;
      const float y = scale * sum(sums[r][t]);
      *o = add ? *o + y : y;
    }
  }
}

template <int type, int R>
inline void row_block(const Matrix& w, int64_t n, const float* x, int64_t x_stride, int tokens,
                      float* out, int64_t out_stride, bool add) {
  int t = 0;
  for (; t + 4 <= tokens; t += 4)
    block<type, R, 4>(w, n, x + t * x_stride, x_stride, out + t * out_stride, out_stride, add);
  x += t * x_stride;
  out += t * out_stride;
  if (tokens - t == 3) block<type, R, 3>(w, n, x, x_stride, out, out_stride, add);
  if (tokens - t == 2) block<type, R, 2>(w, n, x, x_stride, out, out_stride, add);
  if (tokens - t == 1) block<type, R, 1>(w, n, x, x_stride, out, out_stride, add);
}

template <int type>
void product(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t x_stride,
             int tokens, float* out, int64_t out_stride, bool add) {
  int64_t n = begin;
  if (tokens == 1)
    for (; n + 8 <= end; n += 8) block<type, 8, 1>(w, n, x, x_stride, out, out_stride, add);
  for (; n + 4 <= end; n += 4) row_block<type, 4>(w, n, x, x_stride, tokens, out, out_stride, add);
  for (; n < end; ++n) row_block<type, 1>(w, n, x, x_stride, tokens, out, out_stride, add);
}

// Rows begin..end of W x, for every token.
void product(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t x_stride,
             int tokens, float* out, int64_t out_stride, bool add = false) {
  if (w.type == kFloat32) product<kFloat32>(w, begin, end, x, x_stride, tokens, out, out_stride, add);
  if (w.type == kBFloat16) product<kBFloat16>(w, begin, end, x, x_stride, tokens, out, out_stride, add);
  if (w.type == kInt8) product<kInt8>(w, begin, end, x, x_stride, tokens, out, out_stride, add);
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
      even += weights<type>(keys, c * key_stride + j) * query[c];
      odd += weights<type>(keys, (c + 1) * key_stride + j) * query[c + 1];
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
      even += weights<type>(values, j * value_stride + c) * scores[j];
      odd += weights<type>(values, (j + 1) * value_stride + c) * scores[j + 1];
    }
    if (j < count) even += weights<type>(values, j * value_stride + c) * scores[j];
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

int64_t thread_floats(const Model& m, const Session& s) {
  return int64_t(s.max_tokens) * m.width + std::max(s.capacity, s.source_stride);
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
            e.type == kFloat32 ? weights<kFloat32>(row, d) : weights<kBFloat16>(row, d));
  }
}

// Rows f0..f1 of the feed-forward's inner layer, for normed (T, D), to feed (T, F).
void feed_inner(const Model& m, const Layer& layer, const float* normed, int T, int64_t f0,
                int64_t f1, float* feed, float* gated) {
  const int D = m.width, F = m.feed_width;
  product(layer.in, f0, f1, normed, D, T, feed, F);
  if (layer.gate.data != nullptr) product(layer.gate, f0, f1, normed, D, T, gated, F);
  for (int t = 0; t < T; ++t)
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

// Feeds T <= max_tokens tokens. Rows first_row.. of the logits are made, (T - first_row, V), and
// for each of them the best token.
void forward(const Model& m, Session& s, const int32_t* tokens, int T, int first_row,
             float* logits, Best* best) {
  const int D = m.width, C = m.head_width, F = m.feed_width, HC = m.heads * C;
  const int64_t P = s.capacity, V = m.vocabulary;
  const int start = s.length, rows = T - first_row;
  const Scratch scratch(m, s);
  float *x = scratch.x, *query = scratch.query, *context = scratch.context, *feed = scratch.feed,
        *gated = scratch.gated;

#pragma omp parallel num_threads(m.threads)
  {
    const Worker worker;
    float* normed = scratch.threads + worker.index * thread_floats(m, s);  // (T, D)
    float* scores = normed + int64_t(s.max_tokens) * D;
    int64_t d0, d1, f0, f1, h0, h1, v0, v1;
    worker.share(D, kLanes, d0, d1);
    worker.share(F, kLanes, f0, f1);
    worker.share(m.heads, 1, h0, h1);
    worker.share(V, 8, v0, v1);

    embed(m, tokens, T, d0, d1, x);
#pragma omp barrier

    for (int l = 0; l < m.layer_count; ++l) {
      const Layer& layer = m.layers[l];

      // Self-attention. A thread makes the queries, keys and values of its own heads, so that
      // it need not wait for the others before it attends.
      normalize(x, layer.self_norm, m.epsilon, D, T, normed);
      product(layer.q, h0 * C, h1 * C, normed, D, T, query, HC);
      product(layer.k, h0 * C, h1 * C, normed, D, T, context, HC);
      for (int64_t h = h0; h < h1; ++h)
        transpose(context + h * C, T, HC, C, s.keys + (l * int64_t(m.heads) + h) * C * P + start, P);
      product(layer.v, h0 * C, h1 * C, normed, D, T, context, HC);
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
      product(layer.o, d0, d1, context, HC, T, x, D, true);
#pragma omp barrier

      // Cross-attention, over keys and values made once a source.
      normalize(x, layer.cross_norm, m.epsilon, D, T, normed);
      product(layer.cross_q, h0 * C, h1 * C, normed, D, T, query, HC);
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
      product(layer.cross_o, d0, d1, context, HC, T, x, D, true);
#pragma omp barrier

      // Feed-forward.
      normalize(x, layer.feed_norm, m.epsilon, D, T, normed);
      feed_inner(m, layer, normed, T, f0, f1, feed, gated);
#pragma omp barrier
      product(layer.out, d0, d1, feed, F, T, x, D, true);
#pragma omp barrier
    }

    // The head; of each row, this thread's part of the best token and of the sum.
    normalize(x + int64_t(first_row) * D, m.final_norm, m.epsilon, D, rows, normed);
    for (int64_t i = 0; i < int64_t(rows) * D; ++i) normed[i] *= m.output_scale;
    product(m.head, v0, v1, normed, D, rows, logits, V);
    for (int r = 0; r < rows; ++r) {
      const float* row = logits + r * V;
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

// float32 -> bfloat16, rounded to nearest even.
uint16_t round_to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
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
#pragma omp parallel num_threads(m.threads)
  {
    const Worker worker;
    int64_t h0, h1;
    worker.share(m.heads, 1, h0, h1);
    for (int l = 0; l < m.layer_count; ++l) {
      const Layer& layer = m.layers[l];
      char* keys = s.cross_keys + l * int64_t(HC) * s.source_stride * size;
      char* values = s.cross_values + l * int64_t(HC) * S * size;
      product(layer.cross_k, h0 * C, h1 * C, states, D, S, made, HC);
      for (int64_t i = h0 * C; i < h1 * C; ++i)
        for (int j = 0; j < s.source_stride; ++j)
          put(j < S ? made[int64_t(j) * HC + i] : 0, s.cross_type, keys, i * s.source_stride + j);
      product(layer.cross_v, h0 * C, h1 * C, states, D, S, made, HC);
      for (int j = 0; j < S; ++j)
        for (int64_t i = h0 * C; i < h1 * C; ++i)
          put(made[int64_t(j) * HC + i], s.cross_type, values, int64_t(j) * HC + i);
    }
  }
}

// How many floats `encode` needs beside its output: query, context, keys, values, feed, gated,
// and per thread the normed states and one query's scores.
int64_t encode_floats(const Model& m, int64_t S) {
  const int64_t inner = int64_t(m.heads) * m.head_width, stride = (S + kLanes - 1) / kLanes * kLanes;
  return S * (3 * inner + 2 * int64_t(m.feed_width)) + inner * stride +
         m.threads * (S * m.width + stride);
}

// The encoder: tokens (S) -> states (S, D). Biases are (H, 2 P - 1), P >= S.
void encode(const Model& m, const int32_t* tokens, int S, int64_t P, float* x, float* scratch) {
  const int D = m.width, C = m.head_width, F = m.feed_width, HC = m.heads * C;
  const int64_t stride = (S + kLanes - 1) / kLanes * kLanes, n = S;
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
    float* normed = own + worker.index * (n * D + stride);
    float* scores = normed + n * D;
    embed(m, tokens, S, d0, d1, x);
#pragma omp barrier
    for (int l = 0; l < m.layer_count; ++l) {
      const Layer& layer = m.layers[l];
      normalize(x, layer.self_norm, m.epsilon, D, S, normed);
      product(layer.q, h0 * C, h1 * C, normed, D, S, query, HC);
      product(layer.k, h0 * C, h1 * C, normed, D, S, context, HC);
      product(layer.v, h0 * C, h1 * C, normed, D, S, values, HC);
      for (int64_t h = h0; h < h1; ++h) {
        transpose(context + h * C, S, HC, C, keys + h * C * stride, stride);
        for (int64_t t = 0; t < S; ++t)
          attend<kFloat32>(query + t * HC + h * C, reinterpret_cast<char*>(keys + h * C * stride),
                           stride, reinterpret_cast<char*>(values + h * C), HC, S, C,
                           layer.bias + h * (2 * P - 1) + P - 1 - t, scores,
                           context + t * HC + h * C);
      }
#pragma omp barrier
      product(layer.o, d0, d1, context, HC, S, x, D, true);
#pragma omp barrier
      normalize(x, layer.feed_norm, m.epsilon, D, S, normed);
      feed_inner(m, layer, normed, S, f0, f1, feed, gated);
#pragma omp barrier
      product(layer.out, d0, d1, feed, F, S, x, D, true);
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
  return std::max(Scratch(*m, *s).floats, int64_t(s->source) * m->heads * m->head_width);
}

// Starts a sequence over the encoder's states (S, D).
void bild_t5_begin(const Model* m, Session* s, const float* states) {
  begin(*m, *s, states);
  s->length = 0;
}

// Feeds `count` tokens; their logits (count, V) go to `logits`.
void bild_t5_feed(const Model* m, Session* s, const int32_t* tokens, int32_t count, float* logits) {
  Best best[kMaxTokens];
  for (int32_t i = 0; i < count; i += s->max_tokens)
    forward(*m, *s, tokens + i, std::min(s->max_tokens, count - i), 0,
            logits + int64_t(i) * m->vocabulary, best);
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
                       s->logits[int64_t(r - at - first) * m->vocabulary + drafted[i]];
    }
  }
}
}
