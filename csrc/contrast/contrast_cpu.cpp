// The family's CPU operators, statistics and their gradient; fastssl/ops/contrast/schema.py defines
// them.
#include <tuple>

#include "contrast/arguments.h"

namespace fastssl {
namespace contrast {
namespace {

// Rows of the statistics, as pairs.py names them.
enum {
  kNegatives,
  kPositive,
  kPositives,
  kCount,
  kRank,
  kMean,
  kTotalLogit,
  kNumber,
  kClose,
  kBest
};
constexpr int64_t kRows = 4, kRowsWithMetrics = 10;

double* row_of(const Tensor& statistics, int64_t row) {
  return static_cast<double*>(statistics.mutable_data_ptr()) + row * statistics.size(1);
}

template <typename T>
class Forward {
 public:
  explicit Forward(const Arguments& a)
      : a_(a),
        work_(a.x, nullptr, a.y ? &*a.y : nullptr, a.scale, a.normalize_x, a.normalize_y,
              needs_of(a, true)),
        pass_(work_.pass) {
    fill(a_, work_);
    pass_.close_scale = T(4 / a.scale);
    pass_.close_shift = T(-4 * kLog2E);
  }

  std::tuple<Tensor, Tensor> run() {
    const int64_t count = a_.metrics ? kRowsWithMetrics : kRows;
    rows_ = torch::stable::new_empty(a_.x, {count, a_.rows()}, ScalarType::Double);
    const int64_t others = a_.anchored_columns() ? a_.others() : 0;
    columns_ = torch::stable::new_empty(a_.x, {kRows, others}, ScalarType::Double);
    const bool bounded = a_.kind != kSigmoid && !a_.row_window && !a_.metrics;
    Side<T>& x = work_.x;
    Stage packed(work_.all_blocks()), started(work_.all_blocks()), summed(work_.all_blocks()),
        last(work_.all_blocks());
    std::unique_ptr<Grid> grid;
    std::unique_ptr<Tournament> tournament;
    if (a_.kind == kPaired && pass_.symmetric) tournament.reset(new Tournament(x.blocks));
    if (a_.kind == kPaired && !pass_.symmetric) grid.reset(new Grid(x.blocks, work_.y.blocks));
    pass_.equal_labels_drop |= a_.kind == kPaired;
    run_workers(work_.workers, [&](int64_t worker) {
      T* scratch = work_.scratch_of(worker);
      pack(work_, packed, scratch, bounded, kInfinity);
      started.run([&](int64_t block) {
        Side<T>& side = work_.side_of(block);
        start(side, block, scratch);
      });
      work_.play([&](int64_t i, int64_t j) { work_.k.forward(pass_, i, j, scratch); });
      if (a_.kind == kPaired) {
        summed.run(
            [&](int64_t block) {
              const Side<T>& side = work_.side_of(block);
              work_.finish(side, block);
              const auto keep = [&](int64_t i) { writable(side.lse)[i] = T(lse(side, i)); };
              work_.for_rows(side, block, keep);
            },
            [&] {
              pass_.equal_labels_drop = false;
              pass_.bounded = false;
              pass_.bound = 0;
            });
        const auto pairs = [&](int64_t i, int64_t j) { work_.k.pairs(pass_, i, j, scratch); };
        if (pass_.symmetric) {
          tournament->play(pairs);
        } else {
          grid->play(pairs);
        }
      }
      last.run([&](int64_t block) {
        const Side<T>& side = work_.side_of(block);
        work_.finish(side, block);
        if (a_.kind != kPaired) return finish(side, block);
        if (pass_.symmetric) {
          tournament->finish(block);
        } else if (&side == &x) {
          grid->finish_row(block);
        } else {
          grid->finish_column(block);
        }
        finish(side, block);
      });
    });
    return {*rows_, *columns_};
  }

 private:
  void start(Side<T>& side, int64_t block, T* scratch) {
    const bool is_x = &side == &work_.x;
    for (int64_t i = block * side.block; i < (block + 1) * side.block; ++i) {
      side.peak[i] = pass_.bounded ? double(pass_.bound) : std::numeric_limits<double>::lowest();
      side.sum[i] = side.positive_total[i] = side.count[i] = 0;
      if (side.positive_sum != nullptr) side.positive_sum[i] = 0;
      if (side.positive_peak != nullptr) side.positive_peak[i] = side.peak[i];
      if (side.lse != nullptr) writable(side.lse)[i] = 0;
    }
    if (!is_x) return;
    if (side.mate != nullptr) {
      work_.k.positives(pass_, block, scratch);
      work_.for_rows(side, block, [&](int64_t i) {
        if (side.mate[i] < 0) return;
        side.positive_total[i] = double(T(scratch[i - block * side.block] - pass_.shift));
        side.count[i] = 1;
      });
    }
    if (side.tally == nullptr) return;
    constexpr double kLeast = std::numeric_limits<double>::lowest();
    for (int64_t i = block * side.block; i < (block + 1) * side.block; ++i) {
      side.tally[i] = {kLeast, 0, 0, 0, 0, 0, 0, kLeast};
      writable(side.threshold)[i] = T(-3e38);
      if (i >= side.rows) continue;
      if (a_.threshold) {
        writable(side.threshold)[i] = T(at<double>(*a_.threshold, i) * kLog2E);
      } else if (side.count[i] > 0) {
        writable(side.threshold)[i] = T(side.positive_total[i]);
      }
    }
  }

  // Units of log2; -infinity where nothing was summed.
  static double lse_of(double peak, double sum) {
    if (sum == 0 || peak < -1e37) return peak == peak && sum == sum ? -kInfinity : sum + peak;
    return peak + std::log2(sum);
  }
  double lse(const Side<T>& side, int64_t i) const { return lse_of(side.peak[i], side.sum[i]); }

  void finish(const Side<T>& side, int64_t block) {
    const bool is_x = &side == &work_.x;
    if (!is_x && !a_.anchored_columns()) return;
    const Tensor& out = is_x ? *rows_ : *columns_;
    double *negatives = row_of(out, kNegatives), *positive = row_of(out, kPositive),
           *positives = row_of(out, kPositives), *count = row_of(out, kCount);
    const Side<T>& x = work_.x;
    work_.for_rows(side, block, [&](int64_t i) {
      negatives[i] = a_.kind == kSigmoid ? side.sum[i] : lse(side, i) * kLn2;
      positives[i] = 0;
      count[i] = side.count[i];
      if (a_.kind == kLabelled) {
        positive[i] = side.positive_total[i] * kLn2;
        positives[i] = lse_of(side.positive_peak[i], side.positive_sum[i]) * kLn2;
      } else if (a_.kind == kPaired) {
        positive[i] = side.positive_total[i];
        positives[i] = side.positive_sum[i];
      } else {
        // A pair has one logit, its row's and its column's.
        const int64_t row = is_x ? i : side.mate == nullptr ? -1 : side.mate[i];
        positive[i] = row < 0 ? 0 : x.positive_total[row] * kLn2;
        count[i] = row < 0 ? 0 : x.count[row];
      }
    });
    if (is_x && side.tally != nullptr) {
      work_.for_rows(side, block, [&](int64_t i) { finish_metrics(side, i); });
    }
  }

  void finish_metrics(const Side<T>& side, int64_t i) {
    Tally tally = side.tally[i];
    if (side.mate != nullptr && side.count[i] > 0) {  // which is no part of the sums over negatives
      const double t = side.positive_total[i], top = std::max(t, tally.peak);
      tally.sum = tally.sum * std::exp2(tally.peak - top) + std::exp2(t - top);
      tally.dot = tally.dot * std::exp2(tally.peak - top) + t * std::exp2(t - top);
      tally.best = t;
    }
    const double best = tally.best < -1e37 ? -kInfinity : tally.best * kLn2;
    const double mean = tally.sum == 0 ? 0 : tally.dot / tally.sum * kLn2;
    const double values[] = {tally.rank, mean, tally.total * kLn2, tally.number, tally.close, best};
    for (int n = 0; n < 6; ++n) row_of(*rows_, kRank + n)[i] = values[n];
  }

  const Arguments& a_;
  Workspace<T> work_;
  Pass<T>& pass_;
  std::optional<Tensor> rows_, columns_;
};

struct Gradients {
  const Tensor &rows, &rows_grad, &columns, &columns_grad;
  bool want_x, want_y;
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
    const bool bounded = !a_.row_window && !a_.column_window;
    Stage packed(work_.all_blocks()), weighed(work_.all_blocks()), last(work_.all_blocks());
    run_workers(work_.workers, [&](int64_t worker) {
      T* scratch = work_.scratch_of(worker);
      pack(work_, packed, scratch, bounded, lowest_);
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
    needs.want_x = g.want_x;
    needs.want_y = g.want_y;
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
        if (a_.kind == kPaired) {
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

double number(const std::optional<Tensor>& learned, double plain) {
  return learned ? value_of(*learned) : plain;
}

std::tuple<Tensor, Tensor> forward(const Arguments& a) {
  return a.x.scalar_type() == ScalarType::Double ? Forward<double>(a).run()
                                                 : Forward<float>(a).run();
}

#define FASTSSL_PAIRS                                                                     \
  const Tensor &x, const std::optional<Tensor>&y, const std::optional<Tensor>&scale,      \
      double factor, const std::optional<Tensor>&bias, int64_t kind, bool normalize_x,    \
      bool normalize_y, bool columns, bool metrics, const std::optional<Tensor>&excluded, \
      const std::optional<Tensor>&partner, const std::optional<Tensor>&row_labels,        \
      const std::optional<Tensor>&column_labels, const std::optional<Tensor>&row_window,  \
      const std::optional<Tensor>&column_window, const std::optional<Tensor>&threshold
#define FASTSSL_ARGUMENTS \
  {x,                     \
   y,                     \
   number(scale, factor), \
   number(bias, 0),       \
   kind,                  \
   normalize_x,           \
   normalize_y,           \
   columns,               \
   metrics,               \
   excluded,              \
   partner,               \
   row_labels,            \
   column_labels,         \
   row_window,            \
   column_window,         \
   threshold}

std::tuple<Tensor, Tensor> contrast_forward(FASTSSL_PAIRS) {
  const Arguments a = FASTSSL_ARGUMENTS;
  check(a);
  if (!a.metrics && !a.row_window && !a.column_window) return forward(a);
  // What windows leave and metrics count differs between a pair's two anchors: one side at a time.
  const OneWay by_row(a);
  auto found = forward(by_row.arguments());
  if (a.anchored_columns()) std::get<1>(found) = std::get<0>(forward(OneWay(a, true).arguments()));
  return found;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> contrast_backward(FASTSSL_PAIRS, const Tensor& rows,
                                                             const Tensor& rows_grad,
                                                             const Tensor& columns_,
                                                             const Tensor& columns_grad,
                                                             bool want_x, bool want_y) {
  const Arguments a = FASTSSL_ARGUMENTS;
  check(a);
  const auto fits = [](const Tensor& t, int64_t count) {
    return t.is_cpu() && t.dim() == 2 && t.size(0) >= kRows && t.size(1) == count &&
           t.scalar_type() == ScalarType::Double;
  };
  const int64_t others = a.anchored_columns() ? a.others() : 0;
  STD_TORCH_CHECK(fits(rows, a.rows()) && fits(rows_grad, a.rows()) && fits(columns_, others) &&
                      fits(columns_grad, others),
                  "statistics and their gradients must be float64 matrices of these rows");
  const Gradients g = {rows, rows_grad, columns_, columns_grad, want_x, want_y && !a.symmetric()};
  return x.scalar_type() == ScalarType::Double ? Backward<double>(a, g).run()
                                               : Backward<float>(a, g).run();
}

}  // namespace
}  // namespace contrast

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("contrast_forward", TORCH_BOX(&contrast::contrast_forward));
  m.impl("contrast_backward", TORCH_BOX(&contrast::contrast_backward));
}

}  // namespace fastssl
