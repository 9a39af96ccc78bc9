// The CPU operators: allocate, choose block sizes, run the kernels over blocks and pairs of blocks.
#include <cmath>
#include <limits>
#include <tuple>

#include "common/cpu.h"
#include "common/pairs.h"
#include "common/stable.h"
#include "nt_xent/nt_xent.h"

namespace fastssl {
namespace nt_xent {
namespace {

enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

template <typename T>
const Kernels<T>& kernels();
template <>
const Kernels<float>& kernels<float>() {
  return FASTSSL_SELECT(kFloat);
}
template <>
const Kernels<double>& kernels<double>() {
  return FASTSSL_SELECT(kDouble);
}

// Half the exponents that T can hold, less what upstream weights and sums over rows may need.
template <typename T>
constexpr double kBoundLimit = sizeof(T) == 4 ? 48 : 450;

// A block and what it meets (two slabs, two gradients, one block of G) shall stay in the second
// level cache; threads shall have enough pairs to choose from.
template <typename T>
int64_t block_rows(int64_t rows, int64_t padded_depth, int64_t unit, int64_t most) {
  constexpr double kCache = 384 * 1024;
  const double threads = torch::stable::get_num_threads();
  int64_t block = most / unit * unit;
  while (block > unit) {
    const double bytes = (4.0 * padded_depth + block) * block * sizeof(T);
    if (bytes <= kCache && rows >= block * std::max(10.0, 3 * threads)) break;
    block -= unit;
  }
  return block;
}

int64_t common_multiple(int64_t a, int64_t b) {
  int64_t multiple = a;
  while (multiple % b != 0) multiple += a;
  return multiple;
}

// What a pass works on, in one allocation, and the packing that both passes begin with.
template <typename T>
struct Workspace {
  Workspace(const Tensor& z0, const Tensor& z1, double temperature, bool normalize, bool backward)
      : k(kernels<T>()) {
    pass.half = z0.size(0);
    pass.rows = 2 * pass.half;
    pass.depth = z0.size(1);
    pass.padded_depth = (pass.depth + k.tile_columns - 1) / k.tile_columns * k.tile_columns;
    pass.block = block_rows<T>(pass.rows, pass.padded_depth,
                               common_multiple(k.tile_rows, k.tile_columns), k.most_rows);
    pass.blocks = (pass.rows + pass.block - 1) / pass.block;
    pass.scale = T(kLog2E / temperature);
    pass.normalize = normalize;
    const Tensor* inputs[2] = {&z0, &z1};
    for (int v = 0; v < 2; ++v) {
      pass.z[v] = {inputs[v]->const_data_ptr(), dtype_of(*inputs[v]), inputs[v]->stride(0),
                   inputs[v]->stride(1)};
    }
    workers = worker_count(double(pass.rows) * double(pass.rows) * double(pass.depth),
                           (pass.blocks + 1) / 2);

    const int64_t rows = pass.block * pass.blocks, matrix = rows * pass.padded_depth;
    scratch_size = (k.scratch_size(pass) + 15) / 16 * 16;
    const int64_t doubles = (backward ? 1 : 2) * rows;
    const int64_t elements = rows * pass.depth + (backward ? 2 : 1) * matrix +
                             workers * scratch_size + (backward ? 5 : 1) * rows + pass.blocks;
    memory =
        torch::stable::empty({doubles * int64_t(sizeof(double)) + elements * int64_t(sizeof(T))},
                             ScalarType::Byte, torch::headeronly::Layout::Strided,
                             torch::stable::Device(torch::headeronly::DeviceType::CPU));
    double* d = reinterpret_cast<double*>(memory->mutable_data_ptr());
    pass.sum = pass.grad_dot = d;
    pass.peak = d + rows;
    T* next = reinterpret_cast<T*>(d + doubles);
    const auto take = [&next](int64_t count) {
      T* taken = next;
      next += count;
      return taken;
    };
    pass.panels = take(rows * pass.depth);
    pass.slabs = take(matrix);
    if (backward) pass.grad = take(matrix);
    scratch = take(workers * scratch_size);
    pass.inverse_norm = take(rows);
    if (backward) {
      pass.lse = lse = take(rows);
      pass.weight = weight = take(rows);
      pass.row_factor = row_factor = take(rows);
      pass.pull = pull = take(rows);
    }
    pass.block_bound = take(pass.blocks);
  }

  T* scratch_of(int64_t worker) const { return scratch + worker * scratch_size; }

  // After packing: whether all similarities are in a range where one exponential serves two rows.
  void choose_bound() {
    T largest = 0;
    for (int64_t b = 0; b < pass.blocks; ++b) {
      const T bound = pass.block_bound[b];
      if (!(bound <= largest) && largest == largest) largest = bound;  // NaN gets in and stays
    }
    // The slack covers the rounding of norms and of dot products.
    const double bound = std::abs(double(pass.scale)) * double(largest) * (1 + 1e-5);
    pass.bounded = bound <= kBoundLimit<T>;
    pass.bound = pass.bounded ? T(bound) : T(0);
  }

  // The rows of a block that are rows of z: the others are padding.
  template <class F>
  void for_rows(int64_t block, const F& body) const {
    const int64_t first = block * pass.block;
    for (int64_t i = first; i < first + pass.block; ++i) body(i, i < pass.rows);
  }

  const Kernels<T>& k;
  Pass<T> pass{};
  int64_t workers, scratch_size;
  std::optional<Tensor> memory;
  T *scratch, *lse, *weight, *row_factor, *pull;
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& z0, const Tensor& z1, double temperature,
                                           bool normalize, int64_t reduction) {
  constexpr ScalarType kType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  Workspace<T> work(z0, z1, temperature, normalize, false);
  Pass<T>& pass = work.pass;
  Tensor lse = torch::stable::new_empty(z0, {pass.rows}, ScalarType::Double);
  Tensor miss = torch::stable::new_empty(z0, {pass.rows}, kType);
  Tensor loss = reduction == kNone ? torch::stable::new_empty(z0, {pass.rows}, kType)
                                   : torch::stable::new_empty(z0, {}, kType);
  double* lse_out = static_cast<double*>(lse.mutable_data_ptr());
  T* miss_out = static_cast<T*>(miss.mutable_data_ptr());
  T* loss_out = static_cast<T*>(loss.mutable_data_ptr());

  // loss = softplus(x) and 1 - P_ip = sigmoid(x) with x = log(sum over negatives) - t_ip: no digit
  // is lost where the positive dominates. lse does not go by way of the loss, whose units round it.
  const auto finish = [&](int64_t block, T* positive) {
    work.k.positives(pass, block, positive);
    work.for_rows(block, [&](int64_t i, bool real) {
      if (!real) return;
      const double t = double(positive[i - block * pass.block]);
      const double peak = pass.peak[i], log_sum = std::log2(pass.sum[i]);
      const double x = ((peak - t) + log_sum) * kLn2 + (t - t);
      const double e = std::exp(-std::abs(x));
      const double row_loss = std::max(x, 0.0) + std::log1p(e);
      lse_out[i] = std::max(peak + log_sum, t) + std::log1p(e) * kLog2E + (t - t);
      miss_out[i] = T((x > 0 ? 1 : e) / (1 + e));
      pass.sum[i] = row_loss;
      if (reduction == kNone) loss_out[i] = T(row_loss);
    });
  };

  Stage pack(pass.blocks), reset(pass.blocks), last(pass.blocks);
  Tournament tournament(pass.blocks);
  run_workers(work.workers, [&](int64_t worker) {
    T* scratch = work.scratch_of(worker);
    pack.run([&](int64_t block) { work.k.pack(pass, block, scratch); },
             [&] { work.choose_bound(); });
    reset.run([&](int64_t block) {
      work.for_rows(block, [&](int64_t i, bool) {
        pass.peak[i] = pass.bounded ? double(pass.bound) : std::numeric_limits<double>::lowest();
        pass.sum[i] = 0;
      });
    });
    tournament.play([&](int64_t i, int64_t j) { work.k.forward(pass, i, j, scratch); });
    last.run([&](int64_t block) {
      tournament.finish(block);
      finish(block, scratch);
    });
  });
  if (reduction != kNone) {
    double total = 0;
    for (int64_t i = 0; i < pass.rows; ++i) total += pass.sum[i];
    *loss_out = T(reduction == kMean ? total / double(pass.rows) : total);
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
  constexpr ScalarType kType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  Workspace<T> work(z0, z1, temperature, normalize, true);
  Pass<T>& pass = work.pass;
  STD_TORCH_CHECK(grad.scalar_type() == kType && lse.scalar_type() == ScalarType::Double &&
                      miss.scalar_type() == kType,
                  "grad, lse and miss must have the type the operator computes in");
  STD_TORCH_CHECK(lse.numel() == pass.rows && lse.is_contiguous() && miss.numel() == pass.rows &&
                      miss.is_contiguous() &&
                      (grad.dim() == 0 || (grad.dim() == 1 && grad.size(0) == pass.rows)),
                  "grad, lse and miss do not belong to these inputs");
  const T* g = static_cast<const T*>(grad.const_data_ptr());
  const double* lse_in = static_cast<const double*>(lse.const_data_ptr());
  const T* miss_in = static_cast<const T*>(miss.const_data_ptr());
  const int64_t step = grad.dim() == 0 ? 0 : grad.stride(0);
  const double unit = largest_magnitude(g, step == 0 ? 1 : pass.rows, step);
  pass.grad_scale = unit / temperature / (reduction == kMean ? double(pass.rows) : 1.0);
  Tensor grad_z0 = torch::stable::new_empty(z0, {pass.half, pass.depth});
  Tensor grad_z1 = torch::stable::new_empty(z1, {pass.half, pass.depth});
  pass.out[0] = {grad_z0.mutable_data_ptr(), dtype_of(z0)};
  pass.out[1] = {grad_z1.mutable_data_ptr(), dtype_of(z1)};

  const int64_t block_size = pass.block * pass.padded_depth;
  const auto weigh = [&](int64_t block) {
    std::fill_n(pass.grad + block * block_size, block_size, T(0));
    work.for_rows(block, [&](int64_t i, bool real) {
      const double w = real ? double(g[i * step]) / unit : 0;
      // Rounding lse shifts all exponents of a row: the weight takes the shift back.
      work.lse[i] = real ? T(lse_in[i]) : T(0);
      work.weight[i] = real ? T(w * std::exp2(double(work.lse[i]) - lse_in[i])) : T(0);
      work.row_factor[i] =
          real && pass.bounded ? T(w * std::exp2(double(pass.bound) - lse_in[i])) : T(0);
      work.pull[i] = real ? T(w * double(miss_in[i])) : T(0);
    });
  };

  Stage pack(pass.blocks), weights(pass.blocks), last(pass.blocks);
  Tournament tournament(pass.blocks);
  run_workers(work.workers, [&](int64_t worker) {
    T* scratch = work.scratch_of(worker);
    pack.run([&](int64_t block) { work.k.pack(pass, block, scratch); },
             [&] { work.choose_bound(); });
    weights.run(weigh);
    tournament.play([&](int64_t i, int64_t j) { work.k.backward(pass, i, j, scratch); });
    last.run([&](int64_t block) {
      tournament.finish(block);
      work.k.gradient(pass, block, scratch);
    });
  });
  // d loss / d temperature = -1 / (2 temperature) sum_i <z_i, dL/dz_i>: S is homogeneous in z.
  double along = 0;
  for (int64_t i = 0; i < pass.rows; ++i) along += pass.grad_dot[i];
  Tensor grad_temperature = torch::stable::new_empty(z0, {}, kType);
  *static_cast<T*>(grad_temperature.mutable_data_ptr()) = T(-along / (2 * temperature));
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
}  // namespace nt_xent

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("nt_xent_forward", TORCH_BOX(&nt_xent::nt_xent_forward));
  m.impl("nt_xent_backward", TORCH_BOX(&nt_xent::nt_xent_backward));
}

}  // namespace fastssl
