// What the operators that draw plans check and take apart in the same way on every device. Values
// on a GPU are not looked at: that would wait for it.
#pragma once

#include <array>
#include <tuple>
#include <vector>

#include "common/stable.h"
#include "patch/plan.h"

namespace fastssl {
namespace patch {
namespace {

using PlanTensors = std::tuple<Tensor, Tensor, Tensor>;                    // shuffle, restore, mask
using LengthTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;          // and lengths
using TargetTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // targets before those

// int64 [B] where sample_ids are.
inline void check_row(const Tensor& x, const Tensor& sample_ids, const char* what) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Long && x.is_contiguous() && x.dim() == 1 &&
                      x.size(0) == sample_ids.size(0) && x.device() == sample_ids.device(),
                  what, " must be int64 [B], contiguous, where sample_ids are");
}

template <size_t axes>
std::array<int32_t, axes> numbers_of(const std::vector<int64_t>& x, int64_t least_value,
                                     const char* what) {
  STD_TORCH_CHECK(x.size() == axes, what, " must have ", axes, " numbers");
  std::array<int32_t, axes> out;
  int64_t product = 1;
  for (size_t i = 0; i < axes; ++i) {
    STD_TORCH_CHECK(least_value <= x[i] && x[i] <= kMostPatches, what, " is out of range");
    product *= x[i];
    STD_TORCH_CHECK(product <= kMostPatches, what, " has too many patches");
    out[i] = int32_t(x[i]);
  }
  return out;
}

// The plan of a batch in new memory, and the tensors that own it.
struct NewPlan {
  Tensor shuffle, restore, mask, lengths;  // of which the last may be empty
  PlanBatch batch;

  NewPlan(const Tensor& sample_ids, const std::optional<Tensor>& step, int64_t step_value,
          int64_t seed, int64_t length, bool with_lengths)
      : shuffle(empty(sample_ids, {sample_ids.size(0), length}, ScalarType::Long)),
        restore(empty(sample_ids, {sample_ids.size(0), length}, ScalarType::Long)),
        mask(empty(sample_ids, {sample_ids.size(0), length}, ScalarType::Bool)),
        lengths(empty(sample_ids, {with_lengths ? sample_ids.size(0) : 0}, ScalarType::Long)) {
    check_row(sample_ids, sample_ids, "sample_ids");
    STD_TORCH_CHECK(!step || (step->scalar_type() == ScalarType::Long && step->numel() == 1 &&
                              step->device() == sample_ids.device()),
                    "step must be one int64 where sample_ids are");
    batch = {static_cast<const int64_t*>(sample_ids.const_data_ptr()),
             step ? static_cast<const int64_t*>(step->const_data_ptr()) : nullptr,
             step_value,
             seed,
             sample_ids.size(0),
             length,
             static_cast<int64_t*>(shuffle.mutable_data_ptr()),
             static_cast<int64_t*>(restore.mutable_data_ptr()),
             static_cast<bool*>(mask.mutable_data_ptr()),
             with_lengths ? static_cast<int64_t*>(lengths.mutable_data_ptr()) : nullptr};
  }

  static Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(like, shape, type);
  }
};

inline int64_t length_of(const RandomPlan& p) { return int64_t(p.grid[0]) * p.grid[1] * p.grid[2]; }
template <class Plan>
int64_t length_of(const Plan& p) {
  return int64_t(p.rows) * p.columns;
}

inline RandomPlan random_plan(const Tensor& sample_ids, const std::optional<Tensor>& lengths,
                              const std::vector<int64_t>& grid, const std::vector<int64_t>& cell,
                              int64_t keep, bool ordered) {
  const auto size = numbers_of<3>(grid, 1, "grid");
  const auto each = numbers_of<3>(cell, 1, "cell");
  RandomPlan plan{};
  for (int axis = 0; axis < 3; ++axis) {
    STD_TORCH_CHECK(size[axis] % each[axis] == 0, "cell must divide grid");
    plan.grid[axis] = size[axis];
    plan.cell[axis] = each[axis];
  }
  if (lengths) check_row(*lengths, sample_ids, "lengths");
  plan.keep = keep;
  plan.lengths = lengths ? static_cast<const int64_t*>(lengths->const_data_ptr()) : nullptr;
  plan.ordered = ordered;
  return plan;
}

inline void copy_pair(const std::vector<double>& from, double (&to)[2], const char* what) {
  STD_TORCH_CHECK(from.size() == 2, what, " must have 2 numbers");
  for (int i = 0; i < 2; ++i) {
    STD_TORCH_CHECK(-100 < from[i] && from[i] < 100, what, " must be moderate logarithms");
    to[i] = from[i];
  }
}

inline BlockPlan block_plan(const Tensor& sample_ids, const std::optional<Tensor>& counts,
                            const std::vector<double>& ratios, double probability,
                            const std::vector<int64_t>& grid, int64_t area_least, int64_t area_most,
                            const std::vector<double>& aspect, bool exact, bool roll) {
  const auto size = numbers_of<2>(grid, 1, "grid");
  const int64_t ranges = int64_t(ratios.size()) / 2;
  STD_TORCH_CHECK(ratios.size() % 2 == 0 && ranges <= kMostRanges && (counts || ranges > 0),
                  "ratios must be 1 to ", kMostRanges, " pairs");
  STD_TORCH_CHECK(
      0 < area_least && area_least <= kMostPatches && 0 < area_most && area_most <= kMostPatches,
      "least and most must be positive numbers of patches");
  if (counts) check_row(*counts, sample_ids, "counts");
  BlockPlan plan{};
  plan.rows = size[0];
  plan.columns = size[1];
  plan.counts = counts ? static_cast<const int64_t*>(counts->const_data_ptr()) : nullptr;
  plan.ranges = int32_t(ranges);
  for (int64_t i = 0; i < 2 * ranges; ++i) {
    STD_TORCH_CHECK(0 <= ratios[i] && ratios[i] <= 1, "ratios must be in [0, 1]");
    plan.ratio[i / 2][i % 2] = ratios[i];
  }
  plan.probability = probability;
  plan.area_least = area_least;
  plan.area_most = area_most;
  copy_pair(aspect, plan.aspect, "aspect");
  plan.exact = exact;
  plan.roll = roll;
  return plan;
}

inline InversePlan inverse_plan(const std::vector<int64_t>& grid, int64_t keep,
                                const std::vector<double>& aspect, bool roll) {
  const auto size = numbers_of<2>(grid, 1, "grid");
  InversePlan plan{size[0], size[1], keep, {0, 0}, roll};
  STD_TORCH_CHECK(0 <= keep && keep <= length_of(plan), "keep must be in [0, L]");
  copy_pair(aspect, plan.aspect, "aspect");
  return plan;
}

// `target_ids` is set by the caller, who makes the tensor.
inline MultiblockPlan multiblock_plan(const std::vector<int64_t>& grid,
                                      const std::vector<int64_t>& context,
                                      const std::vector<int64_t>& target, int64_t targets,
                                      int64_t min_keep, bool allow_overlap, bool inclusive) {
  const auto size = numbers_of<2>(grid, 1, "grid");
  const auto c = numbers_of<2>(context, 1, "context"), t = numbers_of<2>(target, 1, "target");
  STD_TORCH_CHECK(c[0] <= size[0] && c[1] <= size[1] && t[0] <= size[0] && t[1] <= size[1],
                  "context and target must fit the grid");
  STD_TORCH_CHECK(0 <= targets && targets <= 1024, "targets must be in [0, 1024]");
  return {size[0],  size[1],       {c[0], c[1]}, {t[0], t[1]}, int32_t(targets),
          min_keep, allow_overlap, inclusive,    nullptr};
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
