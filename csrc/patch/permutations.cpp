#include "patch/permutations.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "common/philox.h"

namespace fastssl {
namespace patch {
namespace {

constexpr uint32_t kBlock = 3u << 24;  // of Purpose::kPretext; see ops/patch/reference_pretext.py
constexpr int64_t kChunk = 4096;       // candidates whose counts stay in the first cache

// All permutations in lexicographic order, one plane of bytes for each place.
class Table {
 public:
  Table(int64_t tiles, int64_t size)
      : tiles_(tiles), size_(size), planes_(static_cast<size_t>(tiles * size)) {
    uint8_t order[kMostTiles];
    std::iota(order, order + tiles, uint8_t{0});
    for (int64_t i = 0; i < size; ++i, std::next_permutation(order, order + tiles)) {
      for (int64_t place = 0; place < tiles; ++place) planes_[place * size + i] = order[place];
    }
  }

  // In how many places candidates begin + i, i < count, agree with permutation `chosen`.
  void agreement(int64_t chosen, int64_t begin, int64_t count, uint8_t* agree) const {
    std::fill(agree, agree + count, uint8_t{0});
    for (int64_t place = 0; place < tiles_; ++place) {
      const uint8_t* plane = planes_.data() + place * size_;
      const uint8_t wanted = plane[chosen];
      const uint8_t* candidate = plane + begin;
      for (int64_t i = 0; i < count; ++i) agree[i] += candidate[i] == wanted;
    }
  }

  void write(int64_t chosen, uint8_t* out) const {
    for (int64_t place = 0; place < tiles_; ++place) out[place] = planes_[place * size_ + chosen];
  }

 private:
  int64_t tiles_, size_;
  std::vector<uint8_t> planes_;
};

// Far from those taken is to agree with them little: in sum, or with the one agreed with most.
template <class Score, bool kSum>
std::vector<uint8_t> choose(int64_t count, int64_t tiles, int64_t size, int64_t first) {
  // More than any candidate reaches, so that what is taken is not taken again.
  constexpr Score kTaken = Score(Score{1} << (8 * sizeof(Score) - 1));
  const Table table(tiles, size);
  std::vector<Score> scores(static_cast<size_t>(size), Score{0});
  std::vector<uint8_t> out(static_cast<size_t>(count * tiles));
  std::vector<uint8_t> agree(static_cast<size_t>(std::min(size, kChunk)));
  int64_t chosen = first;
  for (int64_t n = 0;; ++n) {
    table.write(chosen, out.data() + n * tiles);
    if (n + 1 == count) return out;
    scores[chosen] |= kTaken;
    Score best = ~Score{0};
    int64_t best_begin = 0;
    for (int64_t begin = 0; begin < size; begin += kChunk) {
      const int64_t length = std::min(kChunk, size - begin);
      table.agreement(chosen, begin, length, agree.data());
      Score* score = scores.data() + begin;
      Score least = ~Score{0};
      for (int64_t i = 0; i < length; ++i) {
        score[i] = kSum ? Score(score[i] + agree[i]) : std::max(score[i], Score(agree[i]));
        least = std::min(least, score[i]);
      }
      if (least < best) {
        best = least;
        best_begin = begin;
      }
    }
    chosen = std::find(scores.begin() + best_begin, scores.end(), best) - scores.begin();
  }
}

}  // namespace

std::vector<uint8_t> hamming_permutations(int64_t count, int64_t tiles, Criterion criterion,
                                          uint64_t seed) {
  if (tiles < 1 || tiles > kMostTiles) throw std::invalid_argument("tiles: must be in [1, 10]");
  int64_t size = 1;
  for (int64_t n = 2; n <= tiles; ++n) size *= n;
  if (count < 1 || count > size) throw std::invalid_argument("count: must be in [1, tiles!]");
  const Draws draws(seed, 0, 0, Purpose::kPretext, 0);
  const int64_t first = below(draws.block(kBlock).word[0], uint64_t(size));
  if (criterion == Criterion::kMaxMin) return choose<uint8_t, false>(count, tiles, size, first);
  if (count * tiles < 1 << 15) return choose<uint16_t, true>(count, tiles, size, first);
  return choose<uint32_t, true>(count, tiles, size, first);
}

}  // namespace patch
}  // namespace fastssl
