// Whole rounds of Big Little Decoder: draft, verify, cut, commit, roll both caches back, as
// bild/generation/lookahead.py tells it, which is the definition. Here for rules that need no more
// than the tokens' distances, and for nobody who looks at scores.
#pragma once

// Where a round's time went: to the drafts, of so many small forwards; and to a large forward of
// `width` tokens, 0 where none was made.
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
  RoundTime* times;  // of each round; with room for at_least + 1
  const int32_t* eos;
  int32_t eos_count;
  int32_t count;       // tokens
  int32_t checked;     // of them those that can no longer change
  int32_t max_length;
  int32_t at_least;    // tokens to check before it returns
  double fallback, rollback;
  int32_t window;      // tokens that the small model may write in a row
  int32_t lookahead;   // guesses behind which it may go on in a round, and
  double least;        // only while their chance is above this
  int32_t first_far_only, checks_end, large_after_cut;
  int32_t small_turn;  // whether the small model writes next
  int32_t ended;       // whether the output has
  int32_t rounds;      // that `times` tells of
  int32_t large_forwards, small_forwards, large_fed, small_fed;
  int32_t damaged, position;  // 1 the large, 2 the small model's scores are NaN, at this position
  RoundCounts counts;
};

extern "C" {
int32_t bild_t5_draft(const Model* m, Session* s, const int32_t* pending, int32_t count,
                      int32_t limit, double threshold, const int32_t* eos, int32_t eos_count,
                      int32_t* written, double* probabilities, int32_t* written_count);
void bild_t5_verify(const Model* m, Session* s, const int32_t* pending, int32_t count,
                    const int32_t* drafted, int32_t drafted_count, int32_t first_row,
                    int32_t* tokens, double* probabilities, double* distances);
}

namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What the small model wrote in one go; see bild.engines.Draft.
struct Window {
  int32_t tokens = 0;
  bool unsure = false, full = false;
};

// One output's rounds.
class Rounding {
 public:
  explicit Rounding(Rounds& rounds) : r(rounds) {}

  void run() {
    const int32_t enough = r.checked + r.at_least;
    while (!r.ended && r.checked < enough) {
      RoundTime& time = r.times[r.rounds];
      time = {seconds_now(), 0, -r.small_forwards, 0};
      if (!propose()) return;
      const double proposed = seconds_now();
      time = {proposed - time.drafted, 0, r.small_forwards + time.forwards, 0};
      ++r.rounds;
      if (ends_ && !r.checks_end && places_.empty()) {
        count_windows(1);
        r.ended = 1;
        return;
      }
      if (!verify(time.width)) return;
      time.verified = seconds_now() - proposed;
      commit();
    }
  }

 private:
  bool is_eos(int32_t token) const {
    return std::find(r.eos, r.eos + r.eos_count, token) != r.eos + r.eos_count;
  }

  // Whether the output ends with its last token.
  bool over() const { return r.count >= r.max_length || is_eos(r.tokens[r.count - 1]); }

  bool refuse(int32_t model, int32_t position) {
    r.damaged = model;
    r.position = position;
    return false;
  }

  // Lets the small model write behind the last token; what it wrote last is in `written_`, whether
  // it counts or not. Returns the number of probabilities.
  int32_t draft(int32_t limit, double threshold, int32_t* kept) {
    const int32_t cached = r.small->length, pending = r.count - cached;
    if (int32_t(written_.size()) < limit) {
      written_.resize(limit);
      probabilities_.resize(limit);
    }
    const int32_t forwards =
        bild_t5_draft(r.small_model, r.small, r.tokens + cached, pending, limit, threshold, r.eos,
                      r.eos_count, written_.data(), probabilities_.data(), kept);
    r.small_forwards += forwards;
    if (forwards > 0) r.small_fed += pending + forwards - 1;
    return forwards;
  }

  bool may_guess(double chance) const {
    return int32_t(places_.size()) < r.lookahead && chance > r.least;
  }

  // Windows behind the last token, with guesses between them; false where scores are NaN.
  bool propose() {
    windows_.clear();
    places_.clear();
    ends_ = false;
    double chance = 1;
    for (bool small_turn = r.small_turn;; small_turn = true) {
      Window window;
      double last = 0;  // the probability of what it wrote last
      if (small_turn) {
        const int32_t limit = std::min(r.window, r.max_length - r.count);
        const int32_t made = draft(limit, r.fallback, &window.tokens);
        if (made > 0) last = probabilities_[made - 1];
        if (last != last) return refuse(2, r.count + window.tokens);
        window.unsure = made > window.tokens;
        std::copy_n(written_.data(), window.tokens, r.tokens + r.count);
        r.count += window.tokens;
        ends_ = window.tokens > 0 && over();
        window.full = !window.unsure && !ends_;
      }
      windows_.push_back(window);
      if (ends_ || r.count + 1 >= r.max_length || !may_guess(chance)) return true;
      int32_t guess = window.unsure ? written_[window.tokens] : 0;
      if (!window.unsure) {
        int32_t kept;
        draft(1, 0, &kept);
        guess = written_[0];
        last = probabilities_[0];
        if (last != last) return refuse(2, r.count);
      }
      chance *= last;
      if (!may_guess(chance)) return true;
      places_.push_back(r.count);
      r.tokens[r.count++] = guess;
      ends_ = over();
      if (ends_) return true;
    }
  }

  // One large forward over all that it has not seen; false where scores are NaN. Of a proposal that
  // ends the output the last token looked at need not be fed.
  bool verify(int32_t& width) {
    looked_ = ends_ && !r.checks_end ? places_.back() + 1 : r.count;
    const int32_t cached = r.large->length, first_row = r.checked - cached - 1;
    width = looked_ - ends_ - cached;
    const int32_t rows = width - first_row, drafted = looked_ - r.checked;
    choices_.resize(rows);
    certainties_.resize(rows);
    distances_.resize(drafted);
    bild_t5_verify(r.large_model, r.large, r.tokens + cached, width, r.tokens + r.checked, drafted,
                   first_row, choices_.data(), certainties_.data(), distances_.data());
    r.large_forwards += 1;
    r.large_fed += width;
    for (int32_t i = 0; i < rows; ++i)
      if (certainties_[i] != certainties_[i]) return refuse(1, r.checked + i);
    return true;
  }

  // DistanceRule.first_cut of tokens first..last of those looked at; `last` where there is no cut.
  int32_t first_cut(int32_t first, int32_t last) const {
    for (int32_t i = first; i < last; ++i)
      if (distances_[i] > r.rollback) {
        if (choices_[i] != r.tokens[r.checked + i]) return i;
        if (r.first_far_only) return last;
      }
    return last;
  }

  // Keeps what stands (check_proposal), and writes the large model's own token behind it.
  void commit() {
    const int32_t drafted = looked_ - r.checked;
    int32_t kept = drafted, held = 0, start = 0;
    bool rolled_back = false;
    for (const int32_t place : places_) {
      const int32_t bound = place - r.checked;
      kept = first_cut(start, bound);
      rolled_back = kept < bound;
      if (rolled_back || choices_[bound] != r.tokens[place]) break;
      kept = drafted;
      start = bound + 1;
      ++held;
    }
    const int32_t guesses = int32_t(places_.size());
    const int32_t bound = held < guesses ? places_[held] - r.checked : drafted;
    if (held == guesses) {
      kept = first_cut(start, drafted);
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
    r.tokens[r.count++] = choices_[kept];
    r.checked = r.count;
    r.ended = over();
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
  bool ends_ = false;            // the proposal's last token ends the output
  int32_t looked_ = 0;           // the large model looks at tokens[checked:looked_]
  std::vector<int32_t> written_, choices_;  // by the small model; by the large one
  std::vector<double> probabilities_, certainties_;  // of these
  std::vector<double> distances_;  // the large model's from the tokens looked at
};

}  // namespace

extern "C" {

// Rounds until the output ends, `at_least` tokens more are checked, or scores are NaN.
void bild_t5_rounds(Rounds* rounds) { Rounding(*rounds).run(); }
}
