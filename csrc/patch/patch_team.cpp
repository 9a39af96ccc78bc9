// The GPU's algorithms run on the CPU by teams whose threads take turns: for tests, and in
// development builds alone. Each operator is as its namesake, with `turns`: how threads take turns
// (common/host_team.h), and `threads`: in a team.
#include <memory>
#include <tuple>
#include <vector>

#include "common/host_team.h"
#include "patch/levels_team.h"
#include "patch/operator_cuda.h"
#include "patch/plan_operator.h"
#include "patch/plan_team.h"
#include "patch/pretext_operator.h"

namespace fastssl {
namespace patch {
namespace {

// What a thread of a team, which cannot throw, does instead.
class Failure {
 public:
  void operator()() const { *found_ = true; }
  void check() const { STD_TORCH_CHECK(!*found_, "patch: an index of the plan is out of range"); }

 private:
  std::shared_ptr<bool> found_ = std::make_shared<bool>(false);
};

// Memory as a launch finds it: 16-byte alignment, and NaN in it.
class Filled {
 public:
  explicit Filled(int64_t bytes) : words_(size_t(bytes / 8 + 4), -1) {}
  template <class T>
  T* as() {
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(words_.data()) + 15) / 16 * 16);
  }

 private:
  std::vector<int64_t> words_;
};

// f(an element of the type, how many of them are a pack).
template <class F>
void with_packs(DType type, bool packed, const F& f) {
  with_type(type, [&](auto x) {
    constexpr int kCount = kPackOf<decltype(x)>;
    packed ? f(x, std::integral_constant<int, kCount>()) : f(x, std::integral_constant<int, 1>());
  });
}

// Which teams run of those that share out rows, and how many there are: all of three. A test of
// rows that are far from the first lets run the team alone that has the last.
struct Share {
  int64_t begin = 0, end = 3, teams = 3;
} share;

void patch_team_share(int64_t begin, int64_t end, int64_t teams) { share = {begin, end, teams}; }

Tensor patch_gather_team(const Tensor& images, const Tensor& shuffle, const Tensor& restore,
                         const std::optional<Tensor>& lengths, int64_t keep,
                         const std::vector<int64_t>& patch, const std::vector<double>& mean,
                         const std::vector<double>& std, int64_t order, int64_t dtype,
                         int64_t turns, int64_t threads) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, images);
  const Images geometry = images_of(images, patch, plan.length);
  const Normalization norm(geometry, mean, std);
  const std::vector<double> table = table_of(norm);
  const Pixels pixels =
      pixels_of(geometry, norm, geometry.channels > kChannelsByValue ? table.data() : nullptr);
  const ScalarType type = type_at(dtype);
  Tensor out = torch::stable::new_empty(images, {plan.batch, keep, geometry.width()}, type);
  const DType to = dtype_of(type);
  const GatherBatch batch = gather_batch(plan, pixels, order_at(order), to, out.mutable_data_ptr());
  const Failure failed;
  HostStage stage(int32_t(threads), turns);
  with_packs(to, gather_is_packed(batch, to), [&](auto out_type, auto count) {
    const auto run = [&](auto source) {
      for (int64_t n = share.begin; n < share.end; ++n) {
        stage.run([&](const HostTeam& team) {
          gather_rows<decltype(source), decltype(out_type), decltype(count)::value>(
              team, batch, n, share.teams, failed);
        });
      }
    };
    if (pixels.source == kUint8Source) return run(uint8_t());
    with_type(DType(pixels.source), run);
  });
  failed.check();
  return out;
}

void run_tokens(const TokensJob& job, bool restores, int64_t turns, int64_t threads) {
  const TokensBatch batch = tokens_batch(job, restores);
  const Failure failed;
  HostStage stage(int32_t(threads), turns);
  const auto run = [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    for (int64_t n = share.begin; n < share.end; ++n) {
      stage.run([&](const HostTeam& team) {
        tokens_are_packed(job)
            ? token_rows<In, Out, kPackOf<Out>>(team, batch, n, share.teams, failed)
            : token_rows<In, Out, 1>(team, batch, n, share.teams, failed);
      });
    }
  };
  with_type(job.x_dtype, [&](auto in) {
    if (job.x_dtype == job.dtype) return run(in, in);
    run(in, Compute<decltype(in)>());
  });
  failed.check();
}

Tensor patch_gather_tokens_team(const Tensor& x, const std::optional<Tensor>& pos,
                                const Tensor& shuffle, const Tensor& restore,
                                const std::optional<Tensor>& lengths, int64_t keep, int64_t prefix,
                                int64_t turns, int64_t threads) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, x);
  TokensJob job = tokens_of(x, plan, prefix, plan.length, x.scalar_type());
  job.pos = addend(pos, x.scalar_type(), (prefix + plan.length) * job.width, x);
  Tensor out = torch::stable::new_empty(x, {plan.batch, prefix + keep, job.width});
  job.out = out.mutable_data_ptr();
  run_tokens(job, false, turns, threads);
  return out;
}

Tensor patch_restore_tokens_team(const Tensor& visible, const std::optional<Tensor>& token,
                                 const std::optional<Tensor>& pos, const Tensor& shuffle,
                                 const Tensor& restore, const std::optional<Tensor>& lengths,
                                 int64_t keep, int64_t prefix, int64_t dtype, int64_t turns,
                                 int64_t threads) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, visible);
  const ScalarType type = type_at(dtype);
  TokensJob job = tokens_of(visible, plan, prefix, keep, type);
  job.token = addend(token, type, job.width, visible);
  job.pos = addend(pos, type, (prefix + plan.length) * job.width, visible);
  Tensor out =
      torch::stable::new_empty(visible, {plan.batch, prefix + plan.length, job.width}, type);
  job.out = out.mutable_data_ptr();
  run_tokens(job, true, turns, threads);
  return out;
}

// `threads`: a multiple of 32.
Tensor patch_sum_removed_team(const Tensor& x, const Tensor& shuffle, const Tensor& restore,
                              const std::optional<Tensor>& lengths, int64_t keep, int64_t prefix,
                              int64_t turns, int64_t threads) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, x);
  const TokensJob job = tokens_of(x, plan, prefix, plan.length, x.scalar_type());
  Tensor out = torch::stable::new_empty(x, {job.width}, compute_type(x.scalar_type()));
  SumBatch batch = sum_batch(job);
  Filled partial(batch.chunks * batch.width * 8);
  batch.partial = partial.as<double>();
  batch.out = out.mutable_data_ptr();
  HostStage stage(int32_t(threads), turns);
  with_type(job.x_dtype, [&](auto in) {
    using In = decltype(in);
    for (int64_t n = 0; n < batch.chunks; ++n) {
      stage.run([&](const HostTeam& team) {
        sum_is_packed(job) ? sum_chunk<In, kSumPackOf<In>>(team, batch, n)
                           : sum_chunk<In, 1>(team, batch, n);
      });
    }
    for (int64_t n = 0; n * kTileColumns < batch.width; ++n) {
      Filled scratch(threads * 8);
      stage.run([&](const HostTeam& team) {
        sum_chunks<Compute<In>>(team, batch, n, scratch.as<double>());
      });
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> patch_loss_team(
    const Tensor& images, const Tensor& pred, const Tensor& shuffle, const Tensor& restore,
    const std::optional<Tensor>& lengths, int64_t keep, const std::vector<int64_t>& patch,
    const std::vector<double>& mean, const std::vector<double>& std, bool norm_pix, int64_t kind,
    int64_t statistics, int64_t order, double upstream, int64_t turns, int64_t threads,
    int64_t teams) {
  const Plan plan = plan_of(shuffle, restore, lengths, keep, images);
  const Images geometry = images_of(images, patch, plan.length);
  const Normalization norm(geometry, mean, std);
  LossJob job = loss_of(geometry, plan, norm, pred, norm_pix, kind, statistics, order, upstream);
  Tensor gradient = new_gradient(pred, &job);
  Tensor loss = torch::stable::new_empty(pred, {}, compute_type(pred.scalar_type()));
  const std::vector<double> table = table_of(norm);
  LossBatch batch = loss_batch(
      job,
      pixels_of(geometry, norm, geometry.channels > kChannelsByValue ? table.data() : nullptr));
  batch.teams = std::min(batch.teams, teams);
  Filled partial(batch.teams * 8);
  batch.partial = partial.as<double>();
  batch.loss = loss.mutable_data_ptr();
  const Failure failed;
  HostStage stage(int32_t(threads), turns);
  with_packs(job.dtype, loss_is_packed(job), [&](auto x, auto count) {
    using T = decltype(x);
    const int64_t first = share.begin == 0 ? 0 : batch.teams - 1;
    for (int64_t n = first; n < batch.teams; ++n) {
      Filled scratch(batch.scratch() * int64_t(sizeof(Compute<T>)));
      stage.run([&](const HostTeam& team) {
        if constexpr (sizeof(T) < 8 && decltype(count)::value > 1) {
          if (batch.levels.applies) {
            return level_rows<T, decltype(count)::value, 32>(team, batch, n, scratch.as<float>(),
                                                             failed);
          }
        }
        loss_rows<T, decltype(count)::value>(team, batch, n, scratch.as<Compute<T>>(), failed);
      });
    }
    stage.run([&](const HostTeam& team) { sum_losses<Compute<T>>(team, batch); });
  });
  failed.check();
  return {loss, gradient};
}

void patch_scale_team_(Tensor x, const Tensor& by) {
  const DType type = dtype_of(x);
  const ScaleBatch batch{x.mutable_data_ptr(), by.const_data_ptr(), dtype_of(by),
                         int64_t(x.numel())};
  const bool packed = is_packed(batch.x, size_of(type), count_of(type), batch.count, {});
  with_packs(type, packed, [&](auto element, auto count) {
    for (int64_t n = share.begin; n < share.end; ++n) {
      scale_packs<decltype(element), decltype(count)::value>(batch, n, share.teams);
    }
  });
}

Tensor patch_tiles_team(const Tensor& images, const Tensor& corners, int64_t height, int64_t width,
                        int64_t turns, int64_t threads) {
  const auto [out, tiles] = checked_tiles(images, corners, height, width);
  const Tiles& t = tiles;
  check_tiles(t);
  HostStage stage(int32_t(threads), turns);
  const auto run = [&](auto x) {
    using T = decltype(x);
    for (int64_t n = share.begin; n < share.end; ++n) {
      stage.run([&](const HostTeam& team) {
        t.height* t.width % kPackOf<T> == 0 ? tile_planes<T, kPackOf<T>>(team, t, n, share.teams)
                                            : tile_planes<T, 1>(team, t, n, share.teams);
      });
    }
  };
  t.element == 1   ? run(uint8_t())
  : t.element == 2 ? run(uint16_t())
  : t.element == 4 ? run(uint32_t())
  : t.element == 8 ? run(uint64_t())
                   : run(Wide());
  return out;
}

std::tuple<Tensor, Tensor> patch_mask_tokens_team(
    const Tensor& ids, const std::optional<Tensor>& special, const Tensor& sample_ids,
    const std::optional<Tensor>& step, int64_t step_value, int64_t seed, int64_t mask_id,
    int64_t vocab_size, const std::vector<double>& shares) {
  const TokenRule rule =
      checked_tokens(ids, special, sample_ids, step, mask_id, vocab_size, shares);
  const Tensor inputs = torch::stable::new_empty(ids, ids.sizes());
  const Tensor labels = torch::stable::new_empty(ids, ids.sizes());
  const TokenBatch batch =
      token_batch(ids, special, sample_ids, step, step_value, seed, rule, inputs, labels);
  for (int64_t n = share.begin; n < share.end; ++n) mask_tokens(batch, n, share.teams);
  return {inputs, labels};
}

template <class Family>
void draw_team(const Family& plan, const PlanBatch& batch, int64_t turns, int64_t threads) {
  HostStage stage(int32_t(threads), turns);
  Filled scratch(scratch_words(plan, int32_t(threads)) * 8);
  stage.run([&](const HostTeam& team) {
    const int64_t first = share.begin == 0 ? 0 : batch.batch - 1;
    for (int64_t b = first; b < batch.batch; ++b) {  // as a block that draws several samples
      draw_plan(team, plan, batch, b, scratch.as<uint64_t>());
      team.sync();
    }
  });
}

PlanTensors patch_random_team(const Tensor& sample_ids, const std::optional<Tensor>& lengths,
                              const std::optional<Tensor>& step, int64_t step_value, int64_t seed,
                              const std::vector<int64_t>& grid, const std::vector<int64_t>& cell,
                              int64_t keep, bool ordered, int64_t turns, int64_t threads) {
  const RandomPlan plan = random_plan(sample_ids, lengths, grid, cell, keep, ordered);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), false);
  draw_team(plan, made.batch, turns, threads);
  return {made.shuffle, made.restore, made.mask};
}

LengthTensors patch_blocks_team(const Tensor& sample_ids, const std::optional<Tensor>& counts,
                                const std::vector<double>& ratios, double probability,
                                const std::optional<Tensor>& step, int64_t step_value, int64_t seed,
                                const std::vector<int64_t>& grid, int64_t area_least,
                                int64_t area_most, const std::vector<double>& aspect, bool exact,
                                bool roll, int64_t turns, int64_t threads) {
  const BlockPlan plan = block_plan(sample_ids, counts, ratios, probability, grid, area_least,
                                    area_most, aspect, exact, roll);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), true);
  draw_team(plan, made.batch, turns, threads);
  return {made.shuffle, made.restore, made.mask, made.lengths};
}

PlanTensors patch_inverse_block_team(const Tensor& sample_ids, const std::optional<Tensor>& step,
                                     int64_t step_value, int64_t seed,
                                     const std::vector<int64_t>& grid, int64_t keep,
                                     const std::vector<double>& aspect, bool roll, int64_t turns,
                                     int64_t threads) {
  const InversePlan plan = inverse_plan(grid, keep, aspect, roll);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), false);
  draw_team(plan, made.batch, turns, threads);
  return {made.shuffle, made.restore, made.mask};
}

TargetTensors patch_multiblock_team(const Tensor& sample_ids, const std::optional<Tensor>& step,
                                    int64_t step_value, int64_t seed,
                                    const std::vector<int64_t>& grid,
                                    const std::vector<int64_t>& context,
                                    const std::vector<int64_t>& target, int64_t targets,
                                    int64_t min_keep, bool allow_overlap, bool inclusive,
                                    int64_t turns, int64_t threads) {
  MultiblockPlan plan =
      multiblock_plan(grid, context, target, targets, min_keep, allow_overlap, inclusive);
  const NewPlan made(sample_ids, step, step_value, seed, length_of(plan), true);
  const int64_t area = int64_t(plan.target[0]) * plan.target[1];
  Tensor ids = NewPlan::empty(sample_ids, {made.batch.batch, targets, area}, ScalarType::Long);
  plan.target_ids = static_cast<int64_t*>(ids.mutable_data_ptr());
  draw_team(plan, made.batch, turns, threads);
  return {ids, made.shuffle, made.restore, made.mask, made.lengths};
}

#define FASTSSL_PLAN "Tensor shuffle, Tensor restore, Tensor? lengths, int keep, "
#define FASTSSL_TURNS "int turns, int threads"
#define FASTSSL_STEP "Tensor? step, int step_value, int seed, "

}  // namespace
}  // namespace patch

STABLE_TORCH_LIBRARY_FRAGMENT(fastssl, m) {
  m.def("patch_gather_team(Tensor images, " FASTSSL_PLAN
        "int[] patch, float[] mean, float[] std, int order, int dtype, " FASTSSL_TURNS
        ") -> Tensor");
  m.def("patch_gather_tokens_team(Tensor x, Tensor? pos, " FASTSSL_PLAN "int prefix, " FASTSSL_TURNS
        ") -> Tensor");
  m.def("patch_restore_tokens_team(Tensor visible, Tensor? token, Tensor? pos, " FASTSSL_PLAN
        "int prefix, int dtype, " FASTSSL_TURNS ") -> Tensor");
  m.def("patch_sum_removed_team(Tensor x, " FASTSSL_PLAN "int prefix, " FASTSSL_TURNS
        ") -> Tensor");
  m.def("patch_loss_team(Tensor images, Tensor pred, " FASTSSL_PLAN
        "int[] patch, float[] mean, float[] std, bool norm_pix, int kind, int statistics, "
        "int order, float upstream, " FASTSSL_TURNS ", int teams) -> (Tensor, Tensor)");
  m.def("patch_team_share(int begin, int end, int teams) -> ()");
  m.def("patch_scale_team_(Tensor(a!) x, Tensor by) -> ()");
  m.def("patch_tiles_team(Tensor images, Tensor corners, int height, int width, " FASTSSL_TURNS
        ") -> Tensor");
  m.def("patch_mask_tokens_team(Tensor ids, Tensor? special, Tensor sample_ids, " FASTSSL_STEP
        "int mask_id, int vocab_size, float[] shares) -> (Tensor, Tensor)");
  m.def("patch_random_team(Tensor sample_ids, Tensor? lengths, " FASTSSL_STEP
        "int[] grid, int[] cell, int keep, bool ordered, " FASTSSL_TURNS
        ") -> (Tensor, Tensor, Tensor)");
  m.def(
      "patch_blocks_team(Tensor sample_ids, Tensor? counts, float[] ratios, float "
      "probability, " FASTSSL_STEP
      "int[] grid, int least, int most, float[] aspect, bool exact, bool roll, " FASTSSL_TURNS
      ") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("patch_inverse_block_team(Tensor sample_ids, " FASTSSL_STEP
        "int[] grid, int keep, float[] aspect, bool roll, " FASTSSL_TURNS
        ") -> (Tensor, Tensor, Tensor)");
  m.def("patch_multiblock_team(Tensor sample_ids, " FASTSSL_STEP
        "int[] grid, int[] context, int[] target, int targets, int min_keep, bool allow_overlap, "
        "bool inclusive, " FASTSSL_TURNS ") -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("patch_gather_team", TORCH_BOX(&patch::patch_gather_team));
  m.impl("patch_gather_tokens_team", TORCH_BOX(&patch::patch_gather_tokens_team));
  m.impl("patch_restore_tokens_team", TORCH_BOX(&patch::patch_restore_tokens_team));
  m.impl("patch_sum_removed_team", TORCH_BOX(&patch::patch_sum_removed_team));
  m.impl("patch_loss_team", TORCH_BOX(&patch::patch_loss_team));
  m.impl("patch_scale_team_", TORCH_BOX(&patch::patch_scale_team_));
  m.impl("patch_tiles_team", TORCH_BOX(&patch::patch_tiles_team));
  m.impl("patch_mask_tokens_team", TORCH_BOX(&patch::patch_mask_tokens_team));
  m.impl("patch_random_team", TORCH_BOX(&patch::patch_random_team));
  m.impl("patch_blocks_team", TORCH_BOX(&patch::patch_blocks_team));
  m.impl("patch_inverse_block_team", TORCH_BOX(&patch::patch_inverse_block_team));
  m.impl("patch_multiblock_team", TORCH_BOX(&patch::patch_multiblock_team));
}

STABLE_TORCH_LIBRARY_IMPL(fastssl, CompositeExplicitAutograd, m) {
  m.impl("patch_team_share", TORCH_BOX(&patch::patch_team_share));
}

}  // namespace fastssl
