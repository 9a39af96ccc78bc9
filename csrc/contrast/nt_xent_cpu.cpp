// NT-Xent's CPU operators: the family's kernels between two views, with the loss of a row in C++.
#include <tuple>

#include "contrast/workspace.h"

namespace fastssl {
namespace contrast {
namespace {

enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

Needs view_needs(bool forward) {
  Needs needs;
  needs.forward = forward;
  needs.mates = true;
  return needs;
}

// Row i's mate is the row of the other view that belongs to the same sample.
template <typename T>
void set_mates(Workspace<T>& work, int64_t block) {
  Side<T>& x = work.x;
  work.for_rows(x, block, [&](int64_t i) { writable(x.mate)[i] = (i + x.half) % x.rows; });
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& z0, const Tensor& z1, double temperature,
                                           bool normalize, int64_t reduction) {
  Workspace<T> work(z0, &z1, nullptr, 1 / temperature, normalize, normalize, view_needs(true));
  Pass<T>& pass = work.pass;
  Side<T>& x = work.x;
  Tensor lse = torch::stable::new_empty(z0, {x.rows}, ScalarType::Double);
  Tensor miss = torch::stable::new_empty(z0, {x.rows}, kScalarType<T>);
  Tensor loss = reduction == kNone ? torch::stable::new_empty(z0, {x.rows}, kScalarType<T>)
                                   : torch::stable::new_empty(z0, {}, kScalarType<T>);
  double* lse_out = static_cast<double*>(lse.mutable_data_ptr());
  T* miss_out = static_cast<T*>(miss.mutable_data_ptr());
  T* loss_out = static_cast<T*>(loss.mutable_data_ptr());

  // loss = softplus(x) and 1 - P_ip = sigmoid(x) with x = log(sum over negatives) - t_ip: no digit
  // is lost where the positive dominates. lse does not go by way of the loss, whose units round it.
  const auto finish = [&](int64_t block, T* positive) {
    work.k.positives(pass, block, positive);
    work.for_rows(x, block, [&](int64_t i) {
      const double t = double(positive[i - block * x.block]);
      const double peak = x.peak[i], log_sum = std::log2(x.sum[i]);
      const double odds = ((peak - t) + log_sum) * kLn2 + (t - t);
      const double e = std::exp(-std::abs(odds));
      const double row_loss = std::max(odds, 0.0) + std::log1p(e);
      lse_out[i] = std::max(peak + log_sum, t) + std::log1p(e) * kLog2E + (t - t);
      miss_out[i] = T((odds > 0 ? 1 : e) / (1 + e));
      x.sum[i] = row_loss;
      if (reduction == kNone) loss_out[i] = T(row_loss);
    });
  };

  Stage pack(x.blocks), reset(x.blocks), last(x.blocks);
  run_workers(work.workers, [&](int64_t worker) {
    T* scratch = work.scratch_of(worker);
    pack.run(
        [&](int64_t block) {
          work.k.pack(pass, x, block, scratch);
          set_mates(work, block);
        },
        [&] { work.choose_bound(true, kInfinity); });
    reset.run([&](int64_t block) {
      for (int64_t i = block * x.block; i < (block + 1) * x.block; ++i) {
        x.peak[i] = pass.bounded ? double(pass.bound) : std::numeric_limits<double>::lowest();
        x.sum[i] = 0;
      }
    });
    work.play([&](int64_t i, int64_t j) { work.k.forward(pass, i, j, scratch); });
    last.run([&](int64_t block) {
      work.finish(x, block);
      finish(block, scratch);
    });
  });
  if (reduction != kNone) {
    double total = 0;
    for (int64_t i = 0; i < x.rows; ++i) total += x.sum[i];
    *loss_out = T(reduction == kMean ? total / double(x.rows) : total);
  }
  return {loss, lse, miss};
}

// The largest magnitude; NaN where there is one, 1 where all are 0.
template <typename T>
double largest_magnitude(const T* x, int64_t count, int64_t step) {
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double magnitude = std::abs(double(x[i * step]));
    if (!(magnitude <= largest) && largest == largest) largest = magnitude;
  }
  return largest == 0 ? 1 : largest;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& z0, const Tensor& z1,
                                            double temperature, bool normalize, int64_t reduction,
                                            const Tensor& lse, const Tensor& miss) {
  Workspace<T> work(z0, &z1, nullptr, 1 / temperature, normalize, normalize, view_needs(false));
  Pass<T>& pass = work.pass;
  Side<T>& x = work.x;
  STD_TORCH_CHECK(grad.scalar_type() == kScalarType<T> && lse.scalar_type() == ScalarType::Double &&
                      miss.scalar_type() == kScalarType<T>,
                  "grad, lse and miss must have the type the operator computes in");
  STD_TORCH_CHECK(lse.numel() == x.rows && lse.is_contiguous() && miss.numel() == x.rows &&
                      miss.is_contiguous() &&
                      (grad.dim() == 0 || (grad.dim() == 1 && grad.size(0) == x.rows)),
                  "grad, lse and miss do not belong to these inputs");
  const T* g = static_cast<const T*>(grad.const_data_ptr());
  const double* lse_in = static_cast<const double*>(lse.const_data_ptr());
  const T* miss_in = static_cast<const T*>(miss.const_data_ptr());
  const int64_t step = grad.dim() == 0 ? 0 : grad.stride(0);
  const double unit = largest_magnitude(g, step == 0 ? 1 : x.rows, step);
  pass.grad_scale = unit / temperature / (reduction == kMean ? double(x.rows) : 1.0);
  Tensor grad_z0 = torch::stable::new_empty(z0, {x.half, pass.depth});
  Tensor grad_z1 = torch::stable::new_empty(z1, {x.half, pass.depth});
  x.out[0] = {grad_z0.mutable_data_ptr(), dtype_of(z0)};
  x.out[1] = {grad_z1.mutable_data_ptr(), dtype_of(z1)};

  const int64_t block_size = x.block * pass.padded_depth;
  const auto weight = [&](int64_t i) { return double(g[i * step]) / unit; };
  const auto weigh = [&](int64_t block) {
    std::fill_n(x.grad + block * block_size, block_size, T(0));
    x.block_total[block] = 0;
    for (int64_t i = block * x.block; i < (block + 1) * x.block; ++i) {
      const bool real = i < x.rows;
      set_anchor(pass, real ? weight(i) : 0, real ? lse_in[i] : 0, writable(x.weight)[i],
                 writable(x.lse)[i], writable(x.factor)[i]);
      if (!real) continue;
      const int64_t mate = x.mate[i];
      writable(x.mate_weight)[i] =
          -T(weight(i) * double(miss_in[i])) - T(weight(mate) * double(miss_in[mate]));
    }
  };

  Stage pack(x.blocks), weights(x.blocks), last(x.blocks);
  run_workers(work.workers, [&](int64_t worker) {
    T* scratch = work.scratch_of(worker);
    pack.run(
        [&](int64_t block) {
          work.k.pack(pass, x, block, scratch);
          set_mates(work, block);
        },
        [&] { work.choose_bound(true, kInfinity); });
    weights.run(weigh);
    work.play([&](int64_t i, int64_t j) { work.k.backward(pass, i, j, scratch); });
    last.run([&](int64_t block) {
      work.finish(x, block);
      work.k.gradient(pass, x, x, block, scratch);
    });
  });
  // d loss / d temperature = -1 / (2 temperature) sum_i <z_i, dL/dz_i>: S is homogeneous in z.
  double along = 0;
  for (int64_t i = 0; i < x.rows; ++i) along += x.grad_dot[i];
  Tensor grad_temperature = torch::stable::new_empty(z0, {}, kScalarType<T>);
  *static_cast<T*>(grad_temperature.mutable_data_ptr()) =
      T(-along * pass.grad_scale / (2 * temperature));
  return {grad_z0, grad_z1, grad_temperature};
}

void check(const Tensor& z0, const Tensor& z1, double temperature, int64_t reduction) {
  STD_TORCH_CHECK(z0.is_cpu() && z1.is_cpu() && z0.dim() == 2 && z1.dim() == 2 &&
                      z0.size(0) == z1.size(0) && z0.size(1) == z1.size(1) && z0.numel() > 0,
                  "z0 and z1 must be CPU matrices of one non-empty shape");
  STD_TORCH_CHECK(z0.scalar_type() == z1.scalar_type(), "z0 and z1 must have one dtype");
  STD_TORCH_CHECK(!(std::abs(temperature) < 1e-8),
                  "temperature: |temperature| must be at least 1e-8");
  STD_TORCH_CHECK(kNone <= reduction && reduction <= kSum, "reduction must be 0, 1 or 2");
}

std::tuple<Tensor, Tensor, Tensor> nt_xent_forward(const Tensor& z0, const Tensor& z1,
                                                   const std::optional<Tensor>& temperature,
                                                   double tau, bool normalize, int64_t reduction) {
  const double value = temperature ? value_of(*temperature) : tau;
  check(z0, z1, value, reduction);
  return z0.scalar_type() == ScalarType::Double
             ? forward<double>(z0, z1, value, normalize, reduction)
             : forward<float>(z0, z1, value, normalize, reduction);
}

std::tuple<Tensor, Tensor, Tensor> nt_xent_backward(const Tensor& grad, const Tensor& z0,
                                                    const Tensor& z1,
                                                    const std::optional<Tensor>& temperature,
                                                    double tau, bool normalize, int64_t reduction,
                                                    const Tensor& lse, const Tensor& miss) {
  const double value = temperature ? value_of(*temperature) : tau;
  check(z0, z1, value, reduction);
  return z0.scalar_type() == ScalarType::Double
             ? backward<double>(grad, z0, z1, value, normalize, reduction, lse, miss)
             : backward<float>(grad, z0, z1, value, normalize, reduction, lse, miss);
}

}  // namespace
}  // namespace contrast

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("nt_xent_forward", TORCH_BOX(&contrast::nt_xent_forward));
  m.impl("nt_xent_backward", TORCH_BOX(&contrast::nt_xent_backward));
}

}  // namespace fastssl
