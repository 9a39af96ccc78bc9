#include "common/peak.h"

#include <atomic>
#include <chrono>

#include "common/cpu.h"
#include "common/stable.h"

namespace fastssl {

double fma_rate(double seconds) {
  using Loop = int64_t (*)(int64_t);
  const Loop loop = FASTSSL_SELECT(fma_loop);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::atomic<int64_t> operations{0};
  run_workers(torch::stable::get_num_threads(), [&](int64_t) {
    while (elapsed() < seconds) operations += loop(100000);
  });
  return double(operations) / elapsed();
}

}  // namespace fastssl
