#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <nsn/visibility.h>

// The runtime: sub-networks of a file that `nsn export --format runtime` has written, without
// LibTorch. docs/runtime.md.

namespace nsn::runtime {

/// A file or an argument is not what it should be; the message says what was found, and the remedy.
class NSN_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A file, mapped read-only: its weights stay in the system's cache, one copy for all processes,
/// and what no sub-network in use needs is never read.
///
/// A handle: copies are of the same model, which is there as long as one of them or a session is.
/// All of it may be called from several threads at once. One that has been moved from may be
/// assigned to or destroyed, and nothing else.
class NSN_API Model {
 public:
  /// One sub-network of a file.
  struct Subnetwork {
    std::string name;
    /// Shapes without the batch.
    std::vector<int64_t> input, output;
    /// Whether the input is of int64, and not of float32.
    bool takes_numbers;
    /// How much of the file it needs, from its begin on; and what it reads of that.
    int64_t file_bytes, weight_bytes;
    /// Floating-point operations for one sample.
    double flops;
  };

  /// Throws Error where the file cannot be read, or is none of the runtime's. Weights are not read;
  /// the beginning of a file that ends behind what a sub-network needs is a file of that.
  static Model open(const std::string& path);

  /// A file that lies in memory of the caller's, of which so many bytes are there by now; in a
  /// program's own data, or on its way from elsewhere. Nothing is copied: it stays where it is, and
  /// as it is, as long as the model or a session is there. It begins at a multiple of 4 bytes, best
  /// of 64. Throws Error as `open` does.
  static Model in_memory(const void* data, size_t bytes);

  /// In the network's order, base first where it was exported; those that a file's beginning is too
  /// short for among them.
  const std::vector<Subnetwork>& subnetworks() const;

  /// The place of one among these. Throws Error, which names all, where there is none.
  size_t index_of(std::string_view name) const;

  /// Whether the file holds all of it.
  bool has(size_t subnetwork) const;

  /// Looks how long the file is by now, so that sub-networks whose weights have been appended are
  /// there too, also for sessions. What was there stays where it is. Throws Error where the file is
  /// shorter than before.
  void grow();
  /// The same for a file in memory, of which so many bytes are there by now.
  void grow_to(size_t bytes);

  /// Reads what a sub-network needs from the disk, so that no run waits for it. Throws Error where
  /// it is not there.
  void load(size_t subnetwork) const;

  struct State;

 private:
  friend class Session;
  explicit Model(std::shared_ptr<State> state);

  std::shared_ptr<State> state_;
};

}  // namespace nsn::runtime
