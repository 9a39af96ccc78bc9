// Compiled once per instruction set, with FASTSSL_ISA naming the namespace.
#include "common/peak.h"
#include "common/simd.h"

namespace fastssl {
namespace FASTSSL_ISA {

// Enough independent sums to cover the latency of a multiply-add on two units. Returns the number
// of floating-point operations.
int64_t fma_loop(int64_t steps) {
  constexpr int sums = 12;
  Vec<float> sum[sums] = {}, x = broadcast(1e-3f), y = broadcast(1e-3f);
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (int n = 0; n < sums; ++n) {
      // Without this one product would serve all sums, and additions alone are faster.
#if defined(__x86_64__) && FASTSSL_VECTOR_BYTES == 64 && defined(__AVX512F__)
      asm volatile("" : "+v"(x));
#elif defined(__x86_64__) && FASTSSL_VECTOR_BYTES <= 32
      asm volatile("" : "+x"(x));
#else
      asm volatile("" : "+m"(x));
#endif
      sum[n] += x * y;
    }
  }
  volatile float keep = 0;
  for (int n = 0; n < sums; ++n) keep = keep + sum[n][0];
  return steps * sums * kLanes<float> * 2;
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
