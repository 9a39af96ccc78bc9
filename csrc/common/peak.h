// How fast this machine multiplies and adds: the floor that the benchmarks quote.
#pragma once

#include <stdint.h>

namespace fastssl {

// Multiply-adds in registers only, on all of torch's threads, in the instruction set in use.
// Returns floating-point operations per second over about `seconds`.
double fma_rate(double seconds);

namespace base {
int64_t fma_loop(int64_t steps);
}
namespace avx2 {
int64_t fma_loop(int64_t steps);
}
namespace avx512 {
int64_t fma_loop(int64_t steps);
}
namespace wide {
int64_t fma_loop(int64_t steps);
}

}  // namespace fastssl
