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

// Everything a pass needs in one allocation, and the packing that both passes begin with.
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
    const double area = double(pass.rows) * double(pass.depth);
    row_workers = worker_count(8 * area, pass.blocks);
    pair_workers = worker_count(double(pass.rows) * area, (pass.blocks + 1) / 2);
    padded_rows = pass.block * pass.blocks;
    scratch_size = (k.scratch_size(pass) + 15) / 16 * 16;

    const int64_t matrix = padded_rows * pass.padded_depth;
    const int64_t workers = std::max(row_workers, pair_workers);
    const int64_t vectors = backward ? 5 * padded_rows : padded_rows;
    const int64_t doubles = backward ? padded_rows : 2 * padded_rows;
    const int64_t elements = padded_rows * pass.depth + (backward ? 2 : 1) * matrix +
                             workers * scratch_size + vectors + pass.blocks;
    memory =
        torch::stable::empty({doubles * int64_t(sizeof(double)) + elements * int64_t(sizeof(T))},
                             ScalarType::Byte, torch::headeronly::Layout::Strided,
                             torch::stable::Device(torch::headeronly::DeviceType::CPU));
    double* d = reinterpret_cast<double*>(memory->mutable_data_ptr());
    pass.sum = pass.grad_dot = d;
    pass.peak = d + padded_rows;
    next = reinterpret_cast<T*>(d + doubles);
    pass.panels = take(padded_rows * pass.depth);
    pass.slabs = take(matrix);
    if (backward) pass.grad = take(matrix);
    scratch = take(workers * scratch_size);
    pass.inverse_norm = take(padded_rows);

    T* block_bound = nullptr;
    pass.block_bound = block_bound = next + (backward ? 4 * padded_rows : 0);
    for_each(pass.blocks, row_workers,
             [&](int64_t block, int64_t worker) { k.pack(pass, block, scratch_of(worker)); });
    T largest = 0;
    for (int64_t b = 0; b < pass.blocks; ++b) {
      if (!(block_bound[b] <= largest) && largest == largest) largest = block_bound[b];
    }
    // The slack covers the rounding of norms and of dot products.
    const double bound = std::abs(double(pass.scale)) * double(largest) * (1 + 1e-5);
    pass.bounded = bound <= kBoundLimit<T>;
    pass.bound = pass.bounded ? T(bound) : T(0);
  }

  T* take(int64_t count) {
    T* taken = next;
    next += count;
    return taken;
  }
  T* scratch_of(int64_t worker) const { return scratch + worker * scratch_size; }

  template <class F>
  void for_each_pair(const F& kernel) {
    Tournament tournament(pass.blocks);
    run_workers(pair_workers, [&](int64_t worker) {
      tournament.play([&](int64_t i, int64_t j) { kernel(pass, i, j, scratch_of(worker)); });
    });
  }

  const Kernels<T>& k;
  Pass<T> pass{};
  int64_t row_workers, pair_workers, padded_rows, scratch_size;
  std::optional<Tensor> memory;
  T* scratch;
  T* next;
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& z0, const Tensor& z1, double temperature,
                                           bool normalize, int64_t reduction) {
  constexpr ScalarType kType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  Workspace<T> work(z0, z1, temperature, normalize, false);
  Pass<T>& pass = work.pass;
  for (int64_t i = 0; i < work.padded_rows; ++i) {
    pass.peak[i] = pass.bounded ? double(pass.bound) : -1e30;
    pass.sum[i] = 0;
  }
  work.for_each_pair(work.k.forward);

  Tensor lse = torch::stable::new_empty(z0, {pass.rows}, ScalarType::Double);
  Tensor miss = torch::stable::new_empty(z0, {pass.rows}, kType);
  Tensor loss = reduction == kNone ? torch::stable::new_empty(z0, {pass.rows}, kType)
                                   : torch::stable::new_empty(z0, {}, kType);
  double* lse_out = static_cast<double*>(lse.mutable_data_ptr());
  T* miss_out = static_cast<T*>(miss.mutable_data_ptr());
  T* loss_out = static_cast<T*>(loss.mutable_data_ptr());
  // lse = t_ip + softplus(x) and 1 - P_ip = sigmoid(x) with x = log(sum over negatives) - t_ip: no
  // digit is lost where the positive dominates.
  for_each(pass.blocks, work.row_workers, [&](int64_t block, int64_t worker) {
    T* positive = work.scratch_of(worker);
    work.k.positives(pass, block, positive);
    const int64_t first = block * pass.block;
    for (int64_t i = 0; i < pass.block && first + i < pass.rows; ++i) {
      const double t = double(positive[i]), peak = pass.peak[first + i], sum = pass.sum[first + i];
      const double x = (peak + std::log2(sum) - t) * kLn2 + (t - t);
      const double e = std::exp(-std::abs(x));
      const double row_loss = std::max(x, 0.0) + std::log1p(e);
      lse_out[first + i] = t + row_loss * kLog2E;
      miss_out[first + i] = T((x > 0 ? 1 : e) / (1 + e));
      pass.sum[first + i] = row_loss;
      if (reduction == kNone) loss_out[first + i] = T(row_loss);
    }
  });
  if (reduction != kNone) {
    double total = 0;
    for (int64_t i = 0; i < pass.rows; ++i) total += pass.sum[i];
    *loss_out = T(reduction == kMean ? total / double(pass.rows) : total);
  }
  return {loss, lse, miss};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& z0, const Tensor& z1,
                                            double temperature, bool normalize, int64_t reduction,
                                            const Tensor& lse, const Tensor& miss) {
  constexpr ScalarType kType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  const int64_t grad_step = grad.dim() == 0 ? 0 : grad.stride(0);
  Workspace<T> work(z0, z1, temperature, normalize, true);
  Pass<T>& pass = work.pass;
  STD_TORCH_CHECK(grad.scalar_type() == kType && lse.scalar_type() == ScalarType::Double &&
                      miss.scalar_type() == kType,
                  "grad, lse and miss must have the type the operator computes in");
  STD_TORCH_CHECK(lse.numel() == pass.rows && lse.is_contiguous() && miss.numel() == pass.rows &&
                      miss.is_contiguous() && (grad.dim() == 0 || grad.numel() == pass.rows),
                  "grad, lse and miss do not belong to these inputs");
  const T* g = static_cast<const T*>(grad.const_data_ptr());
  const double* lse_in = static_cast<const double*>(lse.const_data_ptr());
  const T* miss_in = static_cast<const T*>(miss.const_data_ptr());
  double largest = 0;
  for (int64_t i = 0; i < (grad_step == 0 ? 1 : pass.rows); ++i) {
    const double magnitude = std::abs(double(g[i * grad_step]));
    if (!(magnitude <= largest) && largest == largest) largest = magnitude;
  }
  const double unit = largest == 0 ? 1 : largest;
  T* lse_row = work.take(work.padded_rows);
  T* weight = work.take(work.padded_rows);
  T* factor = work.take(work.padded_rows);
  T* pull = work.take(work.padded_rows);
  for (int64_t i = 0; i < work.padded_rows; ++i) {
    const bool real = i < pass.rows;
    const double w = real ? double(g[i * grad_step]) / unit : 0;
    // Rounding lse shifts all exponents of a row: the weight takes the shift back.
    lse_row[i] = real ? T(lse_in[i]) : T(0);
    weight[i] = real ? T(w * std::exp2(double(lse_row[i]) - lse_in[i])) : T(0);
    factor[i] = real && pass.bounded ? T(w * std::exp2(double(pass.bound) - lse_in[i])) : T(0);
    pull[i] = real ? T(w * double(miss_in[i])) : T(0);
  }
  pass.lse = lse_row;
  pass.weight = weight;
  pass.row_factor = factor;
  pass.pull = pull;
  pass.grad_scale = unit / temperature / (reduction == kMean ? double(pass.rows) : 1.0);

  const int64_t block_size = pass.block * pass.padded_depth;
  for_each(pass.blocks, work.row_workers, [&](int64_t block, int64_t) {
    std::fill_n(pass.grad + block * block_size, block_size, T(0));
  });
  work.for_each_pair(work.k.backward);

  Tensor grad_z0 = torch::stable::new_empty(z0, {pass.half, pass.depth});
  Tensor grad_z1 = torch::stable::new_empty(z1, {pass.half, pass.depth});
  pass.out[0] = {grad_z0.mutable_data_ptr(), dtype_of(z0)};
  pass.out[1] = {grad_z1.mutable_data_ptr(), dtype_of(z1)};
  for_each(pass.blocks, work.row_workers, [&](int64_t block, int64_t worker) {
    work.k.gradient(pass, block, work.scratch_of(worker));
  });
  // d loss / d temperature = -1 / (2 temperature) sum_i <z_i, dL/dz_i>: S is homogeneous in z.
  double along = 0;
  for (int64_t i = 0; i < pass.rows; ++i) along += pass.grad_dot[i];
  Tensor grad_temperature = torch::stable::new_empty(z0, {}, kType);
  *static_cast<T*>(grad_temperature.mutable_data_ptr()) = T(-along / (2 * temperature));
  return {grad_z0, grad_z1, grad_temperature};
}

void check(const Tensor& z0, const Tensor& z1, double temperature) {
  STD_TORCH_CHECK(z0.is_cpu() && z1.is_cpu() && z0.dim() == 2 && z1.dim() == 2 &&
                      z0.size(0) == z1.size(0) && z0.size(1) == z1.size(1) && z0.numel() > 0,
                  "z0 and z1 must be CPU matrices of one non-empty shape");
  STD_TORCH_CHECK(z0.scalar_type() == z1.scalar_type(), "z0 and z1 must have one dtype");
  STD_TORCH_CHECK(!(std::abs(temperature) < 1e-8),
                  "temperature: |temperature| must be at least 1e-8");
}

std::tuple<Tensor, Tensor, Tensor> nt_xent_forward(const Tensor& z0, const Tensor& z1,
                                                   const std::optional<Tensor>& temperature,
                                                   double tau, bool normalize, int64_t reduction) {
  const double value = temperature ? value_of(*temperature) : tau;
  check(z0, z1, value);
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
  check(z0, z1, value);
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
