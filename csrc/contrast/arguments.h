// The arguments that contrast_forward and contrast_backward share, and what both fill from them.
#pragma once

#include <unordered_map>

#include "contrast/workspace.h"

namespace fastssl {
namespace contrast {
namespace {

// In the order of the schema (fastssl/ops/contrast/pairs.py).
struct Arguments {
  const Tensor& x;
  const std::optional<Tensor>& y;
  double scale, bias;
  int64_t kind;
  bool normalize_x, normalize_y, columns, metrics;
  const std::optional<Tensor>&excluded, &partner, &row_labels, &column_labels, &row_window,
      &column_window, &threshold;

  bool symmetric() const { return !y; }
  const Tensor& other() const { return y ? *y : x; }
  bool anchored_columns() const { return y && columns; }
  bool labels_tell() const { return kind == kLabelled || kind == kPaired; }
  int64_t rows() const { return x.size(0); }
  int64_t others() const { return other().size(0); }
};

inline void check_vector(const std::optional<Tensor>& t, int64_t size, ScalarType type,
                         const char* what) {
  if (!t) return;
  STD_TORCH_CHECK(t->is_cpu() && t->dim() == 1 && t->size(0) == size && t->scalar_type() == type,
                  what, " must be a CPU vector of the right type with one entry for each row");
}

inline void check_window(const std::optional<Tensor>& t, int64_t size, const char* what) {
  if (!t) return;
  STD_TORCH_CHECK(t->is_cpu() && t->dim() == 2 && t->size(0) == 2 && t->size(1) == size &&
                      t->scalar_type() == ScalarType::Double,
                  what, " must be a float64 CPU matrix [2, rows]");
}

template <typename E>
const E& at(const Tensor& t, int64_t i) {
  return static_cast<const E*>(t.const_data_ptr())[i * t.stride(0)];
}
template <typename E>
const E& at(const Tensor& t, int64_t i, int64_t j) {
  return static_cast<const E*>(t.const_data_ptr())[i * t.stride(0) + j * t.stride(1)];
}

inline void check_index(const std::optional<Tensor>& index, int64_t columns, const char* what) {
  if (!index) return;
  std::vector<bool> taken(static_cast<size_t>(columns));
  for (int64_t i = 0; i < index->size(0); ++i) {
    const int64_t column = at<int64_t>(*index, i);
    STD_TORCH_CHECK(-1 <= column && column < columns, what, " must be -1 or a row of y");
    if (column < 0) continue;
    STD_TORCH_CHECK(!taken[size_t(column)], what, " names a row of y twice");
    taken[size_t(column)] = true;
  }
}

inline void check(const Arguments& a) {
  STD_TORCH_CHECK(a.x.is_cpu() && a.x.dim() == 2 && a.x.numel() > 0 && a.other().is_cpu() &&
                      a.other().dim() == 2 && a.other().size(1) == a.x.size(1) &&
                      a.other().numel() > 0 && a.other().scalar_type() == a.x.scalar_type(),
                  "x and y must be non-empty CPU matrices of one width and dtype");
  STD_TORCH_CHECK(kSoftmax <= a.kind && a.kind <= kPaired, "kind must be 0 to 3");
  STD_TORCH_CHECK(!(a.symmetric() && a.excluded), "excluded is for two matrices");
  STD_TORCH_CHECK(!(a.kind == kSigmoid && (a.symmetric() || a.columns)),
                  "kind 1 (sigmoid) compares rows of x with those of y, one way");
  STD_TORCH_CHECK(!(a.kind == kPaired && a.metrics), "kind 3 (pairs) has no metrics");
  STD_TORCH_CHECK(a.kind == kSoftmax || !(a.row_window || a.column_window),
                  "windows are for kind 0 (softmax)");
  STD_TORCH_CHECK(!a.labels_tell() || a.row_labels, "kinds 2 and 3 need labels");
  STD_TORCH_CHECK(!a.row_labels || a.symmetric() || a.column_labels, "columns need labels");
  STD_TORCH_CHECK(!(a.labels_tell() && a.partner), "labels or partners tell positives, not both");
  check_vector(a.excluded, a.rows(), ScalarType::Long, "excluded");
  check_vector(a.partner, a.rows(), ScalarType::Long, "partner");
  check_vector(a.row_labels, a.rows(), ScalarType::Long, "row_labels");
  check_vector(a.column_labels, a.others(), ScalarType::Long, "column_labels");
  check_window(a.row_window, a.rows(), "row_window");
  check_window(a.column_window, a.others(), "column_window");
  check_vector(a.threshold, a.rows(), ScalarType::Double, "threshold");
  check_index(a.excluded, a.others(), "excluded");
  check_index(a.partner, a.others(), "partner");
  for (int64_t i = 0; a.symmetric() && a.partner && i < a.rows(); ++i) {
    const int64_t p = at<int64_t>(*a.partner, i);
    STD_TORCH_CHECK(p < 0 || (p != i && at<int64_t>(*a.partner, p) == i),
                    "partners of one matrix must come in pairs");
  }
}

// The same comparison with the rows of x as the only anchors, or with those of y (`swap`).
class OneWay {
 public:
  explicit OneWay(const Arguments& a, bool swap = false) : a_(a), swap_(swap), y_(a.other()) {
    const int64_t rows = a.rows(), others = a.others();
    if (a.symmetric()) {
      excluded_ = indices(rows);
      for (int64_t i = 0; i < rows; ++i) put(*excluded_, i, i);
    } else {
      excluded_ = swap ? inverse(a.excluded, others) : a.excluded;
    }
    partner_ = swap ? inverse(a.partner, others) : a.partner;
    column_labels_ = a.symmetric() ? a.row_labels : a.column_labels;
  }

  Arguments arguments() const {
    if (!swap_) {
      return {a_.x,
              y_,
              a_.scale,
              a_.bias,
              a_.kind,
              a_.normalize_x,
              a_.symmetric() ? a_.normalize_x : a_.normalize_y,
              false,
              a_.metrics,
              excluded_,
              partner_,
              a_.row_labels,
              column_labels_,
              a_.row_window,
              none_,
              a_.threshold};
    }
    return {
        *y_,   x_,         a_.scale,  a_.bias,  a_.kind,          a_.normalize_y, a_.normalize_x,
        false, a_.metrics, excluded_, partner_, a_.column_labels, a_.row_labels,  a_.column_window,
        none_, none_};
  }

 private:
  Tensor indices(int64_t count) const {
    return torch::stable::new_empty(a_.x, {count}, ScalarType::Long);
  }
  static void put(const Tensor& t, int64_t i, int64_t value) {
    static_cast<int64_t*>(t.mutable_data_ptr())[i] = value;
  }
  std::optional<Tensor> inverse(const std::optional<Tensor>& index, int64_t count) const {
    if (!index) return std::nullopt;
    Tensor result = indices(count);
    for (int64_t j = 0; j < count; ++j) put(result, j, -1);
    for (int64_t i = 0; i < index->size(0); ++i) {
      const int64_t j = static_cast<const int64_t*>(index->const_data_ptr())[i * index->stride(0)];
      if (j >= 0) put(result, j, i);
    }
    return result;
  }

  const Arguments& a_;
  const bool swap_;
  const std::optional<Tensor> y_, x_ = a_.x, none_;
  std::optional<Tensor> excluded_, partner_, column_labels_;
};

inline Needs needs_of(const Arguments& a, bool forward) {
  Needs needs;
  needs.forward = forward;
  needs.labels = a.labels_tell();
  needs.drop = a.row_labels && !a.labels_tell();
  needs.mates = a.partner.has_value();
  needs.excluded = a.excluded.has_value();
  needs.windows = a.row_window.has_value();
  needs.column_windows = a.column_window && a.columns;
  needs.metrics = a.metrics && forward;
  return needs;
}

// Labels as they are where lanes can hold them, else numbered by first appearance.
template <typename T>
void fill_labels(const Arguments& a, Workspace<T>& work) {
  const Tensor* given[2] = {&*a.row_labels, a.symmetric() ? nullptr : &*a.column_labels};
  Side<T>* sides[2] = {&work.x, &work.y};
  bool fit = true;
  for (const Tensor* labels : given) {
    for (int64_t i = 0; labels != nullptr && i < labels->size(0); ++i) {
      const int64_t label = at<int64_t>(*labels, i);
      fit &= label == int64_t(Label<T>(label));
    }
  }
  std::unordered_map<int64_t, int64_t> numbers;
  for (int s = 0; s < 2 && given[s] != nullptr; ++s) {
    Label<T>* to = writable(sides[s]->labels);
    std::fill_n(to, sides[s]->block * sides[s]->blocks, Label<T>(0));
    for (int64_t i = 0; i < sides[s]->rows; ++i) {
      const int64_t label = at<int64_t>(*given[s], i);
      to[i] = Label<T>(fit ? label : numbers.emplace(label, int64_t(numbers.size())).first->second);
    }
  }
}

template <typename T>
void fill_window(const Tensor& window, Side<T>& side) {
  for (int64_t i = 0; i < side.block * side.blocks; ++i) {
    const bool real = i < side.rows;
    writable(side.low)[i] = real ? T(at<double>(window, 0, i) * kLog2E) : T(0);
    writable(side.high)[i] = real ? T(at<double>(window, 1, i) * kLog2E) : T(0);
  }
}

// Room for the exponentials of all pairs, and for their bound (-1 where they were not kept). Strips
// may reach past the last row and column.
inline int64_t kept_pitch(const Arguments& a) { return (a.others() + 63) / 64 * 64; }
inline int64_t kept_size(const Arguments& a) { return (a.rows() + 16) * kept_pitch(a) + 1; }

// All that does not depend on the rows themselves.
template <typename T>
void fill(const Arguments& a, Workspace<T>& work) {
  Pass<T>& pass = work.pass;
  pass.kind = a.kind;
  pass.columns = a.anchored_columns();
  pass.shift = T(-a.bias * kLog2E);
  pass.equal_labels_drop = a.row_labels && !a.labels_tell();
  if (a.row_labels) fill_labels(a, work);
  for (int64_t i = 0; i < work.x.rows; ++i) {
    if (a.partner) writable(work.x.mate)[i] = at<int64_t>(*a.partner, i);
    if (a.excluded) writable(work.x.excluded)[i] = at<int64_t>(*a.excluded, i);
  }
  if (a.row_window) fill_window(*a.row_window, work.x);
  if (a.column_window && work.y.low != nullptr) fill_window(*a.column_window, work.y);
  if (a.partner && work.y.mate != nullptr) {
    std::fill_n(writable(work.y.mate), work.y.rows, int64_t(-1));
    for (int64_t i = 0; i < work.x.rows; ++i) {
      if (work.x.mate[i] >= 0) writable(work.y.mate)[work.x.mate[i]] = i;
    }
  }
}

template <typename T>
void pack(Workspace<T>& work, Stage& stage, T* scratch, bool bounded, double lowest) {
  stage.run(
      [&](int64_t block) {
        const Side<T>& side = work.side_of(block);
        work.k.pack(work.pass, side, block, scratch);
      },
      [&] { work.choose_bound(bounded, lowest); });
}

}  // namespace
}  // namespace contrast
}  // namespace fastssl
