#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nsn/description/description.h>
#include <nsn/network/load_report.h>
#include <nsn/values/error.h>
#include <nsn/visibility.h>

// A description and the table of its parameters, in a file: what saving and loading a network is
// made of (checkpoint.h).

namespace nsn {

/// Free text that travels with a checkpoint. The keys "nsn", "nsn_format" and "format" are the
/// library's.
using Metadata = std::map<std::string, std::string>;

/// A checkpoint's contents.
struct Checkpoint {
  Description description;
  /// Of all blocks, in the order of Description::parameters().
  std::vector<at::Tensor> parameters;
  Metadata metadata;
  LoadReport report = {};
};

/// Writes a checkpoint, which takes its place when it is whole: `path` is either complete or
/// untouched. Links are followed, and an old file's mode stays; what is no regular file, may not be
/// written or has other hard links is refused. Throws FileError where the system refuses, and
/// c10::ValueError for tensors that the description does not describe.
NSN_API void write_checkpoint(const Description& description, at::TensorList parameters,
                              const std::string& path, const Metadata& metadata = {});

/// Reads a checkpoint; with `only`, that sub-network's parameters alone. The file may be anybody's:
/// whatever is wrong with it is an error that says what, and the tensors take no more memory than
/// the file is long. Throws FileError where the system refuses, c10::ValueError where the contents
/// are wrong. `supplied` are the merge functions and types of blocks that a file cannot hold:
/// Supplied{.blocks = {{"Mine", factory}}}.
///
/// With `only`, tensors have their full shapes, but what was not read takes address space alone; it
/// reads as zeros. A file that is cut behind what the sub-network needs will do.
NSN_API Checkpoint read_checkpoint(const std::string& path, const Supplied& supplied = {},
                                   const std::optional<std::string>& only = std::nullopt);

/// Reads what is missing of the sub-network `only` (default: of all) into `parameters`, which came
/// from read_checkpoint and have not moved since, and notes it in `report`. What is there already
/// is not written, so it may be in use, or trained further. Throws as read_checkpoint, and where
/// the file has another description.
NSN_API void read_rest(const Description& description, at::TensorList parameters,
                       LoadReport& report, const std::string& path,
                       const std::optional<std::string>& only = std::nullopt,
                       const Supplied& supplied = {});

/// The free text alone.
NSN_API Metadata read_metadata(const std::string& path);

}  // namespace nsn
