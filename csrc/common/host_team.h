// A team of threads played by one: each runs to its next barrier while the others stand still. In
// which order they run is up to the caller; results that depend on it show a missing barrier.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "common/team.h"

namespace fastssl {
namespace {

class HostStage;

struct HostTeam : Team {
  HostStage* stage;

  void sync() const;
  int64_t sum(int64_t x) const;
  double sum(double x) const;
};

// Threads take their turns forwards (order 0), backwards (1), or shuffled anew after each barrier,
// by the seed `order`.
class HostStage {
 public:
  HostStage(int32_t threads, int64_t order)
      : order_(order),
        random_(uint64_t(order)),
        fibers_(size_t(threads)),
        partial_(size_t(threads)),
        fractions_(size_t(threads)) {
    for (Fiber& fiber : fibers_) fiber.stack.resize(1 << 18);
  }

  // `body(team)` on every thread. Throws std::logic_error where not all reach the same barriers.
  void run(const std::function<void(const HostTeam&)>& body) {
    body_ = &body;
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = &main_;
      const auto self = reinterpret_cast<uintptr_t>(this);
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&HostStage::enter), 3,
                  int(uint32_t(self)), int(uint32_t(uint64_t(self) >> 32)), int(i));
    }
    std::vector<int32_t> turns(fibers_.size());
    for (size_t done = 0; done < fibers_.size();) {
      std::iota(turns.begin(), turns.end(), 0);
      if (order_ == 1) std::reverse(turns.begin(), turns.end());
      if (order_ > 1) std::shuffle(turns.begin(), turns.end(), random_);
      for (int32_t i : turns) swapcontext(&main_, &fibers_[size_t(i)].context);
      done = size_t(std::count_if(fibers_.begin(), fibers_.end(), [](auto& f) { return f.done; }));
      if (done != 0 && done != fibers_.size()) {
        throw std::logic_error("some threads of a team wait at a barrier, others are done");
      }
    }
  }

 private:
  friend struct HostTeam;

  struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
  };

  static void enter(int low, int high, int rank) {
    auto* self = reinterpret_cast<HostStage*>(
        uintptr_t(uint64_t(uint32_t(low)) | uint64_t(uint32_t(high)) << 32));
    HostTeam team;
    team.rank = rank;
    team.size = int32_t(self->fibers_.size());
    team.stage = self;
    (*self->body_)(team);
    self->fibers_[size_t(rank)].done = true;
  }

  int64_t order_;
  std::mt19937_64 random_;
  ucontext_t main_;
  std::vector<Fiber> fibers_;
  std::vector<int64_t> partial_;
  std::vector<double> fractions_;
  const std::function<void(const HostTeam&)>* body_ = nullptr;
};

inline void HostTeam::sync() const {
  swapcontext(&stage->fibers_[size_t(rank)].context, &stage->main_);
}

inline int64_t HostTeam::sum(int64_t x) const {
  stage->partial_[size_t(rank)] = x;
  sync();
  const int64_t total = std::accumulate(stage->partial_.begin(), stage->partial_.end(), int64_t{0});
  sync();
  return total;
}

inline double HostTeam::sum(double x) const {
  stage->fractions_[size_t(rank)] = x;
  sync();
  const double total = std::accumulate(stage->fractions_.begin(), stage->fractions_.end(), 0.0);
  sync();
  return total;
}

}  // namespace
}  // namespace fastssl
