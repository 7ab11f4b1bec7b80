// T5 on a CPU, one sequence at a time: the encoder, and the decoder by a few tokens, logits out.
// bild.engines.build compiles this file on the machine it runs on, and bild.engines.t5_native calls
// the functions at its end. The arithmetic is in products.h and layers.h.
//
// Letters: T tokens of this forward, D model width, H heads, C width of a head, F feed-forward
// width, V vocabulary, S source tokens, P positions the cache holds. C, D, F and P are multiples
// of 16.

#include "layers.h"
#include "team.h"

// ------------------------------------------------------------------------ what Python fills in

struct Attention {
  const float* norm;  // (D)
  Matrix q, k, v, o;  // (H C, D) x 3, (D, H C)
};

struct FeedForward {
  const float* norm;     // (D)
  Matrix into, gate, out;// (F, D) x 2, (D, F); gate: of a gated one only
};

struct Layer {
  Attention own, cross;   // cross: a decoder's only
  FeedForward feed;
  const float* bias;  // (H, P) by position of the key, the query standing at P - 1;
                      // an encoder's (H, 2 P - 1), with keys after it too
};

struct Model {
  const Layer* layers;
  int32_t layer_count, width, heads, head_width, feed_width;
  int32_t source_width;  // of the states that a decoder's cross-attention reads
  int32_t vocabulary;    // rows of the head that score
  int32_t activation;  // 0 relu, 1 gelu (tanh), 2 gelu (erf), 3 silu
  int32_t threads;
  float epsilon, output_scale;
  const float* final_norm;
  Matrix embedding, head;
  const int32_t* ids;  // the tokens that the head's rows score, ascending; null: as they are numbered
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
  Pace forwards, sources;                 // of `forward`; of `encode` and `begin`
};

// ------------------------------------------------------------------------ the model

namespace {

constexpr int kMaxTokens = 16;  // of one forward; longer feeds go in pieces
constexpr int kParts = 16;      // of the vocabulary: sums do not depend on the number of threads

struct Best {
  int32_t token;
  float logit;
  float sum;  // of e^(logit of v - logit), over v: 1 / sum is the token's probability
};

// Keys and values of one layer: (H, P / 16, C, 16) and (H, P, C).
struct Cache {
  float *keys, *values;
  int64_t positions;
};

// A thread and its part in the work on T tokens. The team shares some arrays; between writing a
// part of one and reading all of it everybody waits for everybody.
struct Worker : Thread {
  const Model& m;
  const int T;
  float* const x;  // (T, D), the residual stream
  const int D = m.width, C = m.head_width, F = m.feed_width, HC = m.heads * C;
  const int type = m.layers[0].own.q.type;
  const int64_t positions;  // that a query sees at most, a multiple of 16
  int64_t d0, d1, f0, f1, h0, h1;
  float *query, *context, *feed, *gated;  // shared: (T, H C) x 2, (T, F) x 2
  float *normed, *scores, *rounded;       // its own: (T, D), (kQueries, positions), of `prepare`

  Worker(const Thread& thread, const Model& model, int tokens, float* stream, int64_t seen,
         float* scratch)
      : Thread(thread), m(model), T(tokens), x(stream), positions(seen) {
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
    meet();
  }

  Input normalized(const float* weight) const {
    normalize(x, weight, m.epsilon, D, T, normed);
    return prepare(type, normed, D, T, rounded);
  }

  // x += W y, y (T, K) being made by all.
  void add(const Matrix& w, const float* y) const {
    meet();
    product(w, d0, d1, prepare(type, y, w.columns, T, rounded), x, D, true);
    meet();
  }

  // A thread makes the queries, keys and values of its own heads, so that it need not wait for the
  // others before it attends. The tokens stand at `start` and after it. `mask` is (T), 0 or -inf.
  void self_attention(const Layer& layer, const Cache& cache, int start, bool causal,
                      const float* mask = nullptr) const {
    const Input input = normalized(layer.own.norm);
    const int64_t P = cache.positions, biases = causal ? P : 2 * P - 1;
    product(layer.own.q, h0 * C, h1 * C, input, query, HC);
    product(layer.own.k, h0 * C, h1 * C, input, context, HC);
    for (int64_t h = h0; h < h1; ++h)
      store_keys(context + h * C, T, HC, C, start, cache.keys + h * P * C);
    product(layer.own.v, h0 * C, h1 * C, input, context, HC);
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
    add(layer.own.o, context);
  }

  // Over keys and values (H, source_stride, C) of the source.
  void cross_attention(const Layer& layer, const Session& s, const char* keys,
                       const char* values) const {
    product(layer.cross.q, h0 * C, h1 * C, normalized(layer.cross.norm), query, HC);
    const auto over = s.cross_type == kFloat32 ? attend<kFloat32> : attend<kBFloat16>;
    const int64_t head = int64_t(s.source_stride) * C * size_of(s.cross_type);
    for (int64_t h = h0; h < h1; ++h)
      over(query + h * C, T, HC,
           {keys + h * head, values + h * head, s.source, false, nullptr, nullptr}, C, scores,
           positions, context + h * C);
    add(layer.cross.o, context);
  }

  void feed_forward(const Layer& layer) const {
    const Input input = normalized(layer.feed.norm);
    const bool gate = layer.feed.gate.data != nullptr;
    product(layer.feed.into, f0, f1, input, feed, F);
    if (gate) product(layer.feed.gate, f0, f1, input, gated, F);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t i = t * F + f0; i < t * F + f1; i += kLanes) {
        const Floats y = activate(load<Floats>(feed + i), m.activation);
        store(feed + i, gate ? y * load<Floats>(gated + i) : y);
      }
    add(layer.feed.out, feed);
  }
};

// Where the arrays of one decoder forward lie in the scratch memory; with none, how much that is.
struct Scratch {
  float* x;       // (T, D)
  Best* parts;    // (kParts, T)
  float* shared;  // a team's
  int64_t positions, floats;

  Scratch(const Model& m, const Session& s) {
    const int64_t T = kMaxTokens;
    positions = std::max(s.capacity, s.source_stride);
    x = s.scratch;
    parts = reinterpret_cast<Best*>(x + T * m.width);
    shared = reinterpret_cast<float*>(parts + kParts * T);
    floats = shared - x + Worker::floats(m, T, positions);
  }
};

// The best token of ids v0..v1 of a row of logits, and the sum over these; the first of equals.
Best best_of(const float* row, int64_t v0, int64_t v1) {
  Best best = {int32_t(v0), -std::numeric_limits<float>::infinity(), 0};
  for (int64_t v = v0; v < v1; ++v)
    if (row[v] > best.logit) best.logit = row[v], best.token = int32_t(v);
  Floats sums = {};
  int64_t v = v0;
  for (; v + kLanes <= v1; v += kLanes) sums += exp_negative(load<Floats>(row + v) - best.logit);
  for (; v < v1; ++v) best.sum += std::exp(row[v] - best.logit);
  best.sum += sum(sums);
  return best;
}

// Feeds T <= kMaxTokens tokens. Rows first_row.. of the logits are made, (T - first_row, V rounded
// up), and for each of them the best token.
void forward(const Model& m, Session& s, const int32_t* tokens, int T, int first_row,
             float* logits, Best* best) {
  const int64_t V = m.vocabulary, stride = rounded_up(V);
  const int rows = T - first_row;
  const Scratch scratch(m, s);

  s.forwards.run(m.threads, T - 1, [&](const Thread& thread) {
    const Worker worker(thread, m, T, scratch.x, scratch.positions, scratch.shared);
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

    // The head; of each row, its best token and sum in each part of the vocabulary.
    float* normed = worker.normed;
    normalize(scratch.x + first_row * D, m.final_norm, m.epsilon, D, rows, normed);
    for (int64_t i = 0; i < rows * D; ++i) normed[i] *= m.output_scale;
    const auto part_start = [&](int64_t part) { return stride / kLanes * part / kParts * kLanes; };
    int64_t first, last;
    worker.share(kParts, 1, first, last);
    product(m.head, part_start(first), part_start(last),
            prepare(worker.type, normed, D, rows, worker.rounded), logits, stride);
    for (int64_t i = first; i < last; ++i)
      for (int r = 0; r < rows; ++r)
        scratch.parts[i * kMaxTokens + r] =
            best_of(logits + r * stride, part_start(i), std::min(V, part_start(i + 1)));
    worker.meet();
    if (worker.index == 0)
      for (int r = 0; r < rows; ++r) {
        Best b = scratch.parts[r];
        for (int i = 1; i < kParts; ++i)
          if (scratch.parts[i * kMaxTokens + r].logit > b.logit) b = scratch.parts[i * kMaxTokens + r];
        float total = 0;
        for (int i = 0; i < kParts; ++i) {
          const Best& part = scratch.parts[i * kMaxTokens + r];
          if (part.sum != 0) total += part.sum * std::exp(part.logit - b.logit);
        }
        best[r] = {m.ids ? m.ids[b.token] : b.token, b.logit, total};
      }
  });
  s.length += T;
}

// Floats that `begin` needs: keys or values (S, H C), the states as inputs of products, and a
// head's keys for each thread.
int64_t begin_floats(const Model& m, const Session& s) {
  const int64_t S = s.source, C = m.head_width;
  return S * m.heads * C + prepared_floats(S, m.source_width) + m.threads * C * s.source_stride;
}

// Sources of about one length, for their pace; `encode` has the kinds after those of `begin`.
int kind_of(int64_t S) {
  int kind = 0;
  while (kind < Pace::kKinds / 2 - 1 && S >> (2 * kind + 4)) ++kind;
  return kind;
}

// Cross-attention keys and values of every layer, from an encoder's states (S, source_width).
void begin(const Model& m, Session& s, const float* states) {
  const int64_t S = s.source, C = m.head_width, HC = m.heads * C;
  const int64_t head = s.source_stride * C, size = size_of(s.cross_type);
  float* made = s.scratch;
  float* rounded = made + S * HC;
  const Input input = prepare(m.layers[0].own.q.type, states, m.source_width, S, rounded);
  s.sources.run(m.threads, kind_of(S), [&](const Thread& thread) {
    int64_t h0, h1;
    thread.share(m.heads, 1, h0, h1);
    float* transposed = rounded + prepared_floats(S, m.source_width) + thread.index * head;
    for (int64_t l = 0; l < m.layer_count; ++l) {
      const Layer& layer = m.layers[l];
      product(layer.cross.k, h0 * C, h1 * C, input, made, HC);
      for (int64_t h = h0; h < h1; ++h) {
        store_keys(made + h * C, S, HC, C, 0, transposed);
        convert(transposed, head, s.cross_type, s.cross_keys + (l * m.heads + h) * head * size);
      }
      product(layer.cross.v, h0 * C, h1 * C, input, made, HC);
      for (int64_t h = h0; h < h1; ++h) {
        char* values = s.cross_values + (l * m.heads + h) * head * size;
        for (int64_t j = 0; j < S; ++j)
          convert(made + j * HC + h * C, C, s.cross_type, values + j * C * size);
      }
    }
  });
}

// Floats that `encode` needs beside its output: keys and values of one layer, and a team's.
int64_t encode_floats(const Model& m, int64_t S, int64_t P) {
  return 2 * int64_t(m.heads) * m.head_width * P + Worker::floats(m, S, P);
}

// The encoder: tokens (S) -> states (S, D). Biases are (H, 2 P - 1), P >= S; the mask is (S) or
// none.
void encode(const Model& m, Pace& pace, const int32_t* tokens, int S, int64_t P,
            const float* mask, float* x, float* scratch) {
  const int64_t size = int64_t(m.heads) * m.head_width * P;
  const Cache cache = {scratch, scratch + size, P};
  pace.run(m.threads, Pace::kKinds / 2 + kind_of(S), [&](const Thread& thread) {
    const Worker worker(thread, m, S, x, P, scratch + 2 * size);
    worker.embed(tokens);
    for (int l = 0; l < m.layer_count; ++l) {
      worker.self_attention(m.layers[l], cache, 0, false, mask);
      worker.feed_forward(m.layers[l]);
    }
    int64_t t0, t1;
    worker.share(S, 1, t0, t1);
    float* part = x + t0 * m.width;
    normalize(part, m.final_norm, m.epsilon, m.width, int(t1 - t0), part);
  });
}

// Of the best token; NaN where the model is damaged, and the token then means nothing.
double probability(const Best& b) { return 1.0 / b.sum; }

}  // namespace

extern "C" {

// The optional flags this was compiled with.
const char* bild_flags() { return BILD_FLAGS; }

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
void bild_t5_encode(const Model* m, Session* s, const int32_t* tokens, int32_t source,
                    int32_t positions, const float* mask, float* states) {
  if (source > 0) encode(*m, s->sources, tokens, source, positions, mask, states, s->scratch);
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
