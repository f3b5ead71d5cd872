#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include <nsn/error.h>
#include <nsn/export.h>
#include <nsn/network.h>

// Checkpoints: one safetensors file with the parameters under their names and, in its metadata, the
// description, so that a network is loaded without its architecture in code. docs/checkpoint.md has
// the format.

namespace nsn {

/// Free text that travels with a checkpoint. The keys "nsn" and "format" are the library's.
using Metadata = std::map<std::string, std::string>;

/// A checkpoint's contents.
struct Checkpoint {
  Description description;
  /// Of all blocks, in the order of Description::parameters().
  std::vector<at::Tensor> parameters;
  Metadata metadata;
};

/// Writes a checkpoint: into a temporary file beside `path` first, which then takes its place, so
/// that `path` is either complete or untouched. Throws FileError where the system refuses, and
/// c10::ValueError for tensors that the description does not describe.
NSN_API void write_checkpoint(const Description& description, at::TensorList parameters,
                              const std::string& path, const Metadata& metadata = {});

/// Reads a checkpoint. The file may be anybody's: whatever is wrong with it is an error that says
/// what, and no more is allocated than the file is long. Throws FileError where the system refuses,
/// c10::ValueError where the contents are wrong. `supplied` are
/// the merge functions and types of blocks that a file cannot hold: Supplied{.blocks = {{"Mine",
/// factory}}}.
NSN_API Checkpoint read_checkpoint(const std::string& path, const Supplied& supplied = {});

/// Saves and loads a network, as above.
NSN_API void save(const Network& net, const std::string& path, const Metadata& metadata = {});
NSN_API Network load(const std::string& path, const Supplied& supplied = {});

}  // namespace nsn
