// The one place that includes torch: its stable ABI, so that one build serves every torch from 2.10
// on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "common/half.h"

namespace fastssl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "expected a float64, float32, float16 or bfloat16 tensor");
  }
}

inline DType dtype_of(const Tensor& x) { return dtype_of(x.scalar_type()); }

// The value of a tensor of one element on the CPU.
inline double value_of(const Tensor& x) {
  STD_TORCH_CHECK(x.numel() == 1 && x.is_cpu(), "expected one element on the CPU");
  double value = 0;
  load_row<double>(x.const_data_ptr(), dtype_of(x), 0, 1, 1, &value);
  return value;
}

// How many of torch's threads `work` (floating-point operations) in so many tasks is worth.
inline int64_t worker_count(double work, int64_t tasks) {
  constexpr double kWorthAThread = 1 << 19;
  const int64_t wanted = std::min<int64_t>(tasks, static_cast<int64_t>(work / kWorthAThread) + 1);
  return std::max<int64_t>(1, std::min<int64_t>(wanted, torch::stable::get_num_threads()));
}

// Runs `body(worker)` for worker = 0, 1, ..., in parallel where torch allows it. Workers share what
// there is to do among themselves (common/pairs.h).
template <class F>
void run_workers(int64_t workers, const F& body) {
  if (workers == 1) return body(int64_t{0});
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(worker);
  });
}

}  // namespace fastssl
