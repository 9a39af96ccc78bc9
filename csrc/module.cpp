// fastssl._C: importing it registers the CPU operators; what it exports has no tensor in it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/cpu.h"
#include "common/peak.h"
#include "patch/permutations.h"

#ifndef FASTSSL_HAS_CUDA
#define FASTSSL_HAS_CUDA false
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU operators of fastssl and information about this build.";
  // An impossible FASTSSL_CPU_CAPABILITY shall fail here, not at the first call of an operator.
  fastssl::cpu_isa();
  m.def(
      "cpu_capability", [] { return fastssl::isa_name(fastssl::cpu_isa()); },
      "Instruction set the CPU operators use: base, avx2 or avx512.");
  m.def("cpu_capabilities", &fastssl::isa_names, "Instruction sets that can run here.");
  m.def(
      "use_cpu_capability", &fastssl::use_isa, pybind11::arg("name"),
      "Switch to another instruction set, for tests and benchmarks; ValueError if it cannot run.");
  m.def("fma_rate", &fastssl::fma_rate, pybind11::arg("seconds") = 0.5,
        pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Floating-point operations per second of multiply-adds in registers, on all threads.");
  m.def(
      "hamming_permutations",
      [](int64_t count, int64_t tiles, bool max_min, uint64_t seed) {
        using fastssl::patch::Criterion;
        std::vector<uint8_t> found;
        {
          const pybind11::gil_scoped_release release;
          found = fastssl::patch::hamming_permutations(
              count, tiles, max_min ? Criterion::kMaxMin : Criterion::kMaxAvg, seed);
        }
        return pybind11::bytes(reinterpret_cast<const char*>(found.data()), found.size());
      },
      pybind11::arg("count"), pybind11::arg("tiles"), pybind11::arg("max_min"),
      pybind11::arg("seed"), "Permutations far from each other, count * tiles bytes.");
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["compiler"] = FASTSSL_COMPILER;
        info["torch"] = FASTSSL_TORCH_VERSION;
        info["cuda_library"] = FASTSSL_HAS_CUDA;
        return info;
      },
      "Compiler, torch whose headers were used, and whether the CUDA library was built.");
}
