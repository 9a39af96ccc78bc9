// contrast_backward: statistics and their gradients to weights, and the passes that they need.
#pragma once

#include <tuple>

#include "contrast/statistics.h"

namespace fastssl {
namespace contrast {
namespace {

struct Gradients {
  const Tensor &rows, &rows_grad, &columns, &columns_grad;
  bool want_x, want_y;
  const Tensor* kept = nullptr;  // the exponentials that the forward pass left
};

template <typename T>
class Backward {
 public:
  Backward(const Arguments& a, const Gradients& g)
      : a_(a),
        g_(g),
        work_(a.x, nullptr, a.y ? &*a.y : nullptr, a.scale, a.normalize_x, a.normalize_y,
              needs(a, g)),
        pass_(work_.pass) {
    fill(a_, work_);
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> run() {
    Side<T>&x = work_.x, &y = work_.y;
    const bool want_x = g_.want_x || pass_.symmetric;
    Tensor grad_x = torch::stable::new_empty(a_.x, want_x ? shape(a_.x) : nothing());
    Tensor grad_y = torch::stable::new_empty(
        a_.x, g_.want_y && !pass_.symmetric ? shape(a_.other()) : nothing());
    if (want_x) x.out[0] = x.out[1] = {grad_x.mutable_data_ptr(), dtype_of(a_.x)};
    if (g_.want_y) y.out[0] = y.out[1] = {grad_y.mutable_data_ptr(), dtype_of(a_.x)};
    measure();
    if (g_.kept != nullptr) {
      pass_.kept = static_cast<T*>(g_.kept->mutable_data_ptr());
      pass_.kept_pitch = kept_pitch(a_);
      pass_.bounded = a_.kind != kSigmoid;
      pass_.bound = pass_.kept[kept_size(a_) - 1];
    }
    const bool bounded = !a_.row_window && !a_.column_window;
    Stage packed(work_.all_blocks()), weighed(work_.all_blocks()), last(work_.all_blocks());
    run_workers(work_.workers, [&](int64_t worker) {
      T* scratch = work_.scratch_of(worker);
      if (g_.kept == nullptr) {
        pack(work_, packed, scratch, bounded, lowest_);
      } else {
        packed.run([&](int64_t block) {
          const Side<T>& side = work_.side_of(block);
          work_.k.pack(pass_, side, block, scratch);
        });
      }
      weighed.run([&](int64_t block) {
        Side<T>& side = work_.side_of(block);
        weigh(side, block);
      });
      work_.play([&](int64_t i, int64_t j) { work_.k.backward(pass_, i, j, scratch); });
      last.run([&](int64_t block) {
        const Side<T>& side = work_.side_of(block);
        work_.finish(side, block);
        if (side.grad == nullptr) return;
        work_.k.gradient(pass_, side, &side == &x && !pass_.symmetric ? y : x, block, scratch);
      });
    });
    double along = 0, total = 0;
    const Side<T>& from = want_x ? x : y;
    for (int64_t i = 0; from.grad != nullptr && i < from.rows; ++i) along += from.grad_dot[i];
    for (int64_t b = 0; b < x.blocks; ++b) total += x.block_total[b];
    for (int64_t i = 0; x.mate != nullptr && i < x.rows; ++i) {
      if (x.mate[i] >= 0) total += double(x.mate_weight[i]);
    }
    Tensor grad_scale = torch::stable::new_empty(a_.x, {}, kScalarType<T>);
    Tensor grad_bias = torch::stable::new_empty(a_.x, {}, kScalarType<T>);
    // Both sides of a symmetric matrix are in `along`.
    *static_cast<T*>(grad_scale.mutable_data_ptr()) = T(along * unit_ / (pass_.symmetric ? 2 : 1));
    *static_cast<T*>(grad_bias.mutable_data_ptr()) = T(total * unit_);
    return {grad_x, grad_y, grad_scale, grad_bias};
  }

 private:
  static std::vector<int64_t> shape(const Tensor& x) { return {x.size(0), x.size(1)}; }
  static std::vector<int64_t> nothing() { return {0}; }

  static Needs needs(const Arguments& a, const Gradients& g) {
    Needs needs = needs_of(a, false);
    needs.want_x = g.want_x || a.symmetric();
    needs.want_y = g.want_y;
    needs.kept = g.kept != nullptr;
    return needs;
  }

  // An anchor's statistics and their gradients; all zero where the side has none.
  struct Anchor {
    double lse, weight, pull, positive_lse, positive_weight;
  };
  Anchor anchor(bool of_x, int64_t i) const {
    if (!of_x && !a_.anchored_columns()) return {0, 0, 0, 0, 0};
    const Tensor &s = of_x ? g_.rows : g_.columns, &g = of_x ? g_.rows_grad : g_.columns_grad;
    Anchor found = {at<double>(s, kNegatives, i) * kLog2E, at<double>(g, kNegatives, i),
                    at<double>(g, kPositive, i), 0, 0};
    if (a_.kind == kPaired) found.weight += found.pull * at<double>(s, kPositives, i);
    if (a_.kind == kLabelled && at<double>(s, kCount, i) > 0) {
      found.positive_lse = at<double>(s, kPositives, i) * kLog2E;
      found.positive_weight = at<double>(g, kPositives, i);
    }
    if (found.lse == -kInfinity) found.weight = 0;
    return found;
  }

  // What the weights are divided by, and the least lse that matters.
  void measure() {
    double most = 0;
    for (const bool of_x : {true, false}) {
      const int64_t count = of_x ? a_.rows() : a_.anchored_columns() ? a_.others() : 0;
      for (int64_t i = 0; i < count; ++i) {
        const Anchor one = anchor(of_x, i);
        for (const double value : {one.weight, one.pull, one.positive_weight}) {
          if (!(std::abs(value) <= most) && most == most) most = std::abs(value);  // NaN stays
        }
        if (one.weight != 0) lowest_ = std::min(lowest_, one.lse);
        if (one.positive_weight != 0) lowest_ = std::min(lowest_, one.positive_lse);
      }
    }
    unit_ = most == 0 ? 1 : most;
    pass_.grad_scale = unit_ * a_.scale;
  }

  void weigh(Side<T>& side, int64_t block) {
    const bool of_x = &side == &work_.x;
    if (side.grad != nullptr) {
      const int64_t size = side.block * pass_.padded_depth;
      std::fill_n(side.grad + block * size, size, T(0));
    }
    side.block_total[block] = 0;
    for (int64_t i = block * side.block; i < (block + 1) * side.block; ++i) {
      const Anchor one = i < side.rows ? anchor(of_x, i) : Anchor{0, 0, 0, 0, 0};
      set_anchor(pass_, one.weight / unit_, a_.kind == kSigmoid ? 0 : one.lse,
                 writable(side.weight)[i], writable(side.lse)[i], writable(side.factor)[i]);
      if (a_.labels_tell()) {
        set_anchor(pass_, one.positive_weight / unit_, one.positive_lse,
                   writable(side.positive_weight)[i], writable(side.positive_lse)[i],
                   writable(side.positive_factor)[i]);
        writable(side.pull)[i] = T(one.pull / unit_);
        // Its sigmoid of lse - t needs it even where no negative has a weight.
        if (a_.kind == kPaired && one.pull != 0) {
          writable(side.lse)[i] = T(std::max(one.lse, -1e30));
        }
      } else if (side.mate != nullptr && i < side.rows && side.mate[i] >= 0) {
        const double both = one.pull + anchor(pass_.symmetric || !of_x, side.mate[i]).pull;
        writable(side.mate_weight)[i] = T(both / unit_);
      }
    }
  }

  const Arguments& a_;
  const Gradients& g_;
  Workspace<T> work_;
  Pass<T>& pass_;
  double unit_ = 1, lowest_ = kInfinity;
};

}  // namespace
}  // namespace contrast
}  // namespace fastssl
