// A team of threads that share one piece of work: they meet at barriers, spin there for a moment and
// then sleep, so that a thread that has lost its core to a neighbour leaves the others' cores free.
//
// OpenMP's barriers spin (libgomp's for milliseconds), hundreds of times an output: beside one busy
// process that is many times slower than one thread alone. And a child of fork() has none of its
// parent's OpenMP threads, but waits for them; here it makes new ones.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

// Rounds of spinning before a thread sleeps: about 20 microseconds, a few times what one thread is
// usually behind the others.
constexpr int kSpins = 1000;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A number that grows, and threads that wait for it to do so.
class Bell {
 public:
  uint32_t rung() const { return value_.load(std::memory_order_acquire); }

  void ring() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    { std::lock_guard<std::mutex> lock(mutex_); }
    condition_.notify_all();
  }

  // Returns when `rung()` is no longer `before`.
  void wait(uint32_t before, int spins = kSpins) {
    for (int i = 0; i < spins; ++i) {
      if (rung() != before) return;
      relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    condition_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != before; });
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  }

 private:
  alignas(64) std::atomic<uint32_t> value_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable condition_;
};

// Where all `count` threads of a piece of work wait for each other.
class Barrier {
 public:
  void wait(int count) {
    if (count == 1) return;
    const uint32_t before = bell_.rung();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
      arrived_.store(0, std::memory_order_relaxed);
      bell_.ring();
    } else {
      bell_.wait(before);
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  Bell bell_;
};

// One thread's view of a piece of work that `count` threads share.
struct Thread {
  int index = 0, count = 1;
  Barrier* barrier = nullptr;

  // Waits until all threads of this piece of work are here.
  void meet() const {
    if (barrier) barrier->wait(count);
  }

  // This thread's part of n rows, in steps of `step`.
  void share(int64_t n, int64_t step, int64_t& begin, int64_t& end) const {
    const int64_t steps = (n + step - 1) / step;
    begin = std::min(n, steps * index / count * step);
    end = std::min(n, steps * (index + 1) / count * step);
  }
};

// The process's threads. One caller at a time has them; others, who call meanwhile from threads of
// their own, work alone: the cores are taken.
class Team {
 public:
  // Runs work(Thread) on `count` threads, the caller's among them, and returns when all are done.
  template <typename Work>
  static void run(int count, const Work& work) {
    if (count > 1) {
      Team& team = here();
      std::unique_lock<std::mutex> lock(team.used_, std::try_to_lock);
      if (lock.owns_lock()) return team.share(count, std::cref(work));
    }
    work(Thread{});
  }

 private:
  // This process's team. A child of fork() has none of its parent's threads, whose team is left as
  // it stands: its locks may be held by threads that no longer exist.
  static Team& here() {
    static std::atomic<Team*> team{nullptr};
    Team* known = team.load(std::memory_order_acquire);
    const pid_t process = getpid();
    while (!known || known->process_ != process) {
      Team* made = new Team(process);  // for as long as the process lives
      if (team.compare_exchange_strong(known, made)) return *made;
      delete made;
    }
    return *known;
  }

  explicit Team(pid_t process) : process_(process) {}

  void share(int count, std::function<void(const Thread&)> work) {
    while (helpers_ < count - 1 && hire(helpers_ + 1)) ++helpers_;
    work_ = std::move(work);
    count_ = std::min(count, helpers_ + 1);
    start_.ring();
    work_(Thread{0, count_, &barrier_});
    done_.wait(helpers_ + 1);
  }

  // One more helper, which no signal disturbs; false where the system has no thread to spare.
  bool hire(int index) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool there = true;
    try {
      std::thread([this, index, seen = start_.rung()] { serve(index, seen); }).detach();
    } catch (const std::system_error&) {
      there = false;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return there;
  }

  // A helper's life. Those whom a piece of work does not need are waited for as well, so that
  // nobody still reads `count_` when the next one begins.
  void serve(int index, uint32_t seen) {
    for (;; ++seen) {
      start_.wait(seen);
      const int helpers = helpers_;
      if (index < count_) work_(Thread{index, count_, &barrier_});
      done_.wait(helpers + 1);
    }
  }

  const pid_t process_;
  std::mutex used_;
  std::function<void(const Thread&)> work_;
  int count_ = 1, helpers_ = 0;
  Bell start_;
  Barrier barrier_, done_;
};

}  // namespace

// Whether work is better shared or done alone, found out by the clock: a model may be too small to
// share, and the other cores may be a neighbour's. All zero at first.
struct Pace {
  static constexpr int kKinds = 16;
  double seconds[kKinds];  // what each kind of work takes, done as it is now; 0 where not known
  int32_t alone;           // whether it is done alone now
  int32_t wait;            // pieces of work until the other way is tried again
  int32_t trying;          // whether the present one is such a try
  int32_t unused;

  // Threads for the next piece of work.
  int choose(int threads) {
    if (threads < 2) return 1;
    trying = wait-- <= 0;
    return (alone != 0) == (trying != 0) ? threads : 1;
  }

  // How long it took, in seconds. Pieces of one kind take equally long.
  void took(double elapsed, int kind) {
    double& usual = seconds[kind];
    if (!trying) {
      if (usual > 0 && elapsed > 2 * usual) wait = std::min(wait, 1);  // somebody else is at work
      usual = usual > 0 ? 0.75 * usual + 0.25 * elapsed : elapsed;
    } else if (usual <= 0) {
      wait = 1;  // nothing to compare with yet
    } else {
      if (elapsed < 0.95 * usual) {
        alone = !alone;
        std::fill(seconds, seconds + kKinds, 0.0);
        seconds[kind] = elapsed;
        wait = 64;
      } else {
        // The worse a try went, the rarer the next one: tries take a few percent of the time.
        wait = int32_t(std::min(4096.0, 64 * elapsed / usual));
      }
    }
  }

  // Shares `work`, or does it alone; see Team::run.
  template <typename Work>
  void run(int threads, int kind, const Work& work) {
    if (threads < 2) return Team::run(1, work);
    const auto start = std::chrono::steady_clock::now();
    Team::run(choose(threads), work);
    took(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), kind);
  }
};
