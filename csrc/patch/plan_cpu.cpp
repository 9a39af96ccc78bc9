// CPU operators that draw plans: a team of one for each sample, samples shared among threads.
#include <cstring>
#include <vector>

#include "common/stable.h"
#include "patch/plan_operator.h"
#include "patch/plan_team.h"

namespace fastssl {
namespace patch {
namespace {

struct SerialTeam {
  static constexpr int32_t rank = 0, size = 1;
  std::vector<uint64_t>* spare;

  template <class F>
  void for_each(int64_t count, const F& f) const {
    for (int64_t i = 0; i < count; ++i) f(i);
  }
  template <class F>
  void for_each(int32_t rows, int32_t columns, const F& f) const {
    for (int32_t row = 0; row < rows; ++row) {
      for (int32_t column = 0; column < columns; ++column) f(row, column);
    }
  }
  void sync() const {}
  int64_t sum(int64_t x) const { return x; }
};

// Uniform keys: one pass by their highest bits leaves a key or two in each of `count` buckets, in
// almost the right place.
void sort_keys(const SerialTeam& team, uint64_t* keys, int64_t count) {
  int32_t bits = 1;
  while (bits < 20 && int64_t(1) << bits < count) ++bits;
  const int64_t buckets = int64_t(1) << bits;
  std::vector<uint64_t>& spare = *team.spare;
  if (int64_t(spare.size()) < count + buckets) spare.resize(size_t(count + buckets));
  uint64_t *copy = spare.data(), *next = copy + count;
  std::memcpy(copy, keys, size_t(count) * sizeof(uint64_t));
  std::memset(next, 0, size_t(buckets) * sizeof(uint64_t));
  for (int64_t i = 0; i < count; ++i) ++next[copy[i] >> (64 - bits)];
  uint64_t before = 0;
  for (int64_t i = 0; i < buckets; ++i) {
    const uint64_t here = next[i];
    next[i] = before;
    before += here;
  }
  for (int64_t i = 0; i < count; ++i) keys[next[copy[i] >> (64 - bits)]++] = copy[i];
  for (int64_t i = 1; i < count; ++i) {
    const uint64_t key = keys[i];
    int64_t at = i;
    for (; at > 0 && keys[at - 1] > key; --at) keys[at] = keys[at - 1];
    keys[at] = key;
  }
}

template <class Plan>
void draw_batch(const Plan& plan, const PlanBatch& batch) {
  if (batch.length == 0) return;
  // A patch costs some 10 ns: a thread is woken for what takes longer than that.
  const int64_t grain = greatest<int64_t>(1, 16384 / batch.length);
  torch::stable::parallel_for(0, batch.batch, grain, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> scratch(size_t(scratch_words(plan, 1))), spare;
    const SerialTeam team{&spare};
    for (int64_t b = begin; b < end; ++b) draw_plan(team, plan, batch, b, scratch.data());
  });
}

PlanTensors patch_random(const Tensor& sample_ids, const std::optional<Tensor>& lengths,
                         const std::optional<Tensor>& step, int64_t step_value, int64_t seed,
                         const std::vector<int64_t>& grid, const std::vector<int64_t>& cell,
                         int64_t keep, bool ordered) {
  const RandomPlan plan = random_plan(sample_ids, lengths, grid, cell, keep, ordered);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), false);
  draw_batch(plan, made.batch);
  return {made.shuffle, made.restore, made.mask};
}

LengthTensors patch_blocks(const Tensor& sample_ids, const std::optional<Tensor>& counts,
                           const std::vector<double>& ratios, double probability,
                           const std::optional<Tensor>& step, int64_t step_value, int64_t seed,
                           const std::vector<int64_t>& grid, int64_t area_least, int64_t area_most,
                           const std::vector<double>& aspect, bool exact, bool roll) {
  const BlockPlan plan = block_plan(sample_ids, counts, ratios, probability, grid, area_least,
                                    area_most, aspect, exact, roll);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), true);
  draw_batch(plan, made.batch);
  return {made.shuffle, made.restore, made.mask, made.lengths};
}

PlanTensors patch_inverse_block(const Tensor& sample_ids, const std::optional<Tensor>& step,
                                int64_t step_value, int64_t seed, const std::vector<int64_t>& grid,
                                int64_t keep, const std::vector<double>& aspect, bool roll) {
  const InversePlan plan = inverse_plan(grid, keep, aspect, roll);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), false);
  draw_batch(plan, made.batch);
  return {made.shuffle, made.restore, made.mask};
}

TargetTensors patch_multiblock(const Tensor& sample_ids, const std::optional<Tensor>& step,
                               int64_t step_value, int64_t seed, const std::vector<int64_t>& grid,
                               const std::vector<int64_t>& context,
                               const std::vector<int64_t>& target, int64_t targets,
                               int64_t min_keep, bool allow_overlap, bool inclusive) {
  MultiblockPlan plan =
      multiblock_plan(grid, context, target, targets, min_keep, allow_overlap, inclusive);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), true);
  const int64_t area = int64_t(plan.target[0]) * plan.target[1];
  Tensor ids = NewPlan::empty(sample_ids, {made.batch.batch, targets, area}, ScalarType::Long);
  plan.target_ids = static_cast<int64_t*>(ids.mutable_data_ptr());
  draw_batch(plan, made.batch);
  return {ids, made.shuffle, made.restore, made.mask, made.lengths};
}

}  // namespace
}  // namespace patch

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("patch_random", TORCH_BOX(&patch::patch_random));
  m.impl("patch_blocks", TORCH_BOX(&patch::patch_blocks));
  m.impl("patch_inverse_block", TORCH_BOX(&patch::patch_inverse_block));
  m.impl("patch_multiblock", TORCH_BOX(&patch::patch_multiblock));
}

}  // namespace fastssl
