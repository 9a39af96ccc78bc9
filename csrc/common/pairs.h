// How the threads of one parallel region share work: stages of independent tasks, and deterministic
// walks over all unordered pairs of blocks, for symmetric matrices, and over all pairs of a row
// block and a column block.
//
// A region costs tens of microseconds to enter, so that a pass has one. Threads only ever wait for
// tasks that another thread has begun: any number of them gets through, one included.
//
// In the walk, the pair (I, J) updates what belongs to block I and what belongs to block J. The
// walk is a round-robin tournament: round 0 is every block with itself, and in each later round
// every block meets one other. A block's rounds run in order and one at a time, so that nothing
// needs a lock or a private copy and each sum is added up in the same order on every run. There is
// no barrier between rounds: a thread that is done early takes the next pair whose two blocks have
// finished their rounds.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace fastssl {

// Spins until `reached()` holds, and lets other threads run before long.
template <class F>
void wait_until(const F& reached) {
  for (int spins = 0; !reached(); ++spins) {
    if (spins > 64) std::this_thread::yield();
  }
}

class Stage {
 public:
  explicit Stage(int64_t tasks) : tasks_(tasks) {}

  // Call from every thread; runs `task(0)`, `task(1)`, ... in any order, then `last()` once, and
  // returns when that is done.
  template <class F, class G>
  void run(const F& task, const G& last) {
    for (int64_t i = next_.fetch_add(1); i < tasks_; i = next_.fetch_add(1)) {
      task(i);
      if (done_.fetch_add(1) + 1 == tasks_) {
        last();
        over_.store(true, std::memory_order_release);
      }
    }
    wait_until([&] { return over_.load(std::memory_order_acquire); });
  }

  template <class F>
  void run(const F& task) {
    run(task, [] {});
  }

 private:
  const int64_t tasks_;
  std::atomic<int64_t> next_{0}, done_{0};
  std::atomic<bool> over_{false};
};

class Tournament {
 public:
  explicit Tournament(int64_t blocks)
      : blocks_(blocks),
        players_(blocks + blocks % 2),
        finished_(new std::atomic<int64_t>[static_cast<size_t>(players_)]) {
    for (int64_t i = 0; i < players_; ++i) finished_[i].store(0, std::memory_order_relaxed);
  }

  // Call from every thread; returns when no pair is left to start. Pairs start in the order of
  // their rounds, so the oldest unfinished one never waits.
  template <class F>
  void play(const F& pair) {
    const int64_t per_round = players_ / 2;
    const int64_t total = blocks_ + (players_ - 1) * per_round;
    for (;;) {
      const int64_t ticket = next_.fetch_add(1, std::memory_order_relaxed);
      if (ticket >= total) return;
      if (ticket < blocks_) {
        pair(ticket, ticket);
        finished_[ticket].store(1, std::memory_order_release);
        continue;
      }
      const int64_t round = (ticket - blocks_) / per_round;
      const int64_t seat = (ticket - blocks_) % per_round;
      const int64_t ring = players_ - 1;
      int64_t a = seat == 0 ? ring : (round + seat) % ring;
      int64_t b = seat == 0 ? round : (round - seat + ring) % ring;
      if (a > b) {
        const int64_t smaller = b;
        b = a;
        a = smaller;
      }
      const bool sits_out = b >= blocks_;  // an odd number of blocks has one without a partner
      wait(a, round + 1);
      if (!sits_out) {
        wait(b, round + 1);
        pair(a, b);
        finished_[b].store(round + 2, std::memory_order_release);
      }
      finished_[a].store(round + 2, std::memory_order_release);
    }
  }

  // Returns when a block has met all others.
  void finish(int64_t block) const { wait(block, players_); }

 private:
  void wait(int64_t block, int64_t rounds) const {
    wait_until([&] { return finished_[block].load(std::memory_order_acquire) == rounds; });
  }

  const int64_t blocks_;
  const int64_t players_;
  std::unique_ptr<std::atomic<int64_t>[]> finished_;
  std::atomic<int64_t> next_{0};
};

// All pairs of a row block and a column block, each block's in a fixed order and one at a time. In
// round r the n-th block of the side that has fewer meets block n + r of the other, modulo their
// number.
class Grid {
 public:
  Grid(int64_t rows, int64_t columns)
      : rows_are_fewer_(rows <= columns),
        few_(rows_are_fewer_ ? rows : columns),
        many_(rows_are_fewer_ ? columns : rows),
        finished_(new std::atomic<int64_t>[static_cast<size_t>(few_ + many_)]) {
    for (int64_t i = 0; i < few_ + many_; ++i) finished_[i].store(0, std::memory_order_relaxed);
  }

  // Call from every thread; returns when no pair is left to start.
  template <class F>
  void play(const F& pair) {
    for (;;) {
      const int64_t ticket = next_.fetch_add(1, std::memory_order_relaxed);
      if (ticket >= few_ * many_) return;
      const int64_t round = ticket / few_, a = ticket % few_, b = (a + round) % many_;
      // b was last met by a + 1 a round ago, or by 0 when the others had passed it.
      const int64_t ago = a + 1 < few_ ? 1 : many_ - a;
      wait(a, round);
      wait(few_ + b, round >= ago ? round - ago + 1 : 0);
      if (rows_are_fewer_) {
        pair(a, b);
      } else {
        pair(b, a);
      }
      finished_[a].store(round + 1, std::memory_order_release);
      finished_[few_ + b].store(round + 1, std::memory_order_release);
    }
  }

  // Return when a block has met all of the other side.
  void finish_row(int64_t block) const { finish(block, rows_are_fewer_); }
  void finish_column(int64_t block) const { finish(block, !rows_are_fewer_); }

 private:
  void finish(int64_t block, bool of_few) const {
    if (of_few) {
      wait(block, many_);
    } else {
      wait(few_ + block, block + 1 < few_ ? many_ : block + 1);
    }
  }

  void wait(int64_t place, int64_t rounds) const {
    wait_until([&] { return finished_[place].load(std::memory_order_acquire) == rounds; });
  }

  const bool rows_are_fewer_;
  const int64_t few_, many_;
  std::unique_ptr<std::atomic<int64_t>[]> finished_;  // of the few, then of the many
  std::atomic<int64_t> next_{0};
};

}  // namespace fastssl
