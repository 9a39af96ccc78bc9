// The family's CPU operators, statistics and their gradient; fastssl/ops/contrast/schema.py defines
// them.
#include "contrast/gradient.h"
#include "contrast/statistics.h"

namespace fastssl {
namespace contrast {
namespace {

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

std::tuple<Tensor, Tensor, Tensor> contrast_forward_kept(FASTSSL_PAIRS) {
  const Arguments a = FASTSSL_ARGUMENTS;
  check(a);
  STD_TORCH_CHECK(kind != kPaired && !metrics && !row_window && !column_window,
                  "exponentials are kept for kinds 0 to 2 without metrics and windows");
  const bool wide = x.scalar_type() == ScalarType::Double;
  const Tensor kept =
      torch::stable::new_empty(x, {kept_size(a)}, wide ? ScalarType::Double : ScalarType::Float);
  const auto [rows, others] = wide ? Forward<double>(a).run(&kept) : Forward<float>(a).run(&kept);
  return {rows, others, kept};
}

using GradientTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

GradientTensors backward(const Arguments& a, const Gradients& g) {
  check(a);
  const auto fits = [](const Tensor& t, int64_t count) {
    return t.is_cpu() && t.dim() == 2 && t.size(0) >= kRows && t.size(1) == count &&
           t.scalar_type() == ScalarType::Double;
  };
  const int64_t others = a.anchored_columns() ? a.others() : 0;
  STD_TORCH_CHECK(fits(g.rows, a.rows()) && fits(g.rows_grad, a.rows()) &&
                      fits(g.columns, others) && fits(g.columns_grad, others),
                  "statistics and their gradients must be float64 matrices of these rows");
  return a.x.scalar_type() == ScalarType::Double ? Backward<double>(a, g).run()
                                                 : Backward<float>(a, g).run();
}

GradientTensors contrast_backward(FASTSSL_PAIRS, const Tensor& rows, const Tensor& rows_grad,
                                  const Tensor& columns_, const Tensor& columns_grad, bool want_x,
                                  bool want_y) {
  const Arguments a = FASTSSL_ARGUMENTS;
  return backward(a, {rows, rows_grad, columns_, columns_grad, want_x, want_y && !a.symmetric()});
}

GradientTensors contrast_backward_kept(const Tensor& kept, FASTSSL_PAIRS, const Tensor& rows,
                                       const Tensor& rows_grad, const Tensor& columns_,
                                       const Tensor& columns_grad, bool want_x, bool want_y) {
  const Arguments a = FASTSSL_ARGUMENTS;
  check(a);
  const bool wide = x.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(kept.is_cpu() && kept.numel() == kept_size(a) && kept.is_contiguous() &&
                      kept.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float),
                  "kept does not belong to these rows");
  const int64_t last = kept.numel() - 1;
  const double bound = wide ? at<double>(kept, last) : double(at<float>(kept, last));
  return backward(a, {rows, rows_grad, columns_, columns_grad, want_x, want_y && !a.symmetric(),
                      bound < 0 ? nullptr : &kept});
}

}  // namespace
}  // namespace contrast

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("contrast_forward", TORCH_BOX(&contrast::contrast_forward));
  m.impl("contrast_backward", TORCH_BOX(&contrast::contrast_backward));
  m.impl("contrast_forward_kept", TORCH_BOX(&contrast::contrast_forward_kept));
  m.impl("contrast_backward_kept", TORCH_BOX(&contrast::contrast_backward_kept));
}

}  // namespace fastssl
