// Whole rounds of Big Little Decoder: draft, verify, cut, commit, roll both caches back, as
// bild/generation/lookahead.py tells it, which is the definition. Here for the rules of rules.h, and
// for nobody who looks at scores. The outputs of a batch make their rounds side by side, so that one
// forward serves them all; each as if it were alone.
#pragma once

// Where a round's time went: to the drafts, of so many small forwards; and to a large forward of
// `width` tokens, 0 where none was made. Of what several outputs share, each has its part.
struct RoundTime {
  double drafted, verified;
  int32_t forwards, width;
};

// What is counted of rounds; fields of bild.generation.stats.
struct RoundCounts {
  int32_t fallbacks, rollbacks, rolled_back_tokens, drafted_tokens, full_windows, verifications,
      verified_tokens, guesses, guesses_held;
};

// What is asked of a pair, and what was found; zero where nothing has been.
struct Rounds {
  const Model *large_model, *small_model;
  Session *large, *small;
  int32_t* tokens;  // the output so far, prompt included, with room for the longest round
  RoundTime* times;  // of each round; with room for one a token to check
  const int32_t* eos;
  int32_t eos_count;
  int32_t count;       // tokens
  int32_t checked;     // of them those that can no longer change
  int32_t max_length;
  int32_t until;       // tokens to check before it returns
  Fallback fallback;
  Acceptance acceptance;
  double spent;        // what the acceptance rule has let pass so far
  int32_t window;      // tokens that the small model may write in a row
  int32_t lookahead;   // guesses behind which it may go on in a round, and
  double least;        // only while their chance is above this
  int32_t last_guess;  // whether a turn may end with a guess, the large model writing behind it
  int32_t checks_end, large_after_cut;
  int32_t small_turn;  // whether the small model writes next
  int32_t ended;       // whether the output has
  int32_t rounds;      // that `times` tells of
  int32_t large_forwards, small_forwards, large_fed, small_fed;
  int32_t damaged, position;  // 1 the large, 2 the small model's scores are NaN, at this position
  RoundCounts counts;
};

namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What the small model wrote in one go; see bild.engines.Draft.
struct Window {
  int32_t tokens = 0;
  bool unsure = false, full = false;
};

// One output's rounds, forward by forward: the small model is fed as long as it `drafts`, then the
// large one once if it `looks`.
class Rounding {
 public:
  explicit Rounding(Rounds& rounds) : r(rounds) {}

  bool drafts() const { return drafts_ && !r.damaged; }
  bool looks() const { return !r.damaged && !unchecked(); }

  // Whether there is nothing more to do for now.
  bool is_done() const { return r.ended || r.damaged || r.checked >= r.until; }

  // A round begins.
  void begin() {
    windows_.clear();
    places_.clear();
    confidences_.clear();
    chance_ = 1;
    ends_ = false;
    window_ = {};
    if (r.small_turn)
      open_window();
    else
      close_window();
    time_ = {0, 0, -r.small_forwards, 0};
  }

  // What the small model is to be fed: all that it has not seen.
  Part pending() {
    const int32_t cached = r.small->length, T = r.count - cached;
    r.small_fed += T;
    return {r.small_model->layers, r.small, r.tokens + cached, T, T - 1};
  }

  // What it wrote behind that, by a row of its logits.
  void drafted(const Best& best, const float* logits) {
    const double p = probability(best);
    ++r.small_forwards;
    if (p != p) return refuse(2, r.count);
    if (guesses_) return guess(best.token, p);
    product_ *= p;
    window_.unsure = should_stop(r.fallback, best, product_, logits, r.small_model->vocabulary);
    if (!window_.unsure) {
      write(best.token, p);
      if (++window_.tokens < limit_ && !is_eos(best.token)) return;
    }
    ends_ = window_.tokens > 0 && output_ends();
    window_.full = !window_.unsure && !ends_;
    close_window();
    if (window_.unsure && guesses_) guess(best.token, p);
  }

  // What the large model is to be fed: all that it has not seen. Of a proposal that ends the output
  // the last token looked at need not be fed.
  Part looked_at() {
    looked_ = ends_ && !r.checks_end ? places_.back() + 1 : r.count;
    const int32_t cached = r.large->length, width = looked_ - ends_ - cached;
    const int32_t first_row = r.checked - cached - 1;
    rows_.resize(width - first_row);
    r.large_forwards += 1;
    r.large_fed += width;
    time_.width = width;
    return {r.large_model->layers, r.large, r.tokens + cached, width, first_row};
  }

  // What it says of the i-th token looked at, by a row of its logits.
  void judged(int32_t i, const Best& best, const float* logits) {
    const double p = probability(best);
    if (p != p && !r.damaged) refuse(1, r.checked + i);
    Looked& row = rows_[i];
    row.choice = best.token;
    if (i >= looked_ - r.checked) return;  // the row behind the last token looked at
    const int64_t V = r.large_model->vocabulary;
    row.drafted = r.tokens[r.checked + i];
    row.confidence = confidences_[i];
    row.distance = distance(best, logits, row.drafted);
    row.own_distance = p ? -std::log(p) : std::numeric_limits<double>::infinity();
    if (reads_entropy(r.acceptance)) row.entropy = entropy(best, logits, V);
    if (reads_rank(r.acceptance)) row.rank = rank(logits, V, row.drafted);
  }

  // The round is over: it took so long, `width` tokens being fed to the large model.
  void end(double drafted, double verified, int32_t width) {
    time_ = {drafted, verified, forwards(), width};
    r.times[r.rounds++] = time_;
    if (r.damaged) return;
    if (!unchecked()) return commit();
    count_windows(1);
    r.ended = 1;
  }

  // Of this round: small forwards, and tokens fed to the large model.
  int32_t forwards() const { return r.small_forwards + time_.forwards; }
  int32_t width() const { return time_.width; }

 private:
  bool is_eos(int32_t token) const {
    return std::find(r.eos, r.eos + r.eos_count, token) != r.eos + r.eos_count;
  }

  // Whether the output ends with its last token.
  bool output_ends() const { return r.count >= r.max_length || is_eos(r.tokens[r.count - 1]); }

  // Whether the proposal ends the output without a look at it.
  bool unchecked() const { return ends_ && !r.checks_end && places_.empty(); }

  // The small model's token, behind all others.
  void write(int32_t token, double p) {
    r.tokens[r.count++] = token;
    confidences_.push_back(p);
  }

  void refuse(int32_t model, int32_t position) {
    r.damaged = model;
    r.position = position;
  }

  bool may_guess() const { return int32_t(places_.size()) < r.lookahead && chance_ > r.least; }

  void open_window() {
    window_ = {};
    product_ = 1;
    drafts_ = true;
    guesses_ = false;
    limit_ = std::min(r.window, r.max_length - r.count);
    if (limit_ > 0) return;
    window_.full = true;  // of none
    close_window();
  }

  // The window is whole; the small model goes on only behind a guess, the next token. Behind a token
  // that fills the output nothing could be drafted.
  void close_window() {
    windows_.push_back(window_);
    const bool room = !ends_ && r.count + 1 < r.max_length;
    goes_on_ = room && may_guess();
    drafts_ = guesses_ = goes_on_ || (room && r.last_guess && window_.unsure);
  }

  void guess(int32_t token, double p) {
    chance_ *= p;
    goes_on_ = goes_on_ && may_guess();
    drafts_ = false;
    if (!goes_on_ && !r.last_guess) return;
    places_.push_back(r.count);
    write(token, p);
    ends_ = output_ends();
    if (goes_on_ && !ends_) open_window();
  }

  // Where the window of tokens first..last is cut; `last` where it is not.
  int32_t cut(int32_t first, int32_t last) {
    const Looked* window = rows_.data() + first;
    const int32_t kept = first_cut(r.acceptance, window, last - first, r.spent);
    r.spent += spends(r.acceptance, window, kept);
    return first + kept;
  }

  // Keeps what stands (check_proposal), and writes the large model's own token behind it.
  void commit() {
    const int32_t drafted = looked_ - r.checked;
    int32_t kept = drafted, held = 0, start = 0;
    bool rolled_back = false;
    for (const int32_t place : places_) {
      const int32_t bound = place - r.checked;
      kept = cut(start, bound);
      rolled_back = kept < bound;
      if (rolled_back || rows_[bound].choice != r.tokens[place]) break;
      kept = drafted;
      start = bound + 1;
      ++held;
    }
    const int32_t guesses = int32_t(places_.size());
    const int32_t bound = held < guesses ? places_[held] - r.checked : drafted;
    if (held == guesses) {
      kept = cut(start, drafted);
      rolled_back = kept < drafted;
    }
    count_windows(held + 1);
    r.counts.rollbacks += rolled_back;
    r.counts.rolled_back_tokens += rolled_back ? bound - kept : 0;
    r.counts.verifications += drafted > 0;
    r.counts.verified_tokens += kept - held;
    r.counts.guesses += guesses;
    r.counts.guesses_held += held;
    if (kept == drafted && ends_) {
      r.ended = 1;
      return;
    }
    if (kept < drafted) {
      r.count = r.checked + kept;
      r.large->length = std::min(r.large->length, r.count);
      r.small->length = std::min(r.small->length, r.count);
    }
    r.tokens[r.count++] = rows_[kept].choice;
    r.checked = r.count;
    r.ended = output_ends();
    r.small_turn = !(rolled_back && r.large_after_cut);
  }

  // What happened in the first windows, as plain decoding counts it.
  void count_windows(int32_t reached) {
    for (int32_t i = 0; i < std::min(reached, int32_t(windows_.size())); ++i) {
      r.counts.fallbacks += windows_[i].unsure;
      r.counts.drafted_tokens += windows_[i].tokens;
      r.counts.full_windows += windows_[i].full;
    }
  }

  Rounds& r;
  std::vector<Window> windows_;
  std::vector<int32_t> places_;  // of the guesses, each behind its window
  Window window_;                // that is being written
  int32_t limit_ = 0;            // of its tokens
  double chance_ = 1;            // that all guesses hold
  bool drafts_ = false;          // the small model goes on, and
  bool guesses_ = false;         // its next token is a guess, behind which
  bool goes_on_ = false;         // it opens another window
  bool ends_ = false;            // the proposal's last token ends the output
  double product_ = 1;           // of the probabilities of the window
  std::vector<double> confidences_;  // of the small model in its tokens, from `checked` on
  int32_t looked_ = 0;           // the large model looks at tokens[checked:looked_], and
  std::vector<Looked> rows_;     // says this of them, and perhaps what it would write behind them
  RoundTime time_ = {};
};

// Rounds of several outputs side by side until one of them is done. `feed_small` and `feed_large`
// are given parts of outputs, and hand on each row of logits with the number of its part.
template <typename FeedSmall, typename FeedLarge>
void make_rounds(std::vector<Rounding>& all, const FeedSmall& feed_small,
                 const FeedLarge& feed_large) {
  std::vector<Part> parts;
  std::vector<Rounding*> whose;
  const auto wanted = [&](auto wants, auto part) {
    parts.clear(), whose.clear();
    for (Rounding& one : all)
      if (wants(one)) whose.push_back(&one), parts.push_back(part(one));
    return !parts.empty();
  };
  bool done = false;
  while (!done) {
    const double start = seconds_now();
    for (Rounding& one : all) one.begin();
    while (wanted([](auto& one) { return one.drafts(); }, [](auto& one) { return one.pending(); }))
      feed_small(parts, [&](size_t i, int, const Best& best, const float* logits) {
        whose[i]->drafted(best, logits);
      });
    const double proposed = seconds_now();
    if (wanted([](auto& one) { return one.looks(); }, [](auto& one) { return one.looked_at(); }))
      feed_large(parts, [&](size_t i, int row, const Best& best, const float* logits) {
        whose[i]->judged(row, best, logits);
      });
    const double drafting = proposed - start, verifying = seconds_now() - proposed;
    int forwards = 0, width = 0;
    const int count = int(whose.size());
    for (Rounding& one : all) forwards += one.forwards(), width += one.width();
    for (Rounding& one : all) {
      const double share = forwards ? drafting * one.forwards() / forwards : 0;
      const bool looked = one.width() > 0;
      one.end(share, looked ? verifying / count : 0, looked ? (width + count / 2) / count : 0);
      done |= one.is_done();
    }
  }
}

}  // namespace

extern "C" {

// Rounds of one output until it ends, `until` tokens are checked, or scores are NaN.
void bild_t5_rounds(Rounds* rounds) {
  const auto feed = [](const Model* m) {
    return [m](const std::vector<Part>& parts, const auto& take) {
      const Part& part = parts[0];
      const auto take_row = [&](int row, const Best& b, const float* l) { take(0, row, b, l); };
      feed_alone(*m, *part.session, part.tokens, part.T, part.first_row, take_row);
    };
  };
  std::vector<Rounding> one(1, Rounding(*rounds));
  if (!one[0].is_done()) make_rounds(one, feed(rounds->small_model), feed(rounds->large_model));
}

// Rounds of several outputs of one pair until one of them is done; none of them is yet.
void bild_t5_rounds_together(Together* large, Together* small, Rounds* const* rounds,
                             int32_t count) {
  const auto feed = [](Together& all, const Model* m, Pace& pace) {
    return [&all, m, &pace](const std::vector<Part>& parts, const auto& take) {
      feed_together(all, *m, pace, parts, take);
    };
  };
  std::vector<Rounding> all;
  for (int32_t i = 0; i < count; ++i) all.emplace_back(*rounds[i]);
  make_rounds(all, feed(*small, rounds[0]->small_model, small->drafts),
              feed(*large, rounds[0]->large_model, large->verdicts));
}
}
