#include "common/cpu.h"

#include <cstdlib>
#include <stdexcept>

namespace fastssl {
namespace {

Isa supported_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBase;
}

Isa chosen_isa() {
  const Isa supported = supported_isa();
  const char* wish = std::getenv("FASTSSL_CPU_CAPABILITY");
  if (wish == nullptr || *wish == '\0') return supported;
  for (const Isa isa : {Isa::kBase, Isa::kAvx2, Isa::kAvx512}) {
    if (std::string(wish) != isa_name(isa)) continue;
    if (isa <= supported) return isa;
    throw std::runtime_error(std::string("FASTSSL_CPU_CAPABILITY=") + wish +
                             ": this processor offers " + isa_name(supported) + " at most");
  }
  throw std::runtime_error(std::string("FASTSSL_CPU_CAPABILITY=") + wish +
                           ": must be base, avx2 or avx512");
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = chosen_isa();
  return isa;
}

const char* isa_name(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "base";
}

}  // namespace fastssl
