// One picture of one head: its attention map, the tiles that each method visits, and for plans with
// an early stop the same attention in the plan's own order, with the line where its tiles stop.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lib/config/params.h"
#include "lib/methods/method.h"
#include "lib/report/attention_map.h"
#include "lib/report/image.h"

namespace s2o {

struct HeatmapMethod {
  std::string label;  // "s2o tau=0.01"
  const Method* method = nullptr;
  ParamSet params;
};

struct HeatmapPanel {
  std::string label;
  double compute_density = 1.0;
  PixelGrid share;                       // visited_share
  std::optional<VisitingView> visiting;  // for a plan with stoppable items
};

struct Heatmap {
  std::string title;
  PixelGrid attention;  // pooled_attention
  std::vector<HeatmapPanel> panels;
};

// Plans every method on the whole input and executes the plan of one head. Oracles get the dense
// reference, computed only if there is one. `pixels` is the side of a panel.
Heatmap compute_heatmap(const AttentionInput& input, int q_head,
                        const std::vector<HeatmapMethod>& methods, int pixels);

// Panels of pixels x pixels, at most four in a row, each under its label; colour bars at the
// bottom.
Image draw_heatmap(const Heatmap& heatmap, int pixels);

// Where draw_heatmap puts the top left corner of panel `index` (0 = the attention map).
struct PanelPlace {
  int x = 0;
  int y = 0;
};
PanelPlace panel_place(int index, int pixels);

}  // namespace s2o
