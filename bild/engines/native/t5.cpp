// T5 on a CPU: the encoder of one sequence, and the decoder by a few tokens of one sequence or of
// several, logits out. Weights are read once for all sequences; attention is each one's own.
// bild.engines.build compiles this file on the machine it runs on, and bild.engines.t5_native calls
// the functions at its end. The arithmetic is in products.h and layers.h.
//
// Letters: T tokens of this forward, D model width, H heads, C width of a head, F feed-forward
// width, V vocabulary, S source tokens, P positions the cache holds. C, D, F and P are multiples
// of 16.

#include <functional>
#include <vector>

#include "layers.h"
#include "rules.h"
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

// What one sequence of several is asked: to draft, or to judge what was drafted.
struct Ask {
  const Model* model;      // with the biases of the session's capacity
  Session* session;
  const int32_t* pending;  // (count), to be fed after the cached tokens
  int32_t count;
  int32_t limit, eos_count;              // of a draft: see bild_t5_draft
  Fallback fallback;
  const int32_t* eos;
  int32_t drafted_count, first_row;      // of a verdict: see bild_t5_verify
  const int32_t* drafted;
  int32_t* tokens;                       // what is found, as there
  double *probabilities, *distances, *entropies;
  int32_t* ranks;
  double product;                        // of the probabilities of a draft so far
  int32_t written_count, forwards;
};

// Memory and pace of forwards that several sequences share.
struct Together {
  float *logits, *scratch;  // bild_t5_together_floats() of scratch; a row of logits for each made
  int32_t tokens, positions;  // what the scratch memory is for
  Pace drafts, verdicts;
};

// ------------------------------------------------------------------------ the model

namespace {

constexpr int kMaxTokens = 16;  // of one forward; longer feeds go in pieces
constexpr int kParts = 16;      // of the vocabulary: sums do not depend on the number of threads

// Keys and values of one layer: (H, P / 16, C, 16) and (H, P, C).
struct Cache {
  float *keys, *values;
  int64_t positions;
};

// The tokens of one sequence in a forward: T of them, of all the forward's the ones from `at` on.
struct Span {
  int at, T;
  int start;          // where the first of them stands in the cache
  Cache cache;
  const float* bias;  // of the layer
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

  // Rows `tokens` of the embedding, to x from token `at` on. All must `meet` before x is read.
  void embed(const int32_t* tokens, int at, int count) const {
    const Matrix& e = m.embedding;
    for (int t = 0; t < count; ++t) {
      const char* row = e.data + int64_t(tokens[t]) * e.columns * size_of(e.type);
      for (int64_t d = d0; d < d1; d += kLanes)
        store(x + int64_t(at + t) * D + d,
              e.type == kFloat32 ? widen<kFloat32>(row, d) : widen<kBFloat16>(row, d));
    }
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
  // others before it attends. `span(i)` is the i-th of `count` sequences. `mask` is (T), 0 or -inf.
  template <typename Spans>
  void self_attention(const Layer& layer, int count, const Spans& span, bool causal,
                      const float* mask = nullptr) const {
    const Input input = normalized(layer.own.norm);
    product(layer.own.q, h0 * C, h1 * C, input, query, HC);
    product(layer.own.k, h0 * C, h1 * C, input, context, HC);
    for (int i = 0; i < count; ++i) {
      const Span part = span(i);
      for (int64_t h = h0; h < h1; ++h)
        store_keys(context + int64_t(part.at) * HC + h * C, part.T, HC, C, part.start,
                   part.cache.keys + h * part.cache.positions * C);
    }
    product(layer.own.v, h0 * C, h1 * C, input, context, HC);
    for (int i = 0; i < count; ++i) attend_own(span(i), causal, mask);
    add(layer.own.o, context);
  }

  // Attention of one sequence over itself; its new values are in `context`, its keys are cached.
  void attend_own(const Span& part, bool causal, const float* mask) const {
    const int64_t P = part.cache.positions, biases = causal ? P : 2 * P - 1;
    for (int64_t h = h0; h < h1; ++h) {
      const int64_t first = int64_t(part.at) * HC + h * C;
      const float* keys = part.cache.keys + h * P * C;
      float* values = part.cache.values + h * P * C;
      for (int64_t t = 0; t < part.T; ++t)
        std::memcpy(values + (part.start + t) * C, context + first + t * HC, 4 * C);
      const View view = {reinterpret_cast<const char*>(keys), reinterpret_cast<char*>(values),
                         part.start + (causal ? 1 : part.T), causal,
                         part.bias + h * biases + P - 1 - part.start, mask};
      attend<kFloat32>(query + first, part.T, HC, view, C, scores, positions, context + first);
    }
  }

  // Over keys and values (H, source_stride, C) of each sequence's source, of layer l.
  template <typename Spans, typename Sessions>
  void cross_attention(const Layer& layer, int64_t l, int count, const Spans& span,
                       const Sessions& session) const {
    product(layer.cross.q, h0 * C, h1 * C, normalized(layer.cross.norm), query, HC);
    for (int i = 0; i < count; ++i) {
      const Span part = span(i);
      const Session& s = session(i);
      const auto over = s.cross_type == kFloat32 ? attend<kFloat32> : attend<kBFloat16>;
      const int64_t head = int64_t(s.source_stride) * C * size_of(s.cross_type);
      const char *keys = s.cross_keys + l * m.heads * head;
      const char* values = s.cross_values + l * m.heads * head;
      for (int64_t h = h0; h < h1; ++h) {
        const int64_t first = int64_t(part.at) * HC + h * C;
        over(query + first, part.T, HC,
             {keys + h * head, values + h * head, s.source, false, nullptr, nullptr}, C, scores,
             positions, context + first);
      }
    }
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

// Where the arrays of a decoder forward of at most T tokens lie in memory; with none, how much that
// is.
struct Scratch {
  float* x;       // (T, D)
  Best* parts;    // (kParts, T)
  float* shared;  // a team's
  int64_t tokens, positions, floats;

  Scratch(const Model& m, int64_t T, int64_t seen, float* memory) : tokens(T), positions(seen) {
    x = memory;
    parts = reinterpret_cast<Best*>(x + T * m.width);
    shared = reinterpret_cast<float*>(parts + kParts * T);
    floats = shared - x + Worker::floats(m, T, positions);
  }

  // For a session alone.
  Scratch(const Model& m, const Session& s)
      : Scratch(m, kMaxTokens, std::max(s.capacity, s.source_stride), s.scratch) {}
};

// What one sequence feeds: T tokens. Of its tokens first_row.. logits are made.
struct Part {
  const Layer* layers;  // with the biases of the session's capacity
  Session* session;
  const int32_t* tokens;
  int T, first_row;
  int at = 0, row = 0;  // its first among all tokens, and among all rows of logits
};

// The highest logit of ids v0..v1 of a row, and the sum over these; its token is only found
// (`best_of_parts`) where it is the highest of the whole row, and is v0 until then.
Best best_of(const float* row, int64_t v0, int64_t v1) {
  Best best = {int32_t(v0), -std::numeric_limits<float>::infinity(), 0};
  Floats tops = Floats{} + best.logit;
  int64_t v = v0;
  for (; v + kLanes <= v1; v += kLanes) {
    const Floats logits = load<Floats>(row + v);
    tops = logits > tops ? logits : tops;  // a damaged model's NaN is no top
  }
  for (int i = 0; i < kLanes; ++i) best.logit = std::max(best.logit, tops[i]);
  for (; v < v1; ++v) best.logit = row[v] > best.logit ? row[v] : best.logit;
  Floats sums = {};
  for (v = v0; v + kLanes <= v1; v += kLanes) sums += exp_negative(load<Floats>(row + v) - best.logit);
  for (; v < v1; ++v) best.sum += std::exp(row[v] - best.logit);
  best.sum += sum(sums);
  return best;
}

// The best token of each of `rows` rows of logits, from those of its parts, (kParts, stride); the
// first of equals.
void best_of_parts(const Model& m, const Best* parts, int64_t stride, int rows,
                   const float* logits, int64_t logits_stride, Best* best) {
  for (int r = 0; r < rows; ++r) {
    Best b = parts[r];
    for (int i = 1; i < kParts; ++i)
      if (parts[i * stride + r].logit > b.logit) b = parts[i * stride + r];
    if (b.logit > -std::numeric_limits<float>::infinity())
      while (logits[r * logits_stride + b.token] != b.logit) ++b.token;
    float total = 0;
    for (int i = 0; i < kParts; ++i) {
      const Best& part = parts[i * stride + r];
      if (part.sum != 0) total += part.sum * std::exp(part.logit - b.logit);
    }
    best[r] = {m.ids ? m.ids[b.token] : b.token, b.logit, total};
  }
}

// Feeds the tokens of `count` sequences, at most as many as the scratch memory is for. Logits are
// made of each part's rows, one part's after the other's, (rows, V rounded up), and of each of them
// the best token.
void forward(const Model& m, Part* parts, int count, const Scratch& scratch, Pace& pace, int kind,
             float* logits, Best* best) {
  const int64_t V = m.vocabulary, stride = rounded_up(V);
  int T = 0, rows = 0;
  for (int i = 0; i < count; ++i) {
    parts[i].at = T, parts[i].row = rows;
    T += parts[i].T, rows += parts[i].T - parts[i].first_row;
  }

  pace.run(m.threads, kind, [&](const Thread& thread) {
    const Worker worker(thread, m, T, scratch.x, scratch.positions, scratch.shared);
    const int64_t D = worker.D;
    for (int i = 0; i < count; ++i) worker.embed(parts[i].tokens, parts[i].at, parts[i].T);
    worker.meet();
    for (int64_t l = 0; l < m.layer_count; ++l) {
      const auto session = [&](int i) -> const Session& { return *parts[i].session; };
      const auto span = [&](int i) {
        const Session& s = session(i);
        const int64_t cached = int64_t(worker.HC) * s.capacity * l;
        return Span{parts[i].at, parts[i].T, s.length,
                    {s.keys + cached, s.values + cached, s.capacity}, parts[i].layers[l].bias};
      };
      const Layer& layer = m.layers[l];
      worker.self_attention(layer, count, span, true);
      worker.cross_attention(layer, l, count, span, session);
      worker.feed_forward(layer);
    }

    // The head; of each row, its best token and sum in each part of the vocabulary.
    float* normed = worker.normed;
    for (int i = 0; i < count; ++i)
      normalize(scratch.x + (parts[i].at + parts[i].first_row) * D, m.final_norm, m.epsilon, D,
                parts[i].T - parts[i].first_row, normed + parts[i].row * D);
    for (int64_t i = 0; i < rows * D; ++i) normed[i] *= m.output_scale;
    const auto part_start = [&](int64_t part) { return stride / kLanes * part / kParts * kLanes; };
    int64_t first, last;
    worker.share(kParts, 1, first, last);
    product(m.head, part_start(first), part_start(last),
            prepare(worker.type, normed, D, rows, worker.rounded), logits, stride);
    for (int64_t i = first; i < last; ++i)
      for (int r = 0; r < rows; ++r)
        scratch.parts[i * scratch.tokens + r] =
            best_of(logits + r * stride, part_start(i), std::min(V, part_start(i + 1)));
    worker.meet();
    if (worker.index == 0) best_of_parts(m, scratch.parts, scratch.tokens, rows, logits, stride, best);
  });
  for (int i = 0; i < count; ++i) parts[i].session->length += parts[i].T;
}

// Feeds T <= kMaxTokens tokens of one sequence.
void forward(const Model& m, Session& s, const int32_t* tokens, int T, int first_row,
             float* logits, Best* best) {
  Part part = {m.layers, &s, tokens, T, first_row};
  forward(m, &part, 1, Scratch(m, s), s.forwards, T - 1, logits, best);
}

// Feeds T tokens of one sequence, in pieces; `take` gets each row of logits from first_row on, with
// its number from there and its best token.
template <typename Take>
void feed_alone(const Model& m, Session& s, const int32_t* tokens, int T, int first_row,
                const Take& take) {
  const int64_t stride = rounded_up(m.vocabulary);
  Best best[kMaxTokens];
  for (int at = 0, count; at < T; at += count) {
    count = std::min(kMaxTokens, T - at);
    const int first = std::min(std::max(first_row - at, 0), count - 1);
    forward(m, s, tokens + at, count, first, s.logits, best);
    for (int r = std::max(first_row, at + first); r < at + count; ++r)
      take(r - first_row, best[r - at - first], s.logits + (r - at - first) * stride);
  }
}

// Forwards of about as many tokens, for their pace.
int size_of_forward(int tokens) {
  int kind = tokens > 8 ? 8 : tokens - 1;
  for (int step = 8; tokens > step && kind < Pace::kKinds - 1; ++kind) step += step / 2;
  return kind;
}

// Feeds what several sequences are asked, of each `pending`; `parts` says which of them.
void forward(Together& all, std::vector<Part>& parts, const Model& m, Pace& pace,
             std::vector<Best>& best) {
  int tokens = 0, rows = 0;
  for (const Part& part : parts) tokens += part.T, rows += part.T - part.first_row;
  best.resize(rows);
  forward(m, parts.data(), int(parts.size()), Scratch(m, all.tokens, all.positions, all.scratch),
          pace, size_of_forward(tokens), all.logits, best.data());
}

// Feeds several sequences, in as few forwards as the memory allows, which is enough for each of
// them; `take` gets the number of a part and what `feed_alone` tells of it.
template <typename Take>
void feed_together(Together& all, const Model& m, Pace& pace, const std::vector<Part>& parts,
                   const Take& take) {
  const int64_t stride = rounded_up(m.vocabulary);
  std::vector<Part> here;
  std::vector<Best> best;
  for (size_t start = 0; start < parts.size(); start += here.size()) {
    here.clear();
    int tokens = 0;
    for (size_t i = start; i < parts.size() && (tokens += parts[i].T) <= all.tokens; ++i)
      here.push_back(parts[i]);
    forward(all, here, m, pace, best);
    for (size_t i = 0; i < here.size(); ++i)
      for (int r = 0; r < here[i].T - here[i].first_row; ++r)
        take(start + i, r, best[here[i].row + r], all.logits + (here[i].row + r) * stride);
  }
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
    worker.embed(tokens, 0, S);
    worker.meet();
    for (int l = 0; l < m.layer_count; ++l) {
      const auto whole = [&](int) { return Span{0, S, 0, cache, m.layers[l].bias}; };
      worker.self_attention(m.layers[l], 1, whole, false, mask);
      worker.feed_forward(m.layers[l]);
    }
    int64_t t0, t1;
    worker.share(S, 1, t0, t1);
    float* part = x + t0 * m.width;
    normalize(part, m.final_norm, m.epsilon, m.width, int(t1 - t0), part);
  });
}

// What a draft has written so far.
struct Drafting {
  const Fallback& fallback;
  int32_t limit;
  const int32_t* eos;
  int32_t eos_count;
  int32_t* written;
  double* probabilities;
  int32_t* written_count;
  double* product;  // 1 before the first
};

// Writes down the i-th token of a draft; whether the draft goes on.
bool write(const Drafting& draft, int32_t i, const Best& best, const float* logits, int64_t V) {
  const double p = draft.probabilities[i] = probability(best);
  draft.written[i] = best.token;
  *draft.product *= p;
  if (p != p || should_stop(draft.fallback, best, *draft.product, logits, V)) return false;
  *draft.written_count = i + 1;
  const int32_t* end = draft.eos + draft.eos_count;
  return i + 1 < draft.limit && std::find(draft.eos, end, best.token) == end;
}

// What the large model says of the i-th drafted token, by a row of its logits; `entropies` and
// `ranks` are null where nobody asks.
void judge(int32_t i, int32_t drafted, const Best& best, const float* logits, int64_t V,
           double* distances, double* entropies, int32_t* ranks) {
  distances[i] = distance(best, logits, drafted);
  if (entropies != nullptr) entropies[i] = entropy(best, logits, V);
  if (ranks != nullptr) ranks[i] = rank(logits, V, drafted);
}

}  // namespace

#include "rounds.h"

extern "C" {

// The optional flags this was compiled with.
const char* bild_flags() { return BILD_FLAGS; }

// What the caller has to know the same: sizes of the structures above, and two limits; at most `room`
// of them are written. Returns how many there are.
int32_t bild_t5_layout(int32_t* layout, int32_t room) {
  const int32_t sizes[] = {sizeof(Matrix), sizeof(Layer),    sizeof(Model), sizeof(Session),
                           sizeof(Ask),    sizeof(Together), sizeof(RoundTime),
                           sizeof(Rounds), sizeof(Fallback), sizeof(Acceptance),
                           kLanes,         kMaxTokens};
  const int32_t count = sizeof sizes / sizeof *sizes;
  std::copy_n(sizes, std::min(count, room), layout);
  return count;
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
// end-of-sequence id, or until `fallback` stops it or a probability is NaN. `written` and
// `probabilities` have room for `limit`; a token that is not written stands after those that are.
// Returns the number of probabilities: one a forward.
int32_t bild_t5_draft(const Model* m, Session* s, const int32_t* pending, int32_t count,
                      int32_t limit, const Fallback* fallback, const int32_t* eos,
                      int32_t eos_count, int32_t* written, double* probabilities,
                      int32_t* written_count) {
  double product = 1;
  const Drafting draft = {*fallback, limit, eos, eos_count, written, probabilities, written_count,
                          &product};
  *written_count = 0;
  if (count <= 0) return 0;
  for (int32_t i = 0; i < limit; ++i) {
    Best best = {};
    for (int32_t at = 0, T; at < count; at += T) {
      T = std::min(kMaxTokens, count - at);
      forward(*m, *s, pending + at, T, T - 1, s->logits, &best);
    }
    if (!write(draft, i, best, s->logits, m->vocabulary)) return i + 1;
    pending = written + i;
    count = 1;
  }
  return limit;
}

// Feeds `pending` and judges the drafted tokens (Decoder.verify). `tokens` and `probabilities`
// have room for count - first_row, `distances` for drafted_count, and so have `entropies` and `ranks`,
// if they are not null.
void bild_t5_verify(const Model* m, Session* s, const int32_t* pending, int32_t count,
                    const int32_t* drafted, int32_t drafted_count, int32_t first_row,
                    int32_t* tokens, double* probabilities, double* distances, double* entropies,
                    int32_t* ranks) {
  feed_alone(*m, *s, pending, count, first_row, [&](int i, const Best& b, const float* logits) {
    tokens[i] = b.token;
    probabilities[i] = probability(b);
    if (i < drafted_count)
      judge(i, drafted[i], b, logits, m->vocabulary, distances, entropies, ranks);
  });
}

int64_t bild_t5_together_floats(const Model* m, int32_t tokens, int32_t positions) {
  return Scratch(*m, tokens, positions, nullptr).floats;
}

// Feeds each sequence's `pending`; the logits of all their tokens go to all->logits.
void bild_t5_feed_together(Together* all, const Ask* asks, int32_t count) {
  std::vector<Part> parts;
  std::vector<Best> best;
  for (int32_t i = 0; i < count; ++i)
    parts.push_back({asks[i].model->layers, asks[i].session, asks[i].pending, asks[i].count, 0});
  forward(*all, parts, *asks[0].model, all->verdicts, best);
}

// bild_t5_draft of several: they step together, and one that stops leaves.
void bild_t5_draft_together(Together* all, Ask* asks, int32_t count) {
  std::vector<Part> parts;
  std::vector<Best> best;
  std::vector<int32_t> active;
  for (int32_t i = 0; i < count; ++i) {
    asks[i].written_count = asks[i].forwards = 0;
    asks[i].product = 1;
    if (asks[i].limit > 0 && asks[i].count > 0) active.push_back(i);
  }
  while (!active.empty()) {
    parts.clear();
    for (const int32_t i : active) {
      const Ask& a = asks[i];
      const bool first = a.forwards == 0;
      const int T = first ? a.count : 1;
      parts.push_back({a.model->layers, a.session, first ? a.pending : a.tokens + a.forwards - 1,
                       T, T - 1});
    }
    forward(*all, parts, *asks[0].model, all->drafts, best);
    size_t stay = 0;
    for (size_t row = 0; row < active.size(); ++row) {
      Ask& a = asks[active[row]];
      const int64_t V = a.model->vocabulary;
      const Drafting draft = {a.fallback, a.limit,         a.eos,            a.eos_count,
                              a.tokens,   a.probabilities, &a.written_count, &a.product};
      if (write(draft, a.forwards++, best[row], all->logits + row * rounded_up(V), V))
        active[stay++] = active[row];
    }
    active.resize(stay);
  }
}

// bild_t5_verify of several, in one forward.
void bild_t5_verify_together(Together* all, Ask* asks, int32_t count) {
  std::vector<Part> parts;
  for (int32_t i = 0; i < count; ++i)
    parts.push_back({asks[i].model->layers, asks[i].session, asks[i].pending, asks[i].count,
                     asks[i].first_row});
  const auto take = [&](size_t i, int r, const Best& b, const float* logits) {
    const Ask& a = asks[i];
    a.tokens[r] = b.token;
    a.probabilities[r] = probability(b);
    if (r < a.drafted_count)
      judge(r, a.drafted[r], b, logits, a.model->vocabulary, a.distances, a.entropies, a.ranks);
  };
  feed_together(*all, *asks[0].model, all->verdicts, parts, take);
}
}
