// CUDA operators: check what protects memory, allocate, launch on the current stream, register.
// Nothing here waits for the device.
#include <tuple>
#include <vector>

#include "patch/operator_cuda.h"
#include "patch/plan_operator.h"
#include "patch/pretext_operator.h"

namespace fastssl {
namespace patch {
namespace {

void check(const char* error) { STD_TORCH_CHECK(error == nullptr, "patch: CUDA: ", error); }

// The device of a tensor made current, in torch and in the runtime that is linked into this
// library, and its current stream.
struct Place {
  int32_t device;
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;

  explicit Place(const Tensor& x) : device(x.get_device_index()), guard(device) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                    "no CUDA stream");
    check(use_device(device));
  }
};

// Memory of a launch: freed memory of a stream is used again by the same stream alone.
struct Scratch {
  std::optional<Tensor> owner;

  void* get(const Tensor& like, int64_t bytes) {
    if (bytes == 0) return nullptr;
    owner = torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
    return owner->mutable_data_ptr();
  }
};

Pixels pixels_on_device(const Images& images, const Normalization& norm, const Tensor& like,
                        const Place& place, Scratch* table) {
  double* to = nullptr;
  if (images.channels > kChannelsByValue) {
    const std::vector<double> values = table_of(norm);
    to = static_cast<double*>(table->get(like, int64_t(values.size() * sizeof(double))));
    check(launch_fill(values.data(), int64_t(values.size()), to, place.stream));
  }
  return pixels_of(images, norm, to);
}

Tensor patch_gather(const Tensor& images, const Tensor& shuffle, const Tensor& restore,
                    const std::optional<Tensor>& lengths, int64_t keep,
                    const std::vector<int64_t>& patch, const std::vector<double>& mean,
                    const std::vector<double>& std, int64_t order, int64_t dtype) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, images);
  const Images geometry = images_of(images, patch, plan.length);
  const Normalization norm(geometry, mean, std);
  const ScalarType type = type_at(dtype);
  const Place place(images);
  Tensor out = torch::stable::new_empty(images, {plan.batch, keep, geometry.width()}, type);
  if (out.numel() == 0) return out;
  Scratch table;
  const Pixels pixels = pixels_on_device(geometry, norm, images, place, &table);
  const DType to = dtype_of(type);
  const GatherBatch batch = gather_batch(plan, pixels, order_at(order), to, out.mutable_data_ptr());
  check(launch_gather(batch, to, gather_is_packed(batch, to), place.stream));
  return out;
}

Tensor patch_gather_tokens(const Tensor& x, const std::optional<Tensor>& pos, const Tensor& shuffle,
                           const Tensor& restore, const std::optional<Tensor>& lengths,
                           int64_t keep, int64_t prefix) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, x);
  TokensJob job = tokens_of(x, plan, prefix, plan.length, x.scalar_type());
  job.pos = addend(pos, x.scalar_type(), (prefix + plan.length) * job.width, x);
  const Place place(x);
  Tensor out = torch::stable::new_empty(x, {plan.batch, prefix + keep, job.width});
  if (out.numel() == 0) return out;
  job.out = out.mutable_data_ptr();
  check(launch_tokens(tokens_batch(job, false), job.x_dtype, job.dtype, tokens_are_packed(job),
                      place.stream));
  return out;
}

Tensor patch_restore_tokens(const Tensor& visible, const std::optional<Tensor>& token,
                            const std::optional<Tensor>& pos, const Tensor& shuffle,
                            const Tensor& restore, const std::optional<Tensor>& lengths,
                            int64_t keep, int64_t prefix, int64_t dtype) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, visible);
  const ScalarType type = type_at(dtype);
  TokensJob job = tokens_of(visible, plan, prefix, keep, type);
  job.token = addend(token, type, job.width, visible);
  job.pos = addend(pos, type, (prefix + plan.length) * job.width, visible);
  const Place place(visible);
  Tensor out =
      torch::stable::new_empty(visible, {plan.batch, prefix + plan.length, job.width}, type);
  if (out.numel() == 0) return out;
  job.out = out.mutable_data_ptr();
  check(launch_tokens(tokens_batch(job, true), job.x_dtype, job.dtype, tokens_are_packed(job),
                      place.stream));
  return out;
}

Tensor patch_sum_removed(const Tensor& x, const Tensor& shuffle, const Tensor& restore,
                         const std::optional<Tensor>& lengths, int64_t keep, int64_t prefix) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, x);
  const TokensJob job = tokens_of(x, plan, prefix, plan.length, x.scalar_type());
  const Place place(x);
  Tensor out = torch::stable::new_empty(x, {job.width}, compute_type(x.scalar_type()));
  if (out.numel() == 0) return out;
  SumBatch batch = sum_batch(job);
  Scratch scratch;
  const int64_t bytes = batch.chunks * batch.width * int64_t(sizeof(double));
  batch.partial = static_cast<double*>(scratch.get(x, bytes));
  batch.out = out.mutable_data_ptr();
  check(launch_sum(batch, job.x_dtype, sum_is_packed(job), place.stream));
  return out;
}

std::tuple<Tensor, Tensor> patch_loss(const Tensor& images, const Tensor& pred,
                                      const Tensor& shuffle, const Tensor& restore,
                                      const std::optional<Tensor>& lengths, int64_t keep,
                                      const std::vector<int64_t>& patch,
                                      const std::vector<double>& mean,
                                      const std::vector<double>& std, bool norm_pix, int64_t kind,
                                      int64_t statistics, int64_t order, double upstream) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, images);
  const Images geometry = images_of(images, patch, plan.length);
  const Normalization norm(geometry, mean, std);
  STD_TORCH_CHECK(pred.device() == images.device(), "pred must be where the images are");
  LossJob job = loss_of(geometry, plan, norm, pred, norm_pix, kind, statistics, order, upstream);
  const Place place(images);
  Tensor gradient = new_gradient(pred, &job);
  Tensor loss = torch::stable::new_empty(pred, {}, compute_type(pred.scalar_type()));
  Scratch table, memory;
  LossBatch batch = loss_batch(job, pixels_on_device(geometry, norm, images, place, &table));
  const bool packed = loss_is_packed(job);
  const Layout layout = loss_layout(batch, compute_size(job.dtype), packed);
  const int64_t partial = (batch.teams * int64_t(sizeof(double)) + 15) / 16 * 16;
  char* bytes = static_cast<char*>(memory.get(images, partial + layout.global()));
  batch.partial = reinterpret_cast<double*>(bytes);
  batch.loss = loss.mutable_data_ptr();
  check(launch_loss(batch, job.dtype, packed, layout, bytes + partial, place.stream));
  return {loss, gradient};
}

void patch_scale_(Tensor x, const Tensor& by) {
  STD_TORCH_CHECK(x.is_contiguous() && by.numel() == 1 && by.device() == x.device(),
                  "x must be contiguous, and by one number where x is");
  if (x.numel() == 0) return;
  const Place place(x);
  const DType type = dtype_of(x);
  const ScaleBatch batch{x.mutable_data_ptr(), by.const_data_ptr(), dtype_of(by),
                         int64_t(x.numel())};
  const bool packed = is_packed(batch.x, size_of(type), count_of(type), batch.count, {});
  check(launch_scale(batch, type, packed, place.stream));
}

Tensor patch_tiles(const Tensor& images, const Tensor& corners, int64_t height, int64_t width) {
  const Place place(images);
  const auto [out, tiles] = checked_tiles(images, corners, height, width);
  check_tiles(tiles);
  if (out.numel() > 0) check(launch_tiles(tiles, place.stream));
  return out;
}

std::tuple<Tensor, Tensor> patch_mask_tokens(const Tensor& ids,
                                             const std::optional<Tensor>& special,
                                             const Tensor& sample_ids,
                                             const std::optional<Tensor>& step, int64_t step_value,
                                             int64_t seed, int64_t mask_id, int64_t vocab_size,
                                             const std::vector<double>& shares) {
  const TokenRule rule =
      checked_tokens(ids, special, sample_ids, step, mask_id, vocab_size, shares);
  const Place place(ids);
  const Tensor inputs = torch::stable::new_empty(ids, ids.sizes());
  const Tensor labels = torch::stable::new_empty(ids, ids.sizes());
  if (ids.numel() > 0) {
    check(launch_mask_tokens(
        token_batch(ids, special, sample_ids, step, step_value, seed, rule, inputs, labels),
        place.stream));
  }
  return {inputs, labels};
}

template <class Family>
void draw_batch(const Family& plan, const PlanBatch& batch, const Tensor& like,
                const Place& place) {
  if (batch.batch == 0 || batch.length == 0) return;
  Device device{};
  check(find_device(place.device, &device));
  const Layout layout = plan_layout(plan, batch, device);
  Scratch scratch;
  check(launch_plan(plan, batch, layout, scratch.get(like, layout.global()), place.stream));
}

PlanTensors patch_random(const Tensor& sample_ids, const std::optional<Tensor>& lengths,
                         const std::optional<Tensor>& step, int64_t step_value, int64_t seed,
                         const std::vector<int64_t>& grid, const std::vector<int64_t>& cell,
                         int64_t keep, bool ordered) {
  const RandomPlan plan = random_plan(sample_ids, lengths, grid, cell, keep, ordered);
  const Place place(sample_ids);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), false);
  draw_batch(plan, made.batch, sample_ids, place);
  return {made.shuffle, made.restore, made.mask};
}

LengthTensors patch_blocks(const Tensor& sample_ids, const std::optional<Tensor>& counts,
                           const std::vector<double>& ratios, double probability,
                           const std::optional<Tensor>& step, int64_t step_value, int64_t seed,
                           const std::vector<int64_t>& grid, int64_t area_least, int64_t area_most,
                           const std::vector<double>& aspect, bool exact, bool roll) {
  const BlockPlan plan = block_plan(sample_ids, counts, ratios, probability, grid, area_least,
                                    area_most, aspect, exact, roll);
  const Place place(sample_ids);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), true);
  draw_batch(plan, made.batch, sample_ids, place);
  return {made.shuffle, made.restore, made.mask, made.lengths};
}

PlanTensors patch_inverse_block(const Tensor& sample_ids, const std::optional<Tensor>& step,
                                int64_t step_value, int64_t seed, const std::vector<int64_t>& grid,
                                int64_t keep, const std::vector<double>& aspect, bool roll) {
  const InversePlan plan = inverse_plan(grid, keep, aspect, roll);
  const Place place(sample_ids);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), false);
  draw_batch(plan, made.batch, sample_ids, place);
  return {made.shuffle, made.restore, made.mask};
}

TargetTensors patch_multiblock(const Tensor& sample_ids, const std::optional<Tensor>& step,
                               int64_t step_value, int64_t seed, const std::vector<int64_t>& grid,
                               const std::vector<int64_t>& context,
                               const std::vector<int64_t>& target, int64_t targets,
                               int64_t min_keep, bool allow_overlap, bool inclusive) {
  MultiblockPlan plan =
      multiblock_plan(grid, context, target, targets, min_keep, allow_overlap, inclusive);
  const Place place(sample_ids);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), true);
  const int64_t area = int64_t(plan.target[0]) * plan.target[1];
  Tensor ids = NewPlan::empty(sample_ids, {made.batch.batch, targets, area}, ScalarType::Long);
  plan.target_ids = static_cast<int64_t*>(ids.mutable_data_ptr());
  draw_batch(plan, made.batch, sample_ids, place);
  return {ids, made.shuffle, made.restore, made.mask, made.lengths};
}

}  // namespace
}  // namespace patch

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) {
  m.impl("patch_gather", TORCH_BOX(&patch::patch_gather));
  m.impl("patch_gather_tokens", TORCH_BOX(&patch::patch_gather_tokens));
  m.impl("patch_restore_tokens", TORCH_BOX(&patch::patch_restore_tokens));
  m.impl("patch_sum_removed", TORCH_BOX(&patch::patch_sum_removed));
  m.impl("patch_loss", TORCH_BOX(&patch::patch_loss));
  m.impl("patch_scale_", TORCH_BOX(&patch::patch_scale_));
  m.impl("patch_tiles", TORCH_BOX(&patch::patch_tiles));
  m.impl("patch_mask_tokens", TORCH_BOX(&patch::patch_mask_tokens));
  m.impl("patch_random", TORCH_BOX(&patch::patch_random));
  m.impl("patch_blocks", TORCH_BOX(&patch::patch_blocks));
  m.impl("patch_inverse_block", TORCH_BOX(&patch::patch_inverse_block));
  m.impl("patch_multiblock", TORCH_BOX(&patch::patch_multiblock));
}

}  // namespace fastssl
