// A sweep over ranks: what a worker tells rank 0, and how rank 0 hands out cells and keeps rows.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lib/eval/evaluator.h"
#include "lib/eval/result_table.h"
#include "lib/ranks/rank_process.h"

namespace s2o {

// What a worker was asked to run and where it runs it.
struct RankJoin {
  std::string host;
  int pid = 0;
  std::string device;                   // "cpu", "cuda:1 NVIDIA H200"
  std::vector<std::string> device_ids;  // of its GPUs, the same for all processes of the host
  nlohmann::ordered_json context;       // of the run (lib/eval/run_context.h)
  std::size_t cells_per_input = 1;
  std::vector<ResultRow> expected;  // rows of all cells before they ran
};

// Fills in host and pid.
RankJoin describe_rank(std::string device);

// The worker's side. Rows go to rank 0, cells come from there.
class RankWorker {
 public:
  explicit RankWorker(WorkerLink& link) : link_(link) {}
  int local_rank() const { return link_.place().local_rank; }
  void join(const RankJoin& join);
  // Waits for the next cell; none when all are handed out.
  std::optional<std::size_t> next();
  // `out` may be empty. Rank 0 has the row once next() returns, and stores it.
  void add(std::size_t cell, const ResultRow& row, const std::vector<float>& out);
  void done(const EvalSummary& summary);

 private:
  WorkerLink& link_;
};

// Rank 0's side.
class RankLead {
 public:
  explicit RankLead(RankHub& hub) : hub_(hub) {}

  // Waits until all workers have joined and checks that they belong together. What kept a worker
  // from it is thrown, with its rank unless all ranks say the same. ConfigError for ranks of
  // different configs, versions or inputs, UnsupportedError where ranks share a GPU.
  void gather();
  // Of rank 0, with "ranks" added: number, host and device of each.
  const nlohmann::ordered_json& context() const { return context_; }
  const std::vector<ResultRow>& expected() const { return joins_.front().expected; }

  struct Rows {
    std::function<bool(std::size_t cell)> has_row;
    std::function<void(std::size_t cell, const ResultRow& row, const std::vector<float>& out)> add;
  };
  // Hands out all cells without a row. A rank that dies loses the cell in its hand and no more; it
  // counts as failed. InterruptedError after a signal.
  EvalSummary run(const Rows& rows);

 private:
  void check_same() const;
  void check_devices() const;
  std::string name_of(int rank) const;

  RankHub& hub_;
  std::vector<RankJoin> joins_;  // by rank
  nlohmann::ordered_json context_;
};

}  // namespace s2o
