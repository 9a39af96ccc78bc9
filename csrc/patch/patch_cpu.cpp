// CPU operators on patches: check what protects memory, share samples among threads, register.
#include <atomic>
#include <tuple>
#include <vector>

#include "common/cpu.h"
#include "common/memory.h"
#include "common/stable.h"
#include "patch/operator.h"

namespace fastssl {
namespace patch {
namespace {

const Kernels& kernels() { return FASTSSL_SELECT(kKernels); }

constexpr double kNumber = 8;    // operations that a number costs which is moved
constexpr int64_t kRows = 16;    // patches in a task
constexpr int64_t kGroups = 64;  // of samples whose sums are kept apart

// Runs f(task) for all tasks; false where one of them returns it.
template <class F>
bool share(double work, int64_t tasks, const F& f) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> good{true};
  run_workers(worker_count(work, tasks), [&](int64_t) {
    Scratch scratch;
    for (int64_t i = next.fetch_add(1); i < tasks && good; i = next.fetch_add(1)) {
      if (!f(i, scratch)) good = false;
    }
  });
  return good;
}

void check_indices(bool good) {
  STD_TORCH_CHECK(good, "patch: an index of the plan is out of range, or there is no memory left");
}

Tensor patch_gather(const Tensor& images, const Tensor& shuffle, const Tensor& restore,
                    const std::optional<Tensor>& lengths, int64_t keep,
                    const std::vector<int64_t>& patch, const std::vector<double>& mean,
                    const std::vector<double>& std, int64_t order, int64_t dtype) {
  GatherJob job{};
  job.plan = plan_of(shuffle, restore, lengths, keep, images);
  job.images = images_of(images, patch, job.plan.length);
  const Normalization norm(job.images, mean, std);
  job.scale = norm.scale.data();
  job.shift = norm.shift.data();
  job.order = order_at(order);
  const ScalarType type = type_at(dtype);
  job.dtype = dtype_of(type);
  const int64_t batch = job.plan.batch, width = job.images.width();
  Tensor out = torch::stable::new_empty(images, {batch, keep, width}, type);
  job.out = out.mutable_data_ptr();
  ask_for_large_pages(out);
  const Kernels& k = kernels();
  const int64_t chunks = (keep + kRows - 1) / kRows;
  check_indices(share(kNumber * double(out.numel()), batch * chunks, [&](int64_t i, Scratch& s) {
    const int64_t begin = i % chunks * kRows;
    void* memory = s.at_least(k.scratch_bytes(job.images));
    return memory != nullptr &&
           k.gather(job, i / chunks, begin, std::min(keep, begin + kRows), memory);
  }));
  return out;
}

Tensor patch_gather_tokens(const Tensor& x, const std::optional<Tensor>& pos, const Tensor& shuffle,
                           const Tensor& restore, const std::optional<Tensor>& lengths,
                           int64_t keep, int64_t prefix) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, x);
  TokensJob job = tokens_of(x, plan, prefix, plan.length, x.scalar_type());
  job.pos = addend(pos, x.scalar_type(), (prefix + plan.length) * job.width, x);
  Tensor out = torch::stable::new_empty(x, {plan.batch, prefix + keep, job.width});
  job.out = out.mutable_data_ptr();
  ask_for_large_pages(out);
  const Kernels& k = kernels();
  check_indices(share(kNumber * double(out.numel()), plan.batch,
                      [&](int64_t b, Scratch&) { return k.gather_tokens(job, b); }));
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
  Tensor out =
      torch::stable::new_empty(visible, {plan.batch, prefix + plan.length, job.width}, type);
  job.out = out.mutable_data_ptr();
  ask_for_large_pages(out);
  const Kernels& k = kernels();
  check_indices(share(kNumber * double(out.numel()), plan.batch,
                      [&](int64_t b, Scratch&) { return k.restore_tokens(job, b); }));
  return out;
}

Tensor patch_sum_removed(const Tensor& x, const Tensor& shuffle, const Tensor& restore,
                         const std::optional<Tensor>& lengths, int64_t keep, int64_t prefix) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, x);
  const TokensJob job = tokens_of(x, plan, prefix, plan.length, x.scalar_type());
  const int64_t width = job.width, groups = std::min(plan.batch, kGroups);
  std::vector<double> sums(size_t(groups * width));
  const Kernels& k = kernels();
  check_indices(share(kNumber * double(x.numel()), groups, [&](int64_t group, Scratch& s) {
    void* memory = s.at_least(width * int64_t(sizeof(double)));
    if (memory == nullptr) return width == 0;
    for (int64_t b = group * plan.batch / groups; b < (group + 1) * plan.batch / groups; ++b) {
      k.sum_removed(job, b, memory, sums.data() + group * width);
    }
    return true;
  }));
  for (int64_t group = 1; group < groups; ++group) {
    for (int64_t i = 0; i < width; ++i) sums[size_t(i)] += sums[size_t(group * width + i)];
  }
  sums.resize(size_t(width));
  const ScalarType type = compute_type(x.scalar_type());
  Tensor out = torch::stable::new_empty(x, {width}, type);
  store_row<double>(sums.data(), width, dtype_of(type), out.mutable_data_ptr(), 0);
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
  const Images pixels = images_of(images, patch, plan.length);
  const Normalization norm(pixels, mean, std);
  LossJob job = loss_of(pixels, plan, norm, pred, norm_pix, kind, statistics, order, upstream);
  if (plan.lengths != nullptr) {
    int64_t removed = plan.batch * plan.length;
    for (int64_t b = 0; b < plan.batch; ++b) {
      check_indices(0 <= plan.lengths[b] && plan.lengths[b] <= keep);
      removed -= plan.lengths[b];
    }
    job.count = double(removed);
  }
  const int64_t rows = pred.size(1), chunks = (rows + kRows - 1) / kRows;
  Tensor gradient = new_gradient(pred, &job);
  ask_for_large_pages(gradient);
  const Kernels& k = kernels();
  // One for each task, added up in their order: the same bits for any number of threads.
  std::vector<double> sums(size_t(plan.batch * chunks));
  const double work = 2 * kNumber * double(pred.numel());
  check_indices(share(work, plan.batch * chunks, [&](int64_t i, Scratch& s) {
    const int64_t begin = i % chunks * kRows;
    void* memory = s.at_least(k.scratch_bytes(pixels));
    return memory != nullptr &&
           k.loss(job, i / chunks, begin, std::min(rows, begin + kRows), memory, &sums[size_t(i)]);
  }));
  double total = 0;
  for (const double sum : sums) total += sum;
  if (job.count > 0) total /= job.count;
  const ScalarType type = compute_type(pred.scalar_type());
  Tensor loss = torch::stable::new_empty(pred, {}, type);
  store_row<double>(&total, 1, dtype_of(type), loss.mutable_data_ptr(), 0);
  return {loss, gradient};
}

template <typename T>
void scale(T* x, int64_t count, T by) {
  for (int64_t i = 0; i < count; ++i) x[i] *= by;
}

void patch_scale_(Tensor x, const Tensor& by) {
  STD_TORCH_CHECK(x.is_contiguous() && by.numel() == 1 && by.is_cpu(),
                  "x must be contiguous, and by one number where x is");
  const double factor = value_of(by);
  if (factor == 1) return;
  const DType type = dtype_of(x);
  constexpr int64_t kChunk = 1 << 14;
  const int64_t count = x.numel(), tasks = (count + kChunk - 1) / kChunk;
  void* data = x.mutable_data_ptr();
  share(kNumber * double(count), tasks, [&](int64_t i, Scratch& s) {
    const int64_t begin = i * kChunk, some = std::min(kChunk, count - begin);
    if (type == DType::kFloat32) {
      scale(static_cast<float*>(data) + begin, some, float(factor));
    } else {
      double* row = static_cast<double*>(s.at_least(kChunk * int64_t(sizeof(double))));
      if (row == nullptr) return false;
      load_row<double>(data, type, begin, 1, some, row);
      scale(row, some, factor);
      store_row<double>(row, some, type, data, begin);
    }
    return true;
  });
}

}  // namespace
}  // namespace patch

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("patch_gather", TORCH_BOX(&patch::patch_gather));
  m.impl("patch_gather_tokens", TORCH_BOX(&patch::patch_gather_tokens));
  m.impl("patch_restore_tokens", TORCH_BOX(&patch::patch_restore_tokens));
  m.impl("patch_sum_removed", TORCH_BOX(&patch::patch_sum_removed));
  m.impl("patch_loss", TORCH_BOX(&patch::patch_loss));
  m.impl("patch_scale_", TORCH_BOX(&patch::patch_scale_));
}

}  // namespace fastssl
