// Which of the per-instruction-set copies of a kernel runs.
#pragma once

#include <string>
#include <vector>

namespace fastssl {

// kWide is the AVX-512 source (64-byte vectors) compiled for AVX2, in development builds only: the
// way to test it on a machine without AVX-512.
enum class Isa { kBase, kAvx2, kAvx512, kWide };

// In use: at first what the environment variable FASTSSL_CPU_CAPABILITY names, else the best this
// processor offers. Throws std::invalid_argument for a name that is unknown or cannot run here.
Isa cpu_isa();
void use_isa(const std::string& name);

const char* isa_name(Isa isa);
std::vector<std::string> isa_names();  // all that can run here

template <class Table>
Table& select(Isa isa, Table& base, Table& avx2, Table& avx512, Table& wide) {
  switch (isa) {
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kWide:
      return wide;
    default:
      return base;
  }
}

}  // namespace fastssl

// The copy of a kernel table that is in use, from inside the operator's namespace.
#ifdef FASTSSL_HAS_WIDE
#define FASTSSL_SELECT(table) \
  select(cpu_isa(), base::table, avx2::table, avx512::table, wide::table)
#else
#define FASTSSL_SELECT(table) \
  select(cpu_isa(), base::table, avx2::table, avx512::table, avx2::table)
#endif
