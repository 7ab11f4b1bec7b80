// What a row of logits says of a model's next token, and the two decisions that are made of it: when
// drafting stops, and which drafted tokens stand. The rules are those of bild/policy.py,
// bild/fallback.py and bild/acceptance.py, which are the definition; bild/engines/t5_rules.py knows
// their numbers here.
//
// Letters: V vocabulary, rows of the head that score.

#pragma once

#include "products.h"

enum FallbackKind : int32_t { kMaxProbability, kProduct, kMargin, kEntropy };
enum AcceptanceKind : int32_t {
  kExact, kDistance, kTopK, kTypical, kLenient, kRegret, kEnsemble, kCascade
};

// When the small model hands over; `setting` is its threshold, least or limit.
struct Fallback {
  int32_t kind;
  double setting;
};

// Which drafted tokens stand; settings in the order in which Python's rule has them.
struct Acceptance {
  int32_t kind;
  int32_t first_far_only;  // of kDistance
  double setting, second;
};

namespace {

// The likeliest token of a row.
struct Best {
  int32_t token;
  float logit;
  float sum;  // of e^(logit of v - logit), over v: 1 / sum is the token's probability
};

// Of the best token; NaN where the model is damaged, and the token then means nothing.
double probability(const Best& b) { return 1.0 / b.sum; }

// How far a row of logits is from a token, in nats.
double distance(const Best& b, const float* logits, int32_t token) {
  return double(b.logit) + std::log(double(b.sum)) - logits[token];
}

// Of a row's distribution, in nats; impossible tokens add nothing.
double entropy(const Best& b, const float* logits, int64_t V) {
  const Floats low = Floats{} - 87.0f;
  Floats sums = {};
  float total = 0;
  int64_t v = 0;
  for (; v + kLanes <= V; v += kLanes) {
    Floats below = load<Floats>(logits + v) - b.logit;
    below = below < low ? low : below;
    sums -= below * exp_negative(below);
  }
  for (; v < V; ++v) {
    const float below = std::max(logits[v] - b.logit, -87.0f);
    total -= below * std::exp(below);
  }
  return std::log(double(b.sum)) + double(total + sum(sums)) / b.sum;
}

// By how much the best token of a row is likelier than the second.
double margin(const Best& b, const float* logits, int64_t V) {
  const float nothing = -std::numeric_limits<float>::infinity();
  Floats tops = Floats{} + nothing, seconds = tops;
  float top = nothing, second = nothing;
  const auto see = [&](float logit) {
    second = std::max(second, std::min(top, logit));
    top = std::max(top, logit);
  };
  int64_t v = 0;
  for (; v + kLanes <= V; v += kLanes) {
    const Floats row = load<Floats>(logits + v), lower = row < tops ? row : tops;
    seconds = lower > seconds ? lower : seconds;
    tops = row > tops ? row : tops;
  }
  for (int i = 0; i < kLanes; ++i) see(tops[i]), see(seconds[i]);
  for (; v < V; ++v) see(logits[v]);
  return probability(b) * (1 - std::exp(double(second) - b.logit));
}

// How many tokens of a row are likelier than this one.
int32_t rank(const float* logits, int64_t V, int32_t token) {
  const float own = logits[token];
  int32_t above = 0;
  for (int64_t v = 0; v < V; ++v) above += logits[v] > own;
  return above;
}

// ------------------------------------------------------------------------ when drafting stops

// FallbackRule.should_stop; `product` is of the probabilities of the draft, this one included.
bool should_stop(const Fallback& rule, const Best& best, double product, const float* logits,
                 int64_t V) {
  switch (rule.kind) {
    case kProduct: return product < rule.setting;
    case kMargin: return margin(best, logits, V) < rule.setting;
    case kEntropy: return entropy(best, logits, V) > rule.setting;
    default: return probability(best) < rule.setting;
  }
}

// ------------------------------------------------------------------------ what stands

// What is known of a drafted token when the large model has looked at it; see bild.policy.Window.
struct Looked {
  int32_t drafted, choice;
  double confidence, distance, own_distance;
  double entropy;  // where the rule reads it, and
  int32_t rank;    // likewise
};

bool reads_entropy(const Acceptance& rule) { return rule.kind == kTypical; }
bool reads_rank(const Acceptance& rule) { return rule.kind == kTopK; }

// By how many nats the large model likes a drafted token less than its own choice.
double regret(const Looked& t) { return t.distance - t.own_distance; }

// Whether a regret is allowed; with nothing allowed, not even that of an equally likely token.
bool within(double regret, double allowed) {
  const double all = std::numeric_limits<double>::infinity();
  return allowed > 0 && (regret <= allowed || allowed == all);
}

// TokenRule.accepts: whether a token other than the large model's choice may stay.
bool accepts(const Acceptance& rule, const Looked& t) {
  const double setting = rule.setting, second = rule.second;
  switch (rule.kind) {
    case kTopK: return setting != 1 && t.rank < setting && within(regret(t), second);
    case kTypical:
      return std::exp(-t.distance) >= std::min(setting, second * std::exp(-t.entropy));
    case kLenient:
      return within(regret(t), -std::log(setting));
    case kEnsemble: {
      if (setting == 0) return false;
      const double c = t.confidence, best = std::exp(-t.own_distance);
      const double rival = (1 - setting) * best + setting * std::min(c, 1 - c);
      return (1 - setting) * std::exp(-t.distance) + setting * c >= rival;
    }
    case kCascade:
      return setting != -1 && t.confidence >= std::exp(-t.own_distance) - setting;
    default: return false;  // kExact
  }
}

// AcceptanceRule.first_cut of `count` tokens; `count` where there is no cut. `spent` is what the
// rule has let pass before them.
int32_t first_cut(const Acceptance& rule, const Looked* tokens, int32_t count, double spent) {
  for (int32_t i = 0; i < count; ++i) {
    const Looked& t = tokens[i];
    const bool differs = t.choice != t.drafted;
    if (rule.kind == kDistance) {
      if (!(t.distance > rule.setting)) continue;
      if (differs) return i;
      if (rule.first_far_only) return count;
    } else if (differs && rule.kind == kRegret) {
      spent += std::max(0.0, regret(t));
      if (!within(spent, rule.setting)) return i;
    } else if (differs && !accepts(rule, t)) {
      return i;
    }
  }
  return count;
}

// AcceptanceRule.spends of the first `kept` tokens.
double spends(const Acceptance& rule, const Looked* tokens, int32_t kept) {
  double spent = 0;
  if (rule.kind == kRegret)
    for (int32_t i = 0; i < kept; ++i)
      if (tokens[i].choice != tokens[i].drafted) spent += std::max(0.0, regret(tokens[i]));
  return spent;
}

}  // namespace
