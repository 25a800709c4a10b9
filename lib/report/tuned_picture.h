// Which setting every head of every layer takes, as a picture.
#pragma once

#include "lib/methods/tuned/tuned_file.h"
#include "lib/report/image.h"

namespace s2o {

// A panel a length: layers from top to bottom, query heads from left to right. A method has a hue;
// its settings go from dark to light in the order of the file. Below them what is what, with the
// number of heads at each length. UnsupportedError for more than a picture holds.
Image tuned_picture(const TunedFile& file);

}  // namespace s2o
