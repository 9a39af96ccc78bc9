// What the family's CPU operators work on: both sides in one allocation, packed, and walked over.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "common/cpu.h"
#include "common/pairs.h"
#include "common/stable.h"
#include "contrast/contrast.h"

namespace fastssl {
namespace contrast {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
constexpr ScalarType kScalarType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

template <typename T>
const Kernels<T>& kernels();
template <>
inline const Kernels<float>& kernels<float>() {
  return FASTSSL_SELECT(kFloat);
}
template <>
inline const Kernels<double>& kernels<double>() {
  return FASTSSL_SELECT(kDouble);
}

// Half the exponents that T can hold, less what upstream weights and sums over rows may need.
template <typename T>
constexpr double kBoundLimit = sizeof(T) == 4 ? 48 : 450;

// Takes arrays off one allocation. Without memory it counts what they need.
class Arena {
 public:
  explicit Arena(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}

  template <typename E>
  void take(E*& array, int64_t count, bool wanted = true) {
    if (!wanted) {
      array = nullptr;
      return;
    }
    array = memory_ == nullptr ? nullptr : reinterpret_cast<E*>(memory_ + used_);
    used_ += (count * int64_t(sizeof(E)) + 63) / 64 * 64;
  }
  template <typename E>
  void take(const E*& array, int64_t count, bool wanted = true) {
    E* taken;
    take(taken, count, wanted);
    array = taken;
  }

  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// Which arrays a call needs.
struct Needs {
  bool forward = false;  // else backward
  bool labels = false;   // labels, and sums or weights of positives that they tell
  bool drop = false;     // labels alone: equal ones are no candidates
  bool mates = false, excluded = false;
  bool windows = false, column_windows = false;
  bool metrics = false;
  bool expected = false;
  bool kept = false;
  bool want_x = true, want_y = true;
};

inline int64_t common_multiple(int64_t a, int64_t b) {
  int64_t multiple = a;
  while (multiple % b != 0) multiple += a;
  return multiple;
}

// A block and what it meets (two slabs, two gradients, one block of G) shall be found in the near
// caches, but larger blocks load and store less: 1,000 KiB made CLIP's loss 18 % faster than 384 at
// D = 512, with 512 KiB of second level cache. There shall be `fewest` blocks to share.
template <typename T>
int64_t block_rows(int64_t rows, int64_t padded_depth, int64_t unit, int64_t most, double fewest) {
  constexpr double kCache = 1000 * 1024;
  int64_t block = most / unit * unit;
  while (block > unit) {
    const double bytes = (4.0 * padded_depth + block) * block * sizeof(T);
    if (bytes <= kCache && rows >= block * fewest) break;
    block -= unit;
  }
  return block;
}

template <typename T>
struct Workspace {
  // Rows of x in one or two parts; y null where they are compared with each other.
  Workspace(const Tensor& x0, const Tensor* x1, const Tensor* y, double natural_scale,
            bool normalize_x, bool normalize_y, const Needs& needs)
      : k(kernels<T>()), needs(needs) {
    pass.symmetric = y == nullptr;
    pass.depth = x0.size(1);
    pass.padded_depth = (pass.depth + k.tile_columns - 1) / k.tile_columns * k.tile_columns;
    pass.scale = T(kLog2E * natural_scale);
    pass.x = &x;
    pass.y = pass.symmetric ? &x : &this->y;
    describe(x, x0, x1, normalize_x);
    if (y != nullptr) describe(this->y, *y, nullptr, normalize_y);
    const double threads = torch::stable::get_num_threads();
    const int64_t square = common_multiple(k.tile_rows, k.tile_columns);
    if (pass.symmetric) {
      cut(x, square, std::max(10.0, 3 * threads));
    } else {
      cut(x, k.tile_rows, 2 * threads);
      cut(this->y, square, 2 * threads);
    }
    workers =
        worker_count(double(x.rows) * double(pass.y->rows) * double(pass.depth),
                     pass.symmetric ? (x.blocks + 1) / 2 : std::min(x.blocks, pass.y->blocks));
    scratch_size = (k.scratch_size(pass) + 15) / 16 * 16;
    Arena count;
    lay_out(count);
    memory = torch::stable::empty({count.used() + 64}, ScalarType::Byte,
                                  torch::headeronly::Layout::Strided,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU));
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory->mutable_data_ptr());
    Arena arena(reinterpret_cast<void*>((start + 63) / 64 * 64));
    lay_out(arena);
    if (pass.symmetric) {
      tournament = std::make_unique<Tournament>(x.blocks);
    } else {
      grid = std::make_unique<Grid>(x.blocks, this->y.blocks);
    }
  }

  void describe(Side<T>& side, const Tensor& first, const Tensor* second, bool normalize) {
    const Tensor* parts[2] = {&first, second == nullptr ? &first : second};
    side.half = first.size(0);
    side.rows = second == nullptr ? side.half : 2 * side.half;
    for (int v = 0; v < 2; ++v) {
      side.z[v] = {parts[v]->const_data_ptr(), dtype_of(*parts[v]), parts[v]->stride(0),
                   parts[v]->stride(1)};
    }
    side.normalize = normalize;
  }

  void cut(Side<T>& side, int64_t unit, double fewest) {
    side.block = block_rows<T>(side.rows, pass.padded_depth, unit, k.most_rows, fewest);
    side.blocks = (side.rows + side.block - 1) / side.block;
  }

  void lay_out(Arena& arena) {
    lay_out(arena, x, pass.symmetric, true, needs.want_x || needs.expected);
    if (!pass.symmetric) lay_out(arena, y, true, !needs.forward || needs.expected, needs.want_y);
    arena.take(scratch, workers * scratch_size);
  }

  void lay_out(Arena& arena, Side<T>& s, bool right, bool left, bool wanted) {
    const int64_t rows = s.block * s.blocks, matrix = rows * pass.padded_depth;
    const bool forward = needs.forward, backward = !needs.forward, is_x = &s == &x;
    arena.take(s.panels, rows * pass.depth, right && !(needs.kept && backward));
    arena.take(s.slabs, matrix, left);
    arena.take(s.inverse_norm, rows);
    arena.take(s.block_bound, s.blocks);
    arena.take(s.labels, rows, needs.labels || needs.drop);
    arena.take(s.mate, rows, needs.mates);
    arena.take(s.excluded, rows, needs.excluded && is_x);
    const bool windows = is_x ? needs.windows : needs.column_windows && backward;
    arena.take(s.low, rows, windows);
    arena.take(s.high, rows, windows);
    arena.take(s.threshold, rows, needs.metrics && is_x);
    arena.take(s.peak, rows, forward);
    arena.take(s.sum, rows, forward);
    // Without labels, the mates' t and whether there is one.
    arena.take(s.positive_total, rows, forward);
    arena.take(s.count, rows, forward);
    arena.take(s.positive_peak, rows, forward && needs.labels);
    arena.take(s.positive_sum, rows, forward && needs.labels);
    arena.take(s.tally, rows, needs.metrics && is_x);
    arena.take(s.lse, rows, backward || needs.labels);
    arena.take(s.weight, rows, backward);
    arena.take(s.factor, rows, backward);
    arena.take(s.positive_lse, rows, backward && needs.labels);
    arena.take(s.positive_weight, rows, backward && needs.labels);
    arena.take(s.positive_factor, rows, backward && needs.labels);
    arena.take(s.pull, rows, backward && needs.labels);
    arena.take(s.mate_weight, rows, backward && needs.mates);
    arena.take(s.grad, matrix, wanted && (backward || (needs.expected && is_x)));
    arena.take(s.grad_dot, rows, backward);
    arena.take(s.block_total, s.blocks, backward);
  }

  T* scratch_of(int64_t worker) const { return scratch + worker * scratch_size; }

  // After packing: whether all logits are in a range where one exponential serves row and column.
  // `lowest` is the least lse, in units of log2, that exponentials will be divided by.
  void choose_bound(bool allowed, double lowest) {
    const auto largest = [](const Side<T>& side) {
      T most = 0;
      for (int64_t b = 0; b < side.blocks; ++b) {
        const T bound = side.block_bound[b];
        if (!(bound <= most) && most == most) most = bound;  // NaN gets in and stays
      }
      return double(most);
    };
    const double square = pass.symmetric ? largest(x) : std::sqrt(largest(x) * largest(y));
    // The slack covers the rounding of norms and of dot products.
    const double bound = std::abs(double(pass.scale)) * square * (1 + 1e-5);
    pass.bounded = allowed && bound <= kBoundLimit<T> && lowest >= -bound - 1;
    pass.bound = pass.bounded ? T(bound) : T(0);
  }

  // Calls `body(row)` for a block's rows that are there.
  template <class F>
  static void for_rows(const Side<T>& side, int64_t block, const F& body) {
    const int64_t first = block * side.block, last = std::min(side.rows, first + side.block);
    for (int64_t i = first; i < last; ++i) body(i);
  }

  int64_t all_blocks() const { return pass.symmetric ? x.blocks : x.blocks + y.blocks; }
  // Blocks of x, then of y: the side, and `block` becomes the number in it.
  Side<T>& side_of(int64_t& block) {
    if (block < x.blocks) return x;
    block -= x.blocks;
    return y;
  }

  template <class F>
  void play(const F& pair) {
    if (pass.symmetric) {
      tournament->play(pair);
    } else {
      grid->play(pair);
    }
  }

  void finish(const Side<T>& side, int64_t block) const {
    if (pass.symmetric) {
      tournament->finish(block);
    } else if (&side == &x) {
      grid->finish_row(block);
    } else {
      grid->finish_column(block);
    }
  }

  const Kernels<T>& k;
  const Needs needs;
  Pass<T> pass{};
  Side<T> x{}, y{};
  int64_t workers, scratch_size;
  std::optional<Tensor> memory;
  std::unique_ptr<Tournament> tournament;
  std::unique_ptr<Grid> grid;
  T* scratch;
};

// An array that the kernels only read, to be filled by the operators.
template <typename E>
E* writable(const E* array) {
  return const_cast<E*>(array);
}

// What row i of a side, as an anchor, brings to G: weight * 2^(t - lse), lse in units of log2.
// Rounding lse shifts all exponents of a row: the weight takes the shift back.
template <typename T>
void set_anchor(const Pass<T>& pass, double weight, double lse, T& to_weight, T& to_lse,
                T& to_factor) {
  constexpr double kFar = 1e30;
  const bool some = weight != 0 && lse > -kInfinity;
  to_lse = some ? T(lse) : T(kFar);
  to_weight = some ? T(weight * std::exp2(double(to_lse) - lse)) : T(0);
  to_factor = some && pass.bounded ? T(weight * std::exp2(double(pass.bound) - lse)) : T(0);
}

}  // namespace
}  // namespace contrast
}  // namespace fastssl
