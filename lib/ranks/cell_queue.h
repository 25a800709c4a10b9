// Hands out the cells of a sweep to ranks. Cells of one input (a layer's Q, K and V; a prompt)
// share its upload and its dense reference, so a rank keeps its input while that has cells.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <vector>

namespace s2o {

class CellQueue {
 public:
  // Cell i belongs to input i / cells_per_input. Cells with a row are not handed out.
  CellQueue(std::size_t num_cells, std::size_t cells_per_input,
            const std::function<bool(std::size_t cell)>& has_row);

  // A cell of the rank's input; else the first of an input that no rank works on; else, of the
  // input with most cells left, one, if that leaves its rank something to do: what a second rank
  // must load and compute again is worth at least a cell. Nothing otherwise, although a rank that
  // dies may leave cells later.
  std::optional<std::size_t> next(int rank);
  // The rank is gone; its input is free. What it had in hand does not come back: it may be the
  // reason.
  void leave(int rank);

  std::size_t left() const { return left_; }
  // What the rank was given last and has not finished.
  std::optional<std::size_t> in_hand(int rank) const;
  void finished(int rank) { in_hand_.erase(rank); }

 private:
  bool has_owner(std::size_t input) const;
  std::size_t take(int rank, std::size_t input);

  std::vector<std::deque<std::size_t>> inputs_;  // cells left
  std::map<int, std::size_t> owned_;             // input of a rank
  std::map<int, std::size_t> in_hand_;
  std::size_t left_ = 0;
};

}  // namespace s2o
