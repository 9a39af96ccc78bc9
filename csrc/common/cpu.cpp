#include "common/cpu.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastssl {
namespace {

bool can_run(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  switch (isa) {
    case Isa::kBase:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd");
    case Isa::kWide:
#ifdef FASTSSL_HAS_WIDE
      return avx2;
#else
      return false;
#endif
  }
#endif
  return isa == Isa::kBase;
}

constexpr Isa kAll[] = {Isa::kBase, Isa::kAvx2, Isa::kAvx512, Isa::kWide};

Isa isa_named(const std::string& name) {
  for (const Isa isa : kAll) {
    if (name == isa_name(isa) && can_run(isa)) return isa;
  }
  std::string names;
  for (const std::string& known : isa_names()) names += (names.empty() ? "" : ", ") + known;
  throw std::invalid_argument("CPU capability '" + name + "' cannot run here; these can: " + names);
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa = [] {
    const char* wish = std::getenv("FASTSSL_CPU_CAPABILITY");
    if (wish != nullptr && *wish != '\0') return isa_named(wish);
    return can_run(Isa::kAvx512) ? Isa::kAvx512 : can_run(Isa::kAvx2) ? Isa::kAvx2 : Isa::kBase;
  }();
  return isa;
}

}  // namespace

Isa cpu_isa() { return current().load(std::memory_order_relaxed); }

void use_isa(const std::string& name) { current().store(isa_named(name)); }

const char* isa_name(Isa isa) {
  constexpr const char* kNames[] = {"base", "avx2", "avx512", "wide"};
  return kNames[static_cast<int>(isa)];
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Isa isa : kAll) {
    if (can_run(isa)) names.push_back(isa_name(isa));
  }
  return names;
}

}  // namespace fastssl
