// Which of the per-instruction-set copies of a kernel runs on this machine.
#pragma once

#include <string>

namespace fastssl {

enum class Isa { kBase, kAvx2, kAvx512 };

// The best that the processor offers, lowered by the environment variable FASTSSL_CPU_CAPABILITY
// (base, avx2 or avx512), read once. Throws std::runtime_error where the variable names an
// instruction set that does not exist or that this processor lacks.
Isa cpu_isa();
const char* isa_name(Isa isa);

template <class Table>
const Table& select(Isa isa, const Table& base, const Table& avx2, const Table& avx512) {
  return isa == Isa::kAvx512 ? avx512 : isa == Isa::kAvx2 ? avx2 : base;
}

}  // namespace fastssl
