// Index arithmetic of the kernels against independent statements of the same layouts.
#include "kernels/device/layout.cuh"

#include <gtest/gtest.h>

#include <cstddef>
#include <set>
#include <vector>

#include "kernels/attention/steps.cuh"
#include "kernels/attention/traits_sm80.cuh"
#include "kernels/attention/traits_sm90.cuh"

namespace s2o::device {
namespace {

TEST(Layout, swizzle_is_a_bijection_of_the_tile) {
  for (const int rows : {64, 128}) {
    for (const int head_dim : {64, 128}) {
      std::set<int> places;
      for (int row = 0; row < rows; ++row) {
        for (int chunk = 0; chunk < head_dim / 8; ++chunk) {
          const int offset = swizzled_chunk_offset(rows, row, chunk);
          EXPECT_EQ(offset % 16, 0);
          EXPECT_GE(offset, 0);
          EXPECT_LT(offset, tile_bytes(rows, head_dim));
          places.insert(offset);
        }
      }
      EXPECT_EQ(places.size(), static_cast<std::size_t>(rows * head_dim / 8));
    }
  }
}

// 32 banks of 4 bytes: eight 16-byte accesses are free of conflicts if they differ in bits 4-6.
std::set<int> bank_groups(const std::vector<int>& offsets) {
  std::set<int> groups;
  for (const int offset : offsets) groups.insert(offset / 16 % 8);
  return groups;
}

TEST(Layout, ldmatrix_of_eight_rows_has_no_bank_conflict) {
  for (int chunk = 0; chunk < 16; ++chunk) {
    for (int first = 0; first < 128; first += 8) {
      std::vector<int> offsets;
      for (int row = first; row < first + 8; ++row) {
        offsets.push_back(swizzled_chunk_offset(128, row, chunk));
      }
      EXPECT_EQ(bank_groups(offsets).size(), 8u) << "chunk " << chunk << " row " << first;
    }
  }
}

TEST(Layout, stores_of_eight_neighbouring_chunks_have_no_bank_conflict) {
  for (int row = 0; row < 64; ++row) {
    for (int first = 0; first < 16; first += 8) {
      std::vector<int> offsets;
      for (int chunk = first; chunk < first + 8; ++chunk) {
        offsets.push_back(swizzled_chunk_offset(64, row, chunk));
      }
      EXPECT_EQ(bank_groups(offsets).size(), 8u);
    }
  }
}

TEST(Layout, address_in_two_parts_equals_swizzled_offset) {
  constexpr std::uint32_t kTile = 3 * 1024;
  for (const int rows : {64, 128}) {
    for (int row = 0; row < 16; ++row) {
      for (int bit = 0; bit < 2; ++bit) {
        const std::uint32_t lane = swizzled_lane_address(kTile, row, bit);
        for (int added = 0; added + 16 <= rows; added += 16) {
          for (int chunk = 0; chunk < 16; chunk += 2) {
            EXPECT_EQ(swizzled_step_address(lane, rows, added, chunk),
                      kTile + static_cast<std::uint32_t>(
                                  swizzled_chunk_offset(rows, row + added, chunk + bit)));
          }
        }
      }
    }
  }
}

// PTX ISA, mma.m16n8k16, accumulator: row = lane / 4 for c0, c1 and + 8 for c2, c3;
// column = 2 (lane % 4) + (i & 1).
TEST(Layout, accumulator_covers_16x8_once) {
  std::set<std::pair<int, int>> seen;
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned reg = 0; reg < 4; ++reg) {
      const MatrixPosition p = accumulator_position(lane, reg);
      EXPECT_EQ(p.row, static_cast<int>(lane >> 2) + (reg >= 2 ? 8 : 0));
      EXPECT_EQ(p.column, static_cast<int>((lane & 3) * 2 + (reg & 1)));
      seen.insert({p.row, p.column});
    }
  }
  EXPECT_EQ(seen.size(), 128u);
}

TEST(Layout, ldmatrix_sources_cover_16_rows_of_two_chunks) {
  for (const auto source : {ldmatrix_a_source, ldmatrix_b_source, ldmatrix_b_transposed_source}) {
    std::set<std::pair<int, int>> seen;
    for (unsigned lane = 0; lane < 32; ++lane) seen.insert({source(lane).row, source(lane).column});
    EXPECT_EQ(seen.size(), 32u);
    EXPECT_EQ(*seen.begin(), std::make_pair(0, 0));
    EXPECT_EQ(*seen.rbegin(), std::make_pair(15, 1));
  }
}

TEST(Layout, ldmatrix_order_of_matrices_gives_operand_registers) {
  // A: a0 rows 0-7 k 0-7, a1 rows 8-15 k 0-7, a2 rows 0-7 k 8-15, a3 rows 8-15 k 8-15.
  EXPECT_EQ(ldmatrix_a_source(8).row, 8);
  EXPECT_EQ(ldmatrix_a_source(8).column, 0);
  EXPECT_EQ(ldmatrix_a_source(16).row, 0);
  EXPECT_EQ(ldmatrix_a_source(16).column, 1);
  // B from rows of keys: b0 and b1 of keys 0-7 first, then of keys 8-15.
  EXPECT_EQ(ldmatrix_b_source(8).row, 0);
  EXPECT_EQ(ldmatrix_b_source(8).column, 1);
  EXPECT_EQ(ldmatrix_b_source(16).row, 8);
  // B from rows of values: the second matrix continues down the rows.
  EXPECT_EQ(ldmatrix_b_transposed_source(8).row, 8);
  EXPECT_EQ(ldmatrix_b_transposed_source(8).column, 0);
  EXPECT_EQ(ldmatrix_b_transposed_source(16).column, 1);
}

// PTX ISA, matrix descriptor: start address bits 0-13, leading offset 16-29, stride offset 32-45,
// each >> 4; base offset 49-51; swizzle mode 62-63, 1 = 128 bytes.
TEST(Layout, warpgroup_descriptor_fields) {
  const std::uint64_t d = warpgroup_descriptor(0x12340, 16384, 1024);
  EXPECT_EQ(d & 0x3fff, 0x1234u);
  EXPECT_EQ((d >> 16) & 0x3fff, 16384u >> 4);
  EXPECT_EQ((d >> 32) & 0x3fff, 1024u >> 4);
  EXPECT_EQ((d >> 49) & 7, 0u);
  EXPECT_EQ(d >> 62, 1u);
  EXPECT_EQ(d & ((1ull << 14) | (1ull << 15) | (1ull << 30) | (1ull << 31)), 0u);
}

// The swizzle of the copy engine and of warpgroup products exchanges address bits 4-6 by bits 7-9.
TEST(Layout, swizzle_equals_address_swizzle_of_aligned_tiles) {
  for (int row = 0; row < 128; ++row) {
    for (int chunk = 0; chunk < 8; ++chunk) {
      unsigned address = static_cast<unsigned>(row * 128 + chunk * 16);
      address ^= ((address >> 7) & 7u) << 4;
      EXPECT_EQ(swizzled_chunk_offset(128, row, chunk), static_cast<int>(address));
    }
  }
}

TEST(Layout, shared_memory_fits_the_devices) {
  // Bytes a block may have: 163 KiB on sm_80, 227 KiB on sm_90.
  EXPECT_LE(sizeof(SharedSm80<TraitsSm80<Bf16, 128, 128, 128, 1>>), 163u * 1024);
  EXPECT_LE(2 * sizeof(SharedSm80<TraitsSm80<Bf16, 128, 128, 64, 1>>), 163u * 1024);
  constexpr auto kStop = StepDecision::kEarlyStop;
  EXPECT_LE(sizeof(SharedSm90<TraitsSm90<Bf16, 128, 128, 128, kStop>>), 227u * 1024);
  EXPECT_LE(sizeof(SharedSm90<TraitsSm90<Bf16, 128, 128, 64, kStop>>), 227u * 1024);
  EXPECT_LE(sizeof(SharedSm90<TraitsSm90<Bf16, 64, 128, 128, kStop>>), 227u * 1024);
  using Shared = SharedSm90<TraitsSm90<Bf16, 128, 128, 128, kStop>>;
  EXPECT_EQ(offsetof(Shared, k) % 1024, 0u);
  EXPECT_EQ(offsetof(Shared, v) % 1024, 0u);
}

TEST(Masks, visible_keys_follow_plan_view) {
  for (const std::int32_t position : {0, 5, 40}) {
    for (std::int32_t token = -1; token < 60; ++token) {
      const bool exists = token >= 0;
      EXPECT_EQ(visible_keys(MaskClass::kNone, position, 3, 7).contains(token), exists);
      EXPECT_EQ(visible_keys(MaskClass::kCausal, position, 3, 7).contains(token),
                exists && token <= position);
      EXPECT_EQ(visible_keys(MaskClass::kWindow, position, 3, 7).contains(token),
                exists && token <= position && (token < 3 || position - token < 7));
    }
  }
}

TEST(Masks, lane_columns_hold_what_each_element_test_gives) {
  for (const MaskClass mask : {MaskClass::kNone, MaskClass::kCausal, MaskClass::kWindow}) {
    for (const std::int32_t position : {0, 5, 40, 77, 300}) {
      for (const std::int32_t window : {1, 20, 500}) {
        const VisibleKeys visible = visible_keys(mask, position, 9, window);
        for (const std::int32_t first : {0, 2, 38, 64, 250, 2147483500}) {
          for (const int count : {-3, 0, 1, 2, 57, 122, 128}) {
            std::uint32_t expected = 0;
            for (int bit = 0; bit < 32; ++bit) {
              const int column = bit / 2 * 8 + bit % 2;
              if (column < count && visible.contains(first + column)) expected |= 1u << bit;
            }
            EXPECT_EQ(visible_lane_columns(visible, first, count), expected)
                << position << ' ' << window << ' ' << first << ' ' << count;
          }
        }
      }
    }
  }
}

// ---- steps of a plan tile ----

struct Walk {
  std::vector<PlanItem> items;
  std::vector<std::int64_t> offsets;
  StepWalker walker;

  explicit Walk(std::vector<PlanItem> list) : items(std::move(list)) {
    offsets = {0, static_cast<std::int64_t>(items.size())};
    PassView pass;
    pass.items = items.data();
    pass.item_offsets = offsets.data();
    walker.start(pass, 0);
  }
  StepInfo next(int block_n = 128) { return walker.next<64>(block_n, FetchNow{}); }
};

TEST(Steps, walker_hands_out_every_key_once_in_order) {
  Walk walk({{.begin = 7, .count = 130}, {.begin = 500, .count = 1}, {.begin = 9, .count = 64}});
  std::vector<std::pair<std::int64_t, int>> steps;
  std::vector<bool> ends, starts;
  for (StepInfo step = walk.next(); step.count > 0; step = walk.next()) {
    steps.emplace_back(step.begin, step.count);
    ends.push_back(step.ends_plan_step());
    starts.push_back(step.starts_plan_step());
  }
  const std::vector<std::pair<std::int64_t, int>> expected = {
      {7, 64}, {71, 64}, {135, 2}, {500, 1}, {9, 64}};
  EXPECT_EQ(steps, expected);
  EXPECT_EQ(ends, (std::vector<bool>{false, true, true, true, true}));
  EXPECT_EQ(starts, (std::vector<bool>{true, false, true, true, true}));
  EXPECT_EQ(walk.next().count, 0);  // the end stays the end
}

TEST(Steps, walker_skips_stoppable_items_after_a_stop) {
  Walk walk({{.begin = 0, .count = 256, .stoppable = true},
             {.begin = 300, .count = 10, .stoppable = true},
             {.begin = 400, .count = 5},
             {.begin = 500, .count = 5, .stoppable = true}});
  EXPECT_EQ(walk.next().begin, 0);
  walk.walker.stopped = true;
  EXPECT_EQ(walk.next().begin, 400);
  EXPECT_EQ(walk.next().count, 0);
}

TEST(Steps, walker_restarts_after_an_item) {
  Walk walk(
      {{.begin = 0, .count = 100}, {.begin = 200, .count = 100}, {.begin = 400, .count = 100}});
  for (int i = 0; i < 5; ++i) walk.next();
  walk.walker.restart_after(0);
  EXPECT_EQ(walk.next().begin, 200);
}

TEST(Steps, walker_without_items_ends_at_once) {
  Walk walk({});
  EXPECT_EQ(walk.next().count, 0);
}

}  // namespace
}  // namespace s2o::device
