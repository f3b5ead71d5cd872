#include "nsn/checkpoint/tables.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <unordered_map>
#include <utility>

#include "checkpoint/partial.h"
#include "checkpoint/ranges.h"
#include "checkpoint/safetensors.h"
#include "description/subnetworks.h"
#include "operations/plain.h"

namespace nsn {

namespace {

using safetensors::Entry;

constexpr const char* kDescriptionKey = "nsn";
constexpr const char* kVersionKey = "nsn_format";  // absent in version 1
constexpr const char* kFormatKey = "format";  // "pt": how other tools tell whose tensors these are
constexpr const char* kVersion = "2";

/// Parameters as they lie in the file: what the smallest sub-network uses first, then what the next
/// larger one adds. Where each keeps whole blocks of the next, each is a prefix.
std::vector<size_t> file_order(const Description& description) {
  const size_t count = description.parameters().size();
  std::vector<size_t> by_size(description.subnetworks().size());
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::sort(by_size.begin(), by_size.end(), [&](size_t a, size_t b) {
    return description.lane(a).is_smaller_than(description.lane(b));
  });
  std::vector<size_t> ranks(count, by_size.size());
  for (const size_t rank : c10::irange(by_size.size())) {
    for (const auto& [p, _] : description.subnetworks()[by_size[rank]].uses) {
      ranks[p] = std::min(ranks[p], rank);
    }
  }
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return ranks[a] < ranks[b]; });
  return order;
}

void check_version(const safetensors::File& file) {
  const auto found = file.metadata().find(kVersionKey);
  const std::string version = found == file.metadata().end() ? "1" : found->second;
  TORCH_CHECK_VALUE(version == "1" || version == kVersion, "nsn::load: '", file.path(),
                    "' has version '", version, "' of the format, but this library reads up to ",
                    kVersion, ". Use a version of nsn that knows it.");
}

const std::string& description_of(const safetensors::File& file) {
  const auto text = file.metadata().find(kDescriptionKey);
  TORCH_CHECK_VALUE(text != file.metadata().end(), "nsn::load: '", file.path(),
                    "' is a safetensors file, but not one of nsn: its metadata have no '",
                    kDescriptionKey, "'. Save the network with nsn::save.");
  return text->second;
}

/// The file's entry of each parameter, held against the description.
std::vector<const Entry*> entries_of(const safetensors::File& file,
                                     const Description& description) {
  const std::string& path = file.path();
  std::unordered_map<std::string, const Entry*> found;
  for (const Entry& entry : file.entries()) found.emplace(entry.name, &entry);
  std::vector<const Entry*> result;
  for (const Description::Parameter& parameter : description.parameters()) {
    const std::string& name = parameter.name;
    const auto entry = found.find(name);
    TORCH_CHECK_VALUE(entry != found.end(), "nsn::load: '", path, "' lacks the tensor '", name,
                      "' of its description. The file is damaged; save it again.");
    TORCH_CHECK_VALUE(entry->second->shape == parameter.shape, "nsn::load: '", path, "': tensor '",
                      name, "' has shape ", to_string(entry->second->shape),
                      ", but the description says ", to_string(parameter.shape),
                      ". The file is damaged; save it again.");
    TORCH_CHECK_VALUE(parameter.takes(entry->second->dtype), "nsn::load: '", path, "': tensor '",
                      name, "' has the dtype ", entry->second->dtype,
                      ", but parameters are floating. The file is damaged; save it again.");
    result.push_back(entry->second);
    found.erase(entry);
  }
  TORCH_CHECK_VALUE(found.empty(), "nsn::load: '", path, "' has the tensor '", found.begin()->first,
                    "', which its description does not know. The file is damaged or foreign.");
  return result;
}

uint64_t element_size(const Entry& entry) { return c10::elementSize(entry.dtype); }

// -------------------------------------------------------------------------------------------------
// Parts

/// How many bytes of tensors, from the front of the file, each sub-network needs.
std::vector<uint64_t> bytes_needed(const Description& description,
                                   const std::vector<const Entry*>& entries) {
  std::vector<uint64_t> result(description.subnetworks().size(), 0);
  for (const size_t p : c10::irange(entries.size())) {
    const auto uses = detail::uses_of(description, p);
    for (const auto& [subnetwork, box] : uses.boxes) {
      const auto end = static_cast<uint64_t>(detail::end_of(box, uses.view));
      result[subnetwork] =
          std::max(result[subnetwork], entries[p]->begin + end * element_size(*entries[p]));
    }
  }
  return result;
}

/// Refuses a file that ends before its last tensor, and says what may be had of it.
void check_whole(const safetensors::File& file, const Description& description,
                 const std::vector<const Entry*>& entries) {
  if (file.data_bytes() == file.described_bytes()) return;
  const auto needed = bytes_needed(description, entries);
  std::vector<std::string> whole;
  for (const size_t s : c10::irange(needed.size())) {
    if (needed[s] <= file.data_bytes()) whole.push_back(description.subnetworks()[s].name);
  }
  const std::string remedy =
      whole.empty() ? "No sub-network is whole in it; save the network again."
                    : "Whole in it are " + detail::quoted(whole) +
                          ": load one of them alone (load_only, or `only`), or save the "
                          "network again.";
  TORCH_CHECK_VALUE(false, "nsn::load: '", file.path(), "': the header describes ",
                    file.described_bytes(), " bytes of tensors, but the file has ",
                    file.data_bytes(), ": it is truncated. ", remedy);
}

/// The place of a sub-network that `function` is to load by itself.
size_t listed_place(const Description& description, const std::string& name, const char* function) {
  const size_t place = description.index_of(name);
  TORCH_CHECK_VALUE(description.is_listed(place), function, ": '", name,
                    "' is a sub-network of the grid, whose parameters are base's. Load base, or "
                    "list it among the sub-networks.");
  return place;
}

/// The sub-networks of which some slice lies outside the slices of those in `present`.
std::set<std::string> missing_beside(const Description& description,
                                     const std::vector<bool>& present) {
  std::vector<bool> missing(present.size(), false);
  for (const size_t p : c10::irange(description.parameters().size())) {
    const auto uses = detail::uses_of(description, p);
    const auto have = detail::largest(uses, present);
    for (const auto& [subnetwork, box] : uses.boxes) {
      if (!detail::is_inside(box, have)) missing[subnetwork] = true;
    }
  }
  std::set<std::string> result;
  for (const size_t s : c10::irange(missing.size())) {
    if (missing[s]) result.insert(description.subnetworks()[s].name);
  }
  return result;
}

/// Refuses what no memory of this machine holds: a sparse file may say that it is of any length.
void check_memory(const safetensors::File& file, uint64_t bytes) {
  static const uint64_t most = detail::most_memory();
  TORCH_CHECK_VALUE(bytes <= most, "nsn::load: '", file.path(), "' has ", bytes,
                    " bytes of tensors to load, but this machine has ", most,
                    " bytes of memory. Load a smaller sub-network, or use a machine with more.");
}

/// How many bytes the sub-networks of `wanted` use: as many, or more where they overlap.
uint64_t bytes_used(const Description& description, const std::vector<const Entry*>& entries,
                    const std::vector<bool>& wanted) {
  uint64_t result = 0;
  for (const size_t p : c10::irange(entries.size())) {
    uint64_t used = 0;
    for (const Shape& box : detail::largest(detail::uses_of(description, p), wanted)) {
      used += static_cast<uint64_t>(c10::multiply_integers(box)) * element_size(*entries[p]);
    }
    result += std::min(used, entries[p]->end - entries[p]->begin);
  }
  return result;
}

/// Fills in what the sub-networks of `wanted` use and those of `present` do not.
void read_missing(safetensors::File& file, const Description& description,
                  const std::vector<const Entry*>& entries, at::TensorList parameters,
                  const std::vector<bool>& wanted, const std::vector<bool>& present) {
  const auto needed = bytes_needed(description, entries);
  for (const size_t s : c10::irange(wanted.size())) {
    TORCH_CHECK_VALUE(!wanted[s] || needed[s] <= file.data_bytes(), "nsn::load: '", file.path(),
                      "' has ", file.data_bytes(), " bytes of tensors, but sub-network '",
                      description.subnetworks()[s].name, "' needs ", needed[s],
                      ": the file is truncated. Load a smaller sub-network, or save the network "
                      "again.");
  }
  check_memory(file, bytes_used(description, entries, wanted));
  for (const size_t p : c10::irange(entries.size())) {
    const auto uses = detail::uses_of(description, p);
    const uint64_t size = element_size(*entries[p]);
    safetensors::RunReader reader(file, *entries[p], static_cast<char*>(parameters[p].data_ptr()));
    detail::for_each_run(uses.view, detail::largest(uses, wanted), detail::largest(uses, present),
                         [&](int64_t begin, int64_t end) {
                           reader.add(static_cast<uint64_t>(begin) * size,
                                      static_cast<uint64_t>(end) * size);
                         });
    reader.finish();
  }
}

}  // namespace

// -------------------------------------------------------------------------------------------------

void write_checkpoint(const Description& description, at::TensorList parameters,
                      const std::string& path, const Metadata& metadata) {
  description.check_count(parameters, "nsn::save");
  for (const size_t p : c10::irange(parameters.size())) {
    const Description::Parameter& parameter = description.parameters()[p];
    parameter.check(parameters[p], "nsn::save");
    detail::check_plain(parameters[p], parameter.name, "save");
  }
  Metadata all = metadata;
  for (const char* key : {kDescriptionKey, kVersionKey, kFormatKey}) {
    TORCH_CHECK_VALUE(metadata.count(key) == 0, "nsn::save: the metadata key '", key,
                      "' is the library's own. Choose another.");
  }
  all[kDescriptionKey] = description.to_json();
  all[kVersionKey] = kVersion;
  all[kFormatKey] = "pt";
  safetensors::NamedTensors tensors;
  for (const size_t p : file_order(description)) {
    tensors.emplace_back(description.parameters()[p].name, parameters[p]);
  }
  safetensors::write(path, tensors, all);
}

Checkpoint read_checkpoint(const std::string& path, const Supplied& supplied,
                           const std::optional<std::string>& only) {
  safetensors::File file(path);
  check_version(file);
  Checkpoint result{Description::from_json(description_of(file), supplied), {}, file.metadata()};
  const Description& description = result.description;
  const auto entries = entries_of(file, description);
  if (only) {
    std::vector<bool> wanted(description.subnetworks().size(), false), present = wanted;
    wanted[listed_place(description, *only, "nsn::load")] = true;
    result.parameters = safetensors::reserve(file, entries);
    read_missing(file, description, entries, result.parameters, wanted, present);
    result.report.missing = missing_beside(description, wanted);
  } else {
    check_whole(file, description, entries);
    check_memory(file, file.described_bytes());
    for (const Entry* entry : entries) {
      const auto options = at::TensorOptions().dtype(entry->dtype);
      at::Tensor& tensor = result.parameters.emplace_back(at::empty(entry->shape, options));
      file.read(entry->begin, tensor.mutable_data_ptr(), entry->end - entry->begin);
    }
  }
  result.report.bytes_read = file.bytes_read();
  for (const char* key : {kDescriptionKey, kVersionKey, kFormatKey}) result.metadata.erase(key);
  return result;
}

void read_rest(const Description& description, at::TensorList parameters, LoadReport& report,
               const std::string& path, const std::optional<std::string>& only,
               const Supplied& supplied) {
  safetensors::File file(path);
  check_version(file);
  const std::string& text = description_of(file);
  // That the network changed its dtype meanwhile is said below, by the tensors.
  const auto is_same = [&] {
    return Description::from_json(text, supplied).with_dtype(description.parameter_dtype()) ==
           description;
  };
  TORCH_CHECK_VALUE(
      text == description.to_json() || is_same(), "nsn::load_rest: '", path,
      "' has another description than the network. Give the file that the network came from.");
  const auto entries = entries_of(file, description);
  description.check_count(parameters, "nsn::load_rest");
  for (const size_t p : c10::irange(entries.size())) {
    const at::Tensor& tensor = parameters[p];
    TORCH_CHECK_VALUE(tensor.defined() && tensor.device().is_cpu() && tensor.is_contiguous() &&
                          tensor.scalar_type() == entries[p]->dtype &&
                          tensor.sizes() == at::IntArrayRef(entries[p]->shape),
                      "nsn::load_rest: parameter '", entries[p]->name,
                      "' must lie in memory as in the file, as ", entries[p]->dtype, " of shape ",
                      to_string(entries[p]->shape),
                      ". Load the rest before the network moves or changes dtype.");
  }
  const size_t count = description.subnetworks().size();
  std::vector<bool> present(count, true), wanted(count, !only);
  for (const std::string& name : report.missing) present[description.index_of(name)] = false;
  if (only) wanted[listed_place(description, *only, "nsn::load_rest")] = true;
  read_missing(file, description, entries, parameters, wanted, present);
  for (const size_t s : c10::irange(count)) present[s] = present[s] || wanted[s];
  report.missing = missing_beside(description, present);
  report.bytes_read += file.bytes_read();
}

Metadata read_metadata(const std::string& path) {
  const safetensors::File file(path);
  check_version(file);
  description_of(file);
  Metadata result = file.metadata();
  for (const char* key : {kDescriptionKey, kVersionKey, kFormatKey}) result.erase(key);
  return result;
}

}  // namespace nsn
