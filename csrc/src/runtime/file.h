#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/weight_type.h"
#include "plan/check.h"
#include "plan/plan.h"

// What a runtime file holds, and its header. docs/runtime.md describes the bytes.
//
// A header, which names all tensors and the plan of each sub-network, and behind it the weights. A
// weight in panels is cut into boxes where sub-networks' slices end (kernels/panels.h), and boxes
// lie in the order in which sub-networks need them, the smallest first: the beginning of a file is
// a file of the smaller ones.

namespace nsn::runtime {

/// A part of a tensor that lies in one piece: `bytes` from `offset` of the file on; none where no
/// sub-network needs it.
struct Box {
  int64_t offset = 0, bytes = 0;
};

/// A tensor of a file.
struct FileTensor {
  /// Where intervals of output features and of inputs end, of a weight in panels; of other tensors
  /// none.
  std::vector<int64_t> out_ends, in_ends;
  /// Of panels taps alone count; else (taps, in, out), (1, rows, columns), (1, 1, elements).
  std::array<int64_t, 3> sizes = {1, 1, 1};
  /// Of others than panels float32.
  kernels::WeightType type = kernels::WeightType::kFloat32;
  /// By the interval of features, then by that of inputs; of other tensors one.
  std::vector<Box> boxes;

  bool is_panels() const { return !out_ends.empty(); }
  /// What a plan may use of it.
  plan::TensorShape shape() const;
  /// Elements of a box, and the bytes of these.
  int64_t elements(size_t box) const;
  int64_t bytes(size_t box) const { return elements(box) * kernels::bytes_of(type); }
  /// How many boxes hold the leading `out` features and `in` inputs.
  int64_t boxes_of(int64_t out, int64_t in) const;
  /// Bytes of what points to the panels of a slice, about.
  int64_t pointers(int64_t out, int64_t in) const;
  /// Calls `each(box)` for those that hold the leading `out` features and `in` inputs.
  template <typename Each>
  void over_boxes(int64_t out, int64_t in, const Each& each) const {
    if (!is_panels()) return each(size_t{0});
    for (size_t i = 0; i < out_ends.size() && (i == 0 || out_ends[i - 1] < out); ++i) {
      for (size_t j = 0; j < in_ends.size() && (j == 0 || in_ends[j - 1] < in); ++j) {
        each(i * in_ends.size() + j);
      }
    }
  }
};

/// What a place of a plan's table stands for: a tensor, of panels the leading features and inputs.
struct FileSlice {
  size_t tensor;
  int64_t out = 0, in = 0;
};

/// A sub-network.
struct FileNetwork {
  std::string name;
  plan::Plan plan;
  std::vector<FileSlice> table;
};

struct File {
  std::vector<FileTensor> tensors;
  std::vector<FileNetwork> networks;
  /// Of the header, and of all.
  int64_t header_bytes = 0, bytes = 0;

  /// Calls `each(tensor, box)` for what a sub-network reads, in the order of its table.
  template <typename Each>
  void over_boxes(const FileNetwork& network, const Each& each) const {
    for (const auto& [tensor, out, in] : network.table) {
      tensors[tensor].over_boxes(out, in, [&, place = tensor](size_t box) { each(place, box); });
    }
  }
  /// How much of the file a sub-network needs.
  int64_t needed_by(const FileNetwork& network) const;
};

/// What begins a file.
inline constexpr std::string_view kMagic{"\x93nsnplan", 8};
inline constexpr int64_t kVersion = 5;
/// Each box begins at a multiple of so many bytes.
inline constexpr int64_t kAlignment = 64;

/// Cuts tensors in panels where slices end, and sets where boxes lie, and the sizes.
void place(File& file);

/// Checks what a sub-network names of a file's tensors, and its plan, whose values are not placed
/// yet. Throws plan::BadPlan for that, and else std::runtime_error.
void check(const FileNetwork& network, const File& file);

/// The header's bytes, all of them, of a file that has been placed.
std::string header_of(const File& file);

/// What is said of a file that would take long to open.
inline constexpr const char* kNamedTooOften = "its sub-networks name the same weights too often";

/// A file that ends in its header.
struct CutHeader : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Reads the header of a file, of which `all` is there. What it returns can be run: extents,
/// places and plans have been checked against each other, and the plans' values placed. Throws
/// std::runtime_error, which says what is wrong.
File read_header(std::string_view all);

}  // namespace nsn::runtime
