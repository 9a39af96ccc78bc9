// contrast_forward: sums over negatives and positives, to statistics.
#pragma once

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

  // `kept`, where it is not null, gets the exponentials.
  std::tuple<Tensor, Tensor> run(const Tensor* kept = nullptr) {
    T* exponentials = kept == nullptr ? nullptr : static_cast<T*>(kept->mutable_data_ptr());
    pass_.kept = exponentials;
    pass_.kept_pitch = kept_pitch(a_);
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
    if (kept != nullptr) {
      const bool whole = pass_.bounded || a_.kind == kSigmoid;
      exponentials[kept_size(a_) - 1] = whole ? pass_.bound : T(-1);
    }
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

}  // namespace
}  // namespace contrast
}  // namespace fastssl
