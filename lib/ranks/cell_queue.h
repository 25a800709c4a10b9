// Hands out the cells of a sweep to ranks. Cells of one input (a layer's Q, K and V; a prompt)
// share its upload and its dense reference, so a rank keeps its input while that has cells. Long
// inputs come first, so that ranks which run out of others find one that is worth sharing.
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
  // Cell i belongs to input i / cells_per_input. Cells with a row are not handed out. `length` is
  // of a cell's input, in any unit.
  CellQueue(std::size_t num_cells, std::size_t cells_per_input,
            const std::function<bool(std::size_t cell)>& has_row,
            const std::function<double(std::size_t cell)>& length);

  // A cell of the rank's input; else the first of the longest input that no rank works on; else one
  // of the input that keeps its ranks busy longest, if this rank will have loaded it and computed
  // the cell before they have computed all. Nothing otherwise, although a rank that dies may leave
  // cells later.
  std::optional<std::size_t> next(int rank);
  // The rank is gone; its input is free. What it had in hand does not come back: it may be the
  // reason.
  void leave(int rank);

  std::size_t left() const { return left_; }
  // What the rank was given last and has not finished.
  std::optional<std::size_t> in_hand(int rank) const;
  // With the time since it was given.
  void finished(int rank, double seconds);

 private:
  struct Input {
    std::deque<std::size_t> cells;  // left
    double length = 0.0;
    double seconds_with_load = 0.0;  // the least of a rank's first cells; 0 while none is finished
    double seconds = 0.0;            // of the others
    int num_timed = 0;
  };
  struct InHand {
    std::size_t cell = 0;
    std::size_t input = 0;
    bool loads = false;
  };

  int num_owners(std::size_t input) const;
  // How long its ranks will be busy, and whether one more rank would be of use; cells while no
  // times are known.
  double busy(std::size_t input) const;
  bool worth_sharing(std::size_t input) const;
  std::size_t take(int rank, std::size_t input);

  std::vector<Input> inputs_;
  std::vector<std::size_t> order_;    // inputs, the longest first
  std::map<int, std::size_t> owned_;  // input of a rank
  std::map<int, InHand> in_hand_;
  std::size_t left_ = 0;
};

}  // namespace s2o
