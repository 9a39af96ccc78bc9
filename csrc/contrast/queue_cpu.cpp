// Few rows against many that need no gradient, such as a queue: log-sum-exp of each row's logits
// and, for its gradient, the mean of y under their softmax, in one walk over y. That is two
// products in all, where going over y again in the backward pass takes three, and y is packed a
// block at a time, in the cache.
#include "contrast/gradient.h"

namespace fastssl {
namespace contrast {
namespace {

// Rows of x in a block: their weights, against a block of y, stay in the first level cache.
constexpr int64_t kFewRows = 48;

// What one thread sums over its share of y: relative to 2^bound, which grows with the rows' norms.
template <typename T>
struct Share {
  Pass<T> pass{};
  Side<T> x{}, y{};
  double bound = 0;
  bool bounded = true;
};

template <typename T>
class Queue {
 public:
  Queue(const Tensor& z, const Tensor& y, double scale, bool normalize, bool want_mean)
      : z_(z),
        y_(y),
        scale_(scale),
        normalize_(normalize),
        want_mean_(want_mean),
        k_(kernels<T>()) {
    rows_ = z.size(0);
    columns_ = y.size(0);
    depth_ = z.size(1);
    padded_ = (depth_ + k_.tile_columns - 1) / k_.tile_columns * k_.tile_columns;
    const int64_t square = common_multiple(k_.tile_rows, k_.tile_columns);
    block_y_ = block_rows<T>(columns_, padded_, square, k_.most_rows, 1);
    blocks_y_ = (columns_ + block_y_ - 1) / block_y_;
    block_x_ = block_rows<T>(rows_, padded_, k_.tile_rows, kFewRows, 1);
    blocks_x_ = (rows_ + block_x_ - 1) / block_x_;
    // Each thread has sums of its own: not more of them than are small beside y.
    const double most = std::max(1.0, 0.5 * double(columns_) / double(rows_));
    workers_ = worker_count(2.0 * rows_ * columns_ * depth_,
                            std::min<int64_t>(blocks_y_, int64_t(std::min(most, 1e6))));
  }

  // False where logits are out of the range of one exponential; nothing is written then.
  bool run(double* lse, T* mean) {
    std::vector<Share<T>> shares(static_cast<size_t>(workers_));
    Arena count;
    lay_out(count, shares);
    Tensor memory = torch::stable::new_empty(z_, {count.used() + 64}, ScalarType::Byte);
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr());
    Arena arena(reinterpret_cast<void*>((start + 63) / 64 * 64));
    lay_out(arena, shares);
    Stage packed(blocks_x_);
    run_workers(workers_, [&](int64_t worker) {
      Share<T>& mine = shares[size_t(worker)];
      T* scratch = scratch_ + worker * scratch_size_;
      packed.run([&](int64_t block) { k_.pack(mine.pass, mine.x, block, scratch); });
      sum(mine, blocks_y_ * worker / workers_, blocks_y_ * (worker + 1) / workers_, scratch);
    });
    return merge(shares, lse, mean);
  }

 private:
  void lay_out(Arena& arena, std::vector<Share<T>>& shares) {
    const int64_t rows = block_x_ * blocks_x_;
    Side<T> x{};
    x.z[0] = x.z[1] = {z_.const_data_ptr(), dtype_of(z_), z_.stride(0), z_.stride(1)};
    x.half = x.rows = rows_;
    x.block = block_x_;
    x.blocks = blocks_x_;
    arena.take(x.slabs, rows * padded_);
    arena.take(x.inverse_norm, rows);
    arena.take(x.block_bound, blocks_x_);
    for (Share<T>& share : shares) {
      share.x = x;
      Side<T>& y = share.y;
      y.block = block_y_;
      y.blocks = 1;
      y.normalize = normalize_;
      arena.take(share.x.sum, rows);
      arena.take(share.x.grad, rows * padded_, want_mean_);
      arena.take(y.panels, block_y_ * depth_);
      arena.take(y.slabs, block_y_ * padded_, want_mean_);
      arena.take(y.inverse_norm, block_y_);
      arena.take(y.block_bound, 1);
      Pass<T>& pass = share.pass;
      pass.x = &share.x;
      pass.y = &y;
      pass.symmetric = pass.columns = pass.equal_labels_drop = false;
      pass.kind = kSoftmax;
      pass.depth = depth_;
      pass.padded_depth = padded_;
      pass.scale = T(scale_ * kLog2E);
      pass.shift = 0;
      pass.bounded = true;
      pass.expected = want_mean_;
      scratch_size_ = (k_.scratch_size(pass) + 15) / 16 * 16;
    }
    arena.take(scratch_, workers_ * scratch_size_);
  }

  void sum(Share<T>& share, int64_t first, int64_t last, T* scratch) {
    Side<T>&x = share.x, &y = share.y;
    const int64_t rows = block_x_ * blocks_x_;
    std::fill_n(x.sum, rows, 0.0);
    if (want_mean_) std::fill_n(x.grad, rows * padded_, T(0));
    const double longest = double(*std::max_element(x.block_bound, x.block_bound + blocks_x_));
    const char* data = static_cast<const char*>(y_.const_data_ptr());
    for (int64_t block = first; block < last && share.bounded; ++block) {
      const int64_t row = block * block_y_;
      y.half = y.rows = std::min(block_y_, columns_ - row);
      y.z[0] = y.z[1] = {data + row * y_.stride(0) * y_.element_size(), dtype_of(y_), y_.stride(0),
                         y_.stride(1)};
      k_.pack(share.pass, y, 0, scratch);
      grow(share, std::abs(double(share.pass.scale)) * std::sqrt(longest * double(*y.block_bound)));
      if (!share.bounded) return;
      for (int64_t i = 0; i < blocks_x_; ++i) k_.forward(share.pass, i, 0, scratch);
    }
  }

  // Makes the bound large enough for a block's logits. It grows in steps: norms of one differ in
  // their last digits.
  void grow(Share<T>& share, double wanted) {
    wanted = std::ceil(wanted * (1 + 1e-5) * 4) / 4;
    if (wanted <= share.bound) return;
    share.bounded = wanted <= kBoundLimit<T>;  // not so for NaN
    if (!share.bounded) return;
    const double factor = std::exp2(share.bound - wanted);
    const int64_t rows = block_x_ * blocks_x_;
    for (int64_t i = 0; i < rows; ++i) share.x.sum[i] *= factor;
    for (int64_t i = 0; want_mean_ && i < rows * padded_; ++i) share.x.grad[i] *= T(factor);
    share.bound = wanted;
    share.pass.bound = T(wanted);
  }

  // The threads' sums, in their order.
  bool merge(const std::vector<Share<T>>& shares, double* lse, T* mean) const {
    double top = 0;
    for (const Share<T>& share : shares) {
      if (!share.bounded) return false;
      top = std::max(top, share.bound);
    }
    std::vector<double> factors;
    for (const Share<T>& share : shares) factors.push_back(std::exp2(share.bound - top));
    for (int64_t i = 0; i < rows_; ++i) {
      double total = 0;
      for (size_t s = 0; s < shares.size(); ++s) total += shares[s].x.sum[i] * factors[s];
      lse[i] = (top + std::log2(total)) * kLn2;
      for (int64_t d = 0; want_mean_ && d < depth_; ++d) {
        const int64_t width = k_.tile_columns, block = i / block_x_ * block_x_;
        const int64_t at =
            block * padded_ + d / width * width * block_x_ + (i - block) * width + d % width;
        double sum = 0;
        for (size_t s = 0; s < shares.size(); ++s) sum += double(shares[s].x.grad[at]) * factors[s];
        mean[i * depth_ + d] = T(sum / total);
      }
    }
    return true;
  }

  const Tensor &z_, &y_;
  const double scale_;
  const bool normalize_, want_mean_;
  const Kernels<T>& k_;
  int64_t rows_, columns_, depth_, padded_, block_x_, blocks_x_, block_y_, blocks_y_, workers_;
  int64_t scratch_size_ = 0;
  T* scratch_;
};

// Any range of logits: the sums first, then the mean as the gradient of log-sum-exp.
template <typename T>
void sums_then_mean(const Tensor& z, const Tensor& y, double scale, bool normalize, bool want_mean,
                    const Tensor& lse, const Tensor& mean) {
  const std::optional<Tensor> columns = y, none;
  const Arguments a = {z,     columns, scale, 0,    kSoftmax, false, normalize, false,
                       false, none,    none,  none, none,     none,  none,      none};
  const auto [rows, unused] = Forward<T>(a).run();
  std::copy_n(row_of(rows, kNegatives), z.size(0), static_cast<double*>(lse.mutable_data_ptr()));
  if (!want_mean) return;
  Tensor grad = torch::stable::new_empty(z, {kRows, z.size(0)}, ScalarType::Double);
  std::fill_n(row_of(grad, 0), kRows * z.size(0), 0.0);
  std::fill_n(row_of(grad, kNegatives), z.size(0), 1.0);
  const Gradients g = {rows, grad, unused, unused, true, false};
  const Tensor along = std::get<0>(Backward<T>(a, g).run());
  const T* from = static_cast<const T*>(along.const_data_ptr());
  T* to = static_cast<T*>(mean.mutable_data_ptr());
  for (int64_t i = 0; i < z.numel(); ++i) to[i] = T(double(from[i]) / scale);
}

template <typename T>
std::tuple<Tensor, Tensor> queue(const Tensor& z, const Tensor& y, double scale, bool normalize,
                                 bool want_mean) {
  Tensor lse = torch::stable::new_empty(z, {z.size(0)}, ScalarType::Double);
  Tensor mean = torch::stable::new_empty(
      z, want_mean ? std::vector<int64_t>{z.size(0), z.size(1)} : std::vector<int64_t>{0});
  double* lse_out = static_cast<double*>(lse.mutable_data_ptr());
  T* mean_out = static_cast<T*>(mean.mutable_data_ptr());
  if (!Queue<T>(z, y, scale, normalize, want_mean).run(lse_out, mean_out)) {
    sums_then_mean<T>(z, y, scale, normalize, want_mean, lse, mean);
  }
  return {lse, mean};
}

std::tuple<Tensor, Tensor> contrast_queue(const Tensor& z, const Tensor& y,
                                          const std::optional<Tensor>& scale, double factor,
                                          bool normalize, bool want_mean) {
  STD_TORCH_CHECK(z.is_cpu() && y.is_cpu() && z.dim() == 2 && y.dim() == 2 && z.numel() > 0 &&
                      y.numel() > 0 && z.size(1) == y.size(1),
                  "z and y must be non-empty CPU matrices of one width");
  const bool wide = z.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(wide || z.scalar_type() == ScalarType::Float, "z must be float64 or float32");
  dtype_of(y);
  const double value = scale ? value_of(*scale) : factor;
  return wide ? queue<double>(z, y, value, normalize, want_mean)
              : queue<float>(z, y, value, normalize, want_mean);
}

}  // namespace
}  // namespace contrast

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("contrast_queue", TORCH_BOX(&contrast::contrast_queue));
}

}  // namespace fastssl
