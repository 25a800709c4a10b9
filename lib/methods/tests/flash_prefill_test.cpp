#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "kernels/common/bf16.h"
#include "lib/core/error.h"
#include "lib/methods/tests/selection_test_util.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;
using Json = nlohmann::ordered_json;
using testing::block_range;
using testing::plan_of;
using testing::random_input;
using testing::set_k;
using testing::set_q;
using testing::visited_blocks;
using testing::zero_input;

constexpr int kB = 128;

struct Rule {
  int version = 2;
  double alpha = 0.1;
  int sink = 2;
  int window = 4;
  int tail = 8;

  Json json(bool correction = false) const {
    return {{"version", version == 2 ? "v2" : "v1"}, {"alpha", alpha},
            {"sink_blocks", sink},                   {"window_blocks", window},
            {"last_tiles", tail},                    {"mean_correction", correction}};
  }
};

// Selection of one tile, transcribed scalar by scalar from the description of the released code;
// shares nothing with the method. Energies run over chunks of blocks with a running maximum.
class ScalarSelection {
 public:
  ScalarSelection(const AttentionInput& input, const Rule& rule) : input_(input), rule_(rule) {
    const Problem& p = input.problem;
    num_blocks_ = static_cast<int>((p.seqlen + kB - 1) / kB);
    pack_ = rule.version == 2 ? p.group_size() : 1;
    num_tiles_ = static_cast<int>((p.seqlen * pack_ + kB - 1) / kB);
    for (int head = 0; head < p.num_kv_heads; ++head) {
      for (int j = 0; j < num_blocks_; ++j) {
        const std::int64_t end = std::min<std::int64_t>((j + 1) * kB, p.seqlen);
        for (int i = 0; i < p.head_dim; ++i) {
          double sum = 0.0;
          for (std::int64_t x = j * kB; x < end; ++x) sum += input.k_head(head)[x * p.head_dim + i];
          mean_keys_.push_back(round_bf16(static_cast<float>(sum / (end - j * kB))));
        }
      }
    }
  }

  int num_tiles() const { return num_tiles_; }
  std::int64_t first_position(int tile) const { return kB * static_cast<std::int64_t>(tile) / pack_; }
  std::int64_t last_position(int tile) const {
    const std::int64_t rows = input_.problem.seqlen * pack_;
    return (std::min<std::int64_t>(kB * (tile + 1), rows) - 1) / pack_;
  }

  // Blocks that must be visited; `open` receives those too close to the cut to call.
  std::set<int> select(int plan_head, int tile, std::set<int>& open) const {
    return rule_.version == 2 ? select_v2(plan_head, tile, open) : select_v1(plan_head, tile, open);
  }

 private:
  double logit(int head, std::int64_t t, int j) const {
    const Problem& p = input_.problem;
    const float* q = input_.q_head(head) + t * p.head_dim;
    const int kv_head = head / p.group_size();
    const float* k = mean_keys_.data() + static_cast<std::int64_t>(kv_head * num_blocks_ + j) * p.head_dim;
    double dot = 0.0;
    for (int i = 0; i < p.head_dim; ++i) dot += static_cast<double>(q[i]) * k[i];
    return dot / std::sqrt(static_cast<double>(p.head_dim)) * std::log2(std::exp(1.0));
  }

  void keep_loud(const std::vector<double>& energy, std::set<int>& kept, std::set<int>& open) const {
    if (energy.empty()) return;
    const double loudest = *std::max_element(energy.begin(), energy.end());
    const double cut = rule_.alpha * loudest;
    for (std::size_t j = 0; j < energy.size(); ++j) {
      if (energy[j] >= cut) kept.insert(static_cast<int>(j));
      if (rule_.alpha > 0.0 && energy[j] < loudest && std::abs(energy[j] - cut) < 1e-4 * cut) {
        open.insert(static_cast<int>(j));
      }
    }
  }

  std::set<int> select_v2(int kv_head, int tile, std::set<int>& open) const {
    const std::int64_t t0 = first_position(tile);
    const std::int64_t t1 = last_position(tile);
    const int candidates = static_cast<int>((t1 + 1) / kB);
    std::vector<double> energy;
    double running_max = -1e300;
    for (int chunk = 0; chunk < candidates; chunk += 16) {
      const int end = std::min(chunk + 16, candidates);
      double chunk_max = -1e300;
      const auto each = [&](auto&& body) {
        for (std::int64_t row = kB * static_cast<std::int64_t>(tile);
             row < kB * (tile + 1) && row < input_.problem.seqlen * pack_; ++row) {
          const std::int64_t t = row / pack_;
          const int head = kv_head * pack_ + static_cast<int>(row % pack_);
          for (int j = chunk; j < end && static_cast<std::int64_t>(j) * kB <= t; ++j) {
            body(logit(head, t, j), j);
          }
        }
      };
      each([&](double x, int) { chunk_max = std::max(chunk_max, x); });
      const double new_max = std::max(running_max, chunk_max);
      for (double& s : energy) s *= std::exp2(running_max - new_max);
      energy.resize(static_cast<std::size_t>(end), 0.0);
      each([&](double x, int j) { energy[static_cast<std::size_t>(j)] += std::exp2(x - new_max); });
      running_max = new_max;
    }
    std::set<int> kept;
    keep_loud(energy, kept, open);
    const int first = static_cast<int>(t0 / kB);
    const int last = static_cast<int>(t1 / kB);
    for (int j = 0; j <= last; ++j) {
      if (j < rule_.sink || j >= first - rule_.window + 1 || tile >= num_tiles_ - rule_.tail) {
        kept.insert(j);
      }
    }
    return kept;
  }

  std::set<int> select_v1(int head, int tile, std::set<int>& open) const {
    std::vector<double> energy(static_cast<std::size_t>(tile + 1), 0.0);
    double largest = -1e300;
    const auto each = [&](auto&& body) {
      for (std::int64_t t = kB * static_cast<std::int64_t>(tile); t < kB * (tile + 1); ++t) {
        for (int j = 0; j <= tile && static_cast<std::int64_t>(j) * kB + kB - 1 <= t; ++j) {
          body(t < input_.problem.seqlen ? logit(head, t, j) : 0.0, j);
        }
      }
    };
    each([&](double x, int) { largest = std::max(largest, x); });
    each([&](double x, int j) { energy[static_cast<std::size_t>(j)] += std::exp2(x - largest); });
    std::set<int> kept;
    keep_loud(energy, kept, open);
    for (int j = 0; j <= tile; ++j) {
      if (j < rule_.sink || tile - j < rule_.window || tile >= num_tiles_ - rule_.tail) {
        kept.insert(j);
      }
    }
    return kept;
  }

  const AttentionInput& input_;
  Rule rule_;
  int num_blocks_ = 0;
  int pack_ = 1;
  int num_tiles_ = 0;
  std::vector<float> mean_keys_;  // [num_kv_heads, num_blocks, head_dim]
};

// A random shape and rule, from a counter.
struct RandomCase {
  testing::Shape shape;
  Rule rule;
};
RandomCase random_case(std::uint64_t seed, int version) {
  const CounterRandom random(seed, 99);
  const int g = 1 + static_cast<int>(random.below(0, 8));
  const int kv_heads = 1 + static_cast<int>(random.below(1, 2));
  const std::vector<double> alphas = {0.0, 0.0125, 0.05, 0.1, 0.4, 1.0};
  return {.shape = {1 + random.below(2, 1800), g * kv_heads, kv_heads, 16},
          .rule = {.version = version,
                   .alpha = alphas[static_cast<std::size_t>(random.below(3, 6))],
                   .sink = static_cast<int>(random.below(4, 3)),
                   .window = 1 + static_cast<int>(random.below(5, 3)),
                   .tail = static_cast<int>(random.below(6, version == 2 ? 7 : 3))}};
}

void expect_selection_equals_transcription(int version) {
  std::int64_t tiles = 0;
  std::int64_t open_blocks = 0;
  std::int64_t kept_blocks = 0;
  std::int64_t causal_blocks = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const RandomCase random = random_case(seed, version);
    const AttentionInput input = random_input(random.shape, seed, 1.5);
    const SparsePlan plan = plan_of("flash_prefill", input, random.rule.json());
    const ScalarSelection scalar(input, random.rule);
    ASSERT_EQ(plan.header.num_q_tiles, scalar.num_tiles());
    for (int head = 0; head < plan.header.num_plan_heads; ++head) {
      for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
        std::set<int> open;
        const std::set<int> expected = scalar.select(head, tile, open);
        const std::vector<int> found = visited_blocks(input.problem, plan, head, tile);
        std::set<int> differ;
        std::set_symmetric_difference(expected.begin(), expected.end(), found.begin(), found.end(),
                                      std::inserter(differ, differ.end()));
        for (const int j : open) differ.erase(j);
        EXPECT_TRUE(differ.empty()) << "seed " << seed << " head " << head << " tile " << tile
                                    << ": block " << *differ.begin() << " differs";
        open_blocks += static_cast<std::int64_t>(open.size());
        kept_blocks += static_cast<std::int64_t>(found.size());
        causal_blocks += scalar.last_position(tile) / kB + 1;
        ++tiles;
      }
    }
  }
  EXPECT_GT(tiles, 1500);
  EXPECT_LT(open_blocks, tiles / 100);  // the exemption must stay an exemption
  EXPECT_LT(kept_blocks, causal_blocks * 8 / 10);  // and the rule must have something to decide
}

// Traps 22.1, 22.2, 22.3, 22.4, 22.6, 22.12: packing is position-major over 128 rows, one maximum a
// tile, V2's visibility, rounded means, base e. Group sizes that do not divide 128 cut tiles
// mid-position.
TEST(FlashPrefillV2, selection_equals_scalar_transcription) {
  expect_selection_equals_transcription(2);
}

TEST(FlashPrefillV1, selection_equals_scalar_transcription) {
  expect_selection_equals_transcription(1);
}

// Section 17: every visible key of every row exactly once, exactly or through its mean; a mean
// holds no key of the future.
TEST(FlashPrefillV2, every_visible_key_is_covered_exactly_once) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const RandomCase random = random_case(seed + 500, 2);
    const AttentionInput input = random_input(random.shape, seed, 1.5);
    const SparsePlan plan = plan_of("flash_prefill", input, random.rule.json(true));
    ASSERT_EQ(plan.header.fold.kind, Compensation::kBlocks);
    ASSERT_EQ(plan.header.fold.fold_block, kB);
    for (int head = 0; head < plan.header.num_plan_heads; ++head) {
      for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
        const TileRows rows = tile_rows(input.problem, plan.header, tile);
        const auto fold_end = static_cast<std::int64_t>(
            plan.passes[0].fold_end[static_cast<std::size_t>(plan.tile_index(head, tile))]);
        // Trap 22.8: the bound comes from the first position.
        ASSERT_EQ(fold_end, rows.first_position / kB * kB);
        const std::vector<int> visits =
            testing::visited_slots(input.problem, plan, head, tile);
        for (std::int64_t x = 0; x <= rows.last_position; ++x) {
          const int folded = x < fold_end && visits[static_cast<std::size_t>(x)] == 0 ? 1 : 0;
          ASSERT_EQ(visits[static_cast<std::size_t>(x)] + folded, 1)
              << "seed " << seed << " head " << head << " tile " << tile << " key " << x;
        }
        const bool dense_tail = tile >= plan.header.num_q_tiles - random.rule.tail;
        if (dense_tail) {
          ASSERT_EQ(visits[0], 1) << "a dense tile folds nothing";
        }
      }
    }
  }
}

// Sections 17.3 to 17.5 in fp64, from the selected blocks: one extra column per folded block with
// logit q.kbar * scale + ln 128 and value vbar, means rounded to bf16 (trap 22.6).
std::vector<float> output_by_definition(const AttentionInput& input, const SparsePlan& plan,
                                        bool rounded_means) {
  const Problem& p = input.problem;
  const int d = p.head_dim;
  const auto num_complete = static_cast<int>(p.seqlen / kB);
  const auto mean_of = [&](const float* x, int j, int i) {
    double sum = 0.0;
    for (std::int64_t t = j * kB; t < (j + 1) * kB; ++t) sum += x[t * d + i];
    return rounded_means ? static_cast<double>(round_bf16(static_cast<float>(sum / kB))) : sum / kB;
  };
  std::vector<float> out(input.q.size());
  for (int head = 0; head < p.num_q_heads; ++head) {
    const int kv_head = head / p.group_size();
    const float* k = input.k_head(kv_head);
    const float* v = input.v_head(kv_head);
    std::vector<double> k_mean, v_mean;
    for (int j = 0; j < num_complete; ++j) {
      for (int i = 0; i < d; ++i) {
        k_mean.push_back(mean_of(k, j, i));
        v_mean.push_back(mean_of(v, j, i));
      }
    }
    for (std::int64_t t = 0; t < p.seqlen; ++t) {
      const int pack = plan.header.pack;
      const int plan_head = head / pack;
      const auto tile = static_cast<int>((t * pack + head % pack) / kB);
      const std::int64_t t0 = kB * static_cast<std::int64_t>(tile) / pack;
      const std::vector<int> blocks = visited_blocks(p, plan, plan_head, tile);
      const std::set<int> selected(blocks.begin(), blocks.end());
      const float* q = input.q_head(head) + t * d;
      double sum = 0.0;
      std::vector<double> acc(static_cast<std::size_t>(d), 0.0);
      const auto add = [&](const auto* key, const auto* value, double count) {
        double dot = 0.0;
        for (int i = 0; i < d; ++i) dot += static_cast<double>(q[i]) * key[i];
        const double weight = count * std::exp(dot / std::sqrt(static_cast<double>(d)));
        sum += weight;
        for (int i = 0; i < d; ++i) acc[static_cast<std::size_t>(i)] += weight * value[i];
      };
      for (int j = 0; static_cast<std::int64_t>(j) * kB <= t; ++j) {
        if (selected.count(j) != 0) {
          for (std::int64_t x = j * kB; x < (j + 1) * kB && x <= t; ++x) add(k + x * d, v + x * d, 1.0);
        } else if ((j + 1) * kB <= t0) {
          add(k_mean.data() + j * d, v_mean.data() + j * d, kB);
        }
      }
      for (int i = 0; i < d; ++i) {
        out[static_cast<std::size_t>(p.row_offset(head, t) + i)] =
            static_cast<float>(acc[static_cast<std::size_t>(i)] / sum);
      }
    }
  }
  return out;
}

TEST(FlashPrefillV2, mean_correction_equals_its_definition_in_fp64) {
  for (const int heads_per_group : {1, 3, 4}) {
    const AttentionInput input =
        random_input({900, 2 * heads_per_group, 2, 16}, 5 + heads_per_group, 1.0);
    for (const char* rounding : {"official", "fp32"}) {
      Json params = Rule{.alpha = 0.3, .sink = 1, .window = 1, .tail = 2}.json(true);
      params["rounding"] = rounding;
      const SparsePlan plan = plan_of("flash_prefill", input, params);
      const bool official = std::string(rounding) == "official";
      EXPECT_EQ(plan.header.fold.round_bf16, official);
      const testing::Executed result = testing::execute(input, plan);
      std::int64_t folded = 0;
      for (const TileStats& stats : result.stats) folded += stats.fold_columns;
      EXPECT_GT(folded, 10);  // else the comparison shows nothing
      EXPECT_LE(testing::relative_l2(result.out, output_by_definition(input, plan, official)), 1e-5)
          << heads_per_group << " heads a group, " << rounding;
    }
  }
}

// Trap 22.11: what the paper runs, not the class defaults of the release.
TEST(FlashPrefill, defaults_are_the_papers) {
  const ParamSet params(find_method("flash_prefill").info().params);
  EXPECT_EQ(params.get_real("alpha"), 0.1);
  EXPECT_EQ(params.get_int("sink_blocks"), 2);
  EXPECT_EQ(params.get_int("window_blocks"), 4);
  EXPECT_EQ(params.get_int("last_tiles"), 8);
  EXPECT_TRUE(params.get_bool("mean_correction"));
  EXPECT_EQ(params.get_choice("version"), "v2");
  const AttentionInput input = random_input({700, 8, 2, 16}, 1);
  const SparsePlan plan = plan_of("flash_prefill", input, Json::object());
  EXPECT_EQ(plan.header.pack, 4);
  EXPECT_EQ(plan.header.num_plan_heads, 2);
  EXPECT_EQ(plan.header.fold.kind, Compensation::kBlocks);
  EXPECT_TRUE(plan.header.fold.round_bf16);
}

// Trap 22.1: last_tiles counts packed tiles. Uneven keys, so that nothing but the tail is dense.
TEST(FlashPrefill, last_tiles_count_tiles_of_32_positions_at_four_heads_a_group) {
  AttentionInput input = zero_input({1024, 4, 1, 16});
  set_q(input, 0, 1024, 0, 8.0f);
  set_k(input, 0, 128, 0, 8.0f);  // everybody loves block 0
  Rule rule = {.alpha = 0.5, .sink = 0, .window = 1, .tail = 8};
  const SparsePlan v2 = plan_of("flash_prefill", input, rule.json());
  ASSERT_EQ(v2.header.num_q_tiles, 32);
  // 8 tiles = 256 positions: blocks 6 and 7.
  EXPECT_THAT(visited_blocks(input.problem, v2, 0, 23), ElementsAre(0, 5));
  EXPECT_EQ(visited_blocks(input.problem, v2, 0, 24), block_range(0, 7));
  EXPECT_EQ(visited_blocks(input.problem, v2, 0, 31), block_range(0, 8));
  rule.version = 1;
  rule.tail = 2;
  const SparsePlan v1 = plan_of("flash_prefill", input, rule.json());
  ASSERT_EQ(v1.header.num_q_tiles, 8);
  EXPECT_THAT(visited_blocks(input.problem, v1, 3, 5), ElementsAre(0, 5));
  EXPECT_EQ(visited_blocks(input.problem, v1, 3, 6), block_range(0, 7));
}

// Trap 22.2 and quirk (i): positions 0..63 of both heads make up the first tile, so one loud head
// decides for both, and only for its own positions.
TEST(FlashPrefillV2, loud_head_decides_for_its_group) {
  AttentionInput input = zero_input({512, 2, 1, 16});
  for (std::int64_t x = 128; x < 256; ++x) testing::k_row(input, 0, x)[0] = 4.0f;
  for (std::int64_t t = 384; t < 448; ++t) testing::q_row(input, 1, t)[0] = 16.0f;
  const SparsePlan plan =
      plan_of("flash_prefill", input, Rule{.alpha = 0.1, .sink = 0, .window = 1, .tail = 0}.json());
  ASSERT_EQ(plan.header.num_q_tiles, 8);
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 6), ElementsAre(1, 3));  // positions 384..447
  EXPECT_EQ(visited_blocks(input.problem, plan, 0, 7), block_range(0, 4));    // 448..511, uniform
}

// Quirk (ii): at four heads a group the diagonal block is a candidate in every fourth tile, and a
// loud one raises that tile's cut.
TEST(FlashPrefillV2, loud_diagonal_thins_every_fourth_tile) {
  AttentionInput input = zero_input({640, 4, 1, 16});
  set_q(input, 0, 640, 0, 8.0f);
  set_k(input, 384, 512, 0, 8.0f);
  const SparsePlan plan =
      plan_of("flash_prefill", input, Rule{.alpha = 0.1, .sink = 0, .window = 1, .tail = 0}.json());
  for (const int tile : {12, 13, 14}) {
    EXPECT_EQ(visited_blocks(input.problem, plan, 0, tile), block_range(0, 4)) << tile;
  }
  EXPECT_THAT(visited_blocks(input.problem, plan, 0, 15), ElementsAre(3));
}

// Uniform attention: every candidate has the same energy, so everything is kept.
TEST(FlashPrefill, uniform_attention_keeps_everything) {
  const AttentionInput input = zero_input({1000, 4, 2, 16});
  for (const int version : {1, 2}) {
    const SparsePlan plan = plan_of(
        "flash_prefill", input,
        Rule{.version = version, .alpha = 0.9, .sink = 0, .window = 1, .tail = 0}.json());
    for (int tile = 0; tile < plan.header.num_q_tiles; ++tile) {
      // V1's diagonal block has one vote instead of 128, but the window holds it.
      const TileRows rows = tile_rows(input.problem, plan.header, tile);
      EXPECT_EQ(visited_blocks(input.problem, plan, 0, tile),
                block_range(0, static_cast<int>(rows.last_position / kB) + 1))
          << "version " << version << " tile " << tile;
    }
  }
}

// One vertical stripe: a few loud keys in block 2 that all queries read.
TEST(FlashPrefill, vertical_stripe_is_found) {
  AttentionInput input = zero_input({1024, 4, 2, 16});
  set_q(input, 0, 1024, 3, 32.0f);
  set_k(input, 300, 304, 3, 32.0f);  // mean key 1, logit 8
  for (const int version : {1, 2}) {
    const SparsePlan plan = plan_of(
        "flash_prefill", input, Rule{.version = version, .sink = 0, .window = 1, .tail = 0}.json());
    const int tiles_per_block = plan.header.num_q_tiles / 8;
    for (int tile = 3 * tiles_per_block; tile < plan.header.num_q_tiles; ++tile) {
      EXPECT_THAT(visited_blocks(input.problem, plan, 1, tile),
                  ElementsAre(2, tile / tiles_per_block))
          << "version " << version << " tile " << tile;
    }
  }
}

// One slash: query block i reads key block i - 3.
TEST(FlashPrefill, slash_is_found) {
  AttentionInput input = zero_input({1024, 4, 4, 16});
  for (int b = 0; b < 8; ++b) {
    set_k(input, b * kB, (b + 1) * kB, b, 8.0f);
    if (b >= 3) set_q(input, b * kB, (b + 1) * kB, b - 3, 8.0f);
  }
  for (const int version : {1, 2}) {
    const SparsePlan plan = plan_of(
        "flash_prefill", input, Rule{.version = version, .sink = 0, .window = 1, .tail = 0}.json());
    for (int tile = 3; tile < 8; ++tile) {
      EXPECT_THAT(visited_blocks(input.problem, plan, 2, tile), ElementsAre(tile - 3, tile))
          << "version " << version;
    }
  }
}

// A needle: one query reads one key; its tile keeps that block, all others see uniform scores.
TEST(FlashPrefill, needle_is_found) {
  AttentionInput input = zero_input({1024, 2, 1, 16});
  testing::k_row(input, 0, 200)[5] = 64.0f;
  testing::q_row(input, 1, 700)[5] = 128.0f;  // logit 128 * 0.5 / 4 = 16 against the mean key
  for (const int version : {1, 2}) {
    const SparsePlan plan = plan_of(
        "flash_prefill", input, Rule{.version = version, .sink = 0, .window = 1, .tail = 0}.json());
    const int head = version == 1 ? 1 : 0;
    const int tile = version == 1 ? 700 / 128 : 700 / 64;
    EXPECT_THAT(visited_blocks(input.problem, plan, head, tile), ElementsAre(1, 5));
    EXPECT_EQ(visited_blocks(input.problem, plan, head, tile + 1).size(),
              static_cast<std::size_t>(tile_rows(input.problem, plan.header, tile + 1).last_position / kB + 1));
  }
}

TEST(FlashPrefill, compensation_takes_the_place_of_the_mean_correction) {
  const AttentionInput input = random_input({700, 4, 2, 16}, 3);
  Json params = Rule{}.json(true);
  params["compensation"] = "blocks";
  EXPECT_TRUE(plan_of("flash_prefill", input, params).header.fold.round_bf16);
  params["compensation"] = "centroid";
  EXPECT_THROW(plan_of("flash_prefill", input, params), ConfigError);
  params["mean_correction"] = false;
  EXPECT_EQ(plan_of("flash_prefill", input, params).header.fold.kind, Compensation::kCentroid);
  params["compensation"] = "none";
  EXPECT_EQ(plan_of("flash_prefill", input, params).header.fold.kind, Compensation::kNone);
}

TEST(FlashPrefill, agrees_with_dense_at_full_budget_on_ragged_shapes) {
  testing::expect_method_agrees_with_dense("flash_prefill");
}

}  // namespace
}  // namespace s2o
