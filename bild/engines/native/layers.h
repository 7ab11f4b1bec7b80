// What a transformer's layers do beside products, in float32: norms, attention of a few queries over
// cached keys and values, activations.
//
// Letters: T tokens of this forward, H heads, C width of a head, P positions a cache holds. C and P
// are multiples of 16.

#pragma once

#include "products.h"

namespace {

constexpr int kQueries = 4;  // that one pass over keys and values serves

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

int64_t rounded_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Keys (T, stride) of one head, to positions start.. of (P / 16, C, 16).
void store_keys(const float* x, int T, int64_t stride, int C, int start, float* keys) {
  for (int t = 0; t < T; ++t) {
    const int64_t position = start + t;
    float* to = keys + position / kLanes * kLanes * C + position % kLanes;
    for (int c = 0; c < C; ++c) to[c * kLanes] = x[t * stride + c];
  }
}

}  // namespace
