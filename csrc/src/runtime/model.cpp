#include "runtime/model.h"

#include <utility>

namespace nsn::runtime {

namespace {

[[noreturn]] void refuse_file(const std::string& path, const std::string& what) {
  throw Error("nsn::runtime: '" + path + "' is no file that the runtime can read: " + what +
              ". Write it with `nsn export --format runtime`.");
}

File header_in(const MappedFile& mapped, const std::string& path) {
  try {
    return read_header(mapped.bytes());
  } catch (const std::runtime_error& error) {
    refuse_file(path, error.what());
  }
}

/// What a plan reads, where the mapped file has it.
std::unique_ptr<const Model::State::Ready> make(const File& file, const FileNetwork& network,
                                                const char* data) {
  auto result = std::make_unique<Model::State::Ready>();
  for (const auto& [place, out, in] : network.table) {
    const FileTensor& tensor = file.tensors[place];
    if (!tensor.is_panels()) {
      const auto& sizes = tensor.sizes;
      const auto* elements = reinterpret_cast<const float*>(data + tensor.boxes[0].offset);
      result->tensors.push_back({nullptr, elements, sizes[1], sizes[2]});
      continue;
    }
    std::vector<const void*> boxes;
    for (const Box& box : tensor.boxes) boxes.push_back(data + box.offset);
    result->panels.emplace_back(tensor.out_ends, tensor.in_ends, boxes, tensor.type,
                                tensor.sizes[0], out, in);
    result->tensors.push_back({&result->panels.back()});
  }
  return result;
}

}  // namespace

Model::State::State(const std::string& path)
    : path(path), mapped(path), file(header_in(mapped, path)), made(file.networks.size()) {
  mapped.reserve(file.bytes);
  owned.resize(file.networks.size());
  for (const FileNetwork& network : file.networks) {
    const plan::Plan& plan = network.plan;
    int64_t weight_bytes = 0;
    file.over_boxes(network, [&](size_t tensor, size_t box) {
      weight_bytes += file.tensors[tensor].boxes[box].bytes;
    });
    const auto& output = plan.values[plan.steps.back().output].shape;
    subnetworks.push_back({network.name, plan.values[0].shape, output, plan.embeds,
                           file.needed_by(network), weight_bytes, plan.flops});
  }
  make_ready();
}

void Model::State::make_ready() {
  // What points to panels is smaller than they are; a file in which sub-networks name the same ones
  // over and over is none that nsn writes.
  constexpr int64_t kMost = 64;
  for (size_t i = 0; i < owned.size(); ++i) {
    if (owned[i] != nullptr || subnetworks[i].file_bytes > mapped.size()) continue;
    for (const auto& [tensor, out, in] : file.networks[i].table) {
      pointers += file.tensors[tensor].pointers(out, in);
    }
    if (pointers > kMost * mapped.size()) {
      refuse_file(path, "its sub-networks name the same weights too often");
    }
    owned[i] = make(file, file.networks[i], mapped.data());
    made[i].store(owned[i].get(), std::memory_order_release);
  }
}

Model::Model(std::shared_ptr<State> state) : state_(std::move(state)) {}

Model Model::open(const std::string& path) { return Model(std::make_shared<State>(path)); }

const std::vector<Model::Subnetwork>& Model::subnetworks() const { return state_->subnetworks; }

size_t Model::index_of(std::string_view name) const {
  std::string names;
  for (size_t i = 0; i < subnetworks().size(); ++i) {
    if (subnetworks()[i].name == name) return i;
    names += (names.empty() ? "'" : ", '") + subnetworks()[i].name + "'";
  }
  throw Error("nsn::runtime: '" + state_->path + "' has no sub-network '" + std::string(name) +
              "'. It has " + names + ".");
}

bool Model::has(size_t subnetwork) const {
  return subnetwork < subnetworks().size() && state_->ready(subnetwork) != nullptr;
}

void Model::grow() {
  const std::lock_guard<std::mutex> lock(state_->growing);
  state_->mapped.look();
  state_->make_ready();
}

void Model::load(size_t subnetwork) const {
  if (!has(subnetwork)) {
    throw Error("nsn::runtime: '" + state_->path + "' has no sub-network of place " +
                std::to_string(subnetwork) +
                ", or ends before its weights. Call grow() once they "
                "have been appended.");
  }
  constexpr int64_t kPage = 4096;  // the least that there is; ARM has larger ones too
  unsigned sum = 0;
  const File& file = state_->file;
  file.over_boxes(file.networks[subnetwork], [&](size_t tensor, size_t i) {
    const Box& box = file.tensors[tensor].boxes[i];
    const auto* data = reinterpret_cast<const unsigned char*>(state_->mapped.data()) + box.offset;
    for (int64_t at = 0; at < box.bytes; at += kPage) sum += data[at];
    sum += data[box.bytes - 1];
  });
  // So that reading is not left out.
  const volatile unsigned kept = sum;
  static_cast<void>(kept);
}

}  // namespace nsn::runtime
