#include "plan/check.h"

#include <algorithm>
#include <optional>
#include <string>

#include "plan/fields.h"

namespace nsn::plan {

namespace {

// What kernels compute from extents stays inside 64 bits: twice the elements of a value times those
// of a weight; the elements of a value times the taps of a pool; the square of an attention's
// positions times its features; the bytes of an input's line times a stride and a pool's extent.
constexpr int64_t kMostElements = int64_t{1} << 31, kMostExtent = int64_t{1} << 20;
constexpr int64_t kMostTaps = int64_t{1} << 24;
/// Placing values takes time that grows as the square of their number.
constexpr size_t kMostSteps = 4096;

constexpr const char* kWrongShape =
    "what it makes has an extent below 1, or more than 2^31 elements";
constexpr const char* kWrongWindow =
    "its window has an extent, stride or dilation below 1, a padding below 0, or one above 2^20";

class Checker {
 public:
  Checker(const Plan& plan, const std::vector<TensorShape>& tensors)
      : plan_(plan), tensors_(tensors), is_made_(plan.values.size(), false) {}

  void operator()() {
    require(!plan_.values.empty() && plan_.values[0].memory == Memory::kInput,
            "its first value is not its input");
    require(plan_.steps.size() <= kMostSteps, "it has more than 4096 steps");
    require(plan_.values.size() == plan_.steps.size() + 1, "not each step makes one value");
    require(is_shape(plan_.values[0].shape), kWrongShape);
    is_made_[0] = true;
    for (at_ = 0; at_ < plan_.steps.size(); ++at_) {
      step_ = &plan_.steps[at_];
      require(step_->output >= plan_.values.size() || is_shape(plan_.values[step_->output].shape),
              kWrongShape);
      std::visit(*this, step_->kernel);
      require(step_->output < plan_.values.size() && !is_made_[step_->output],
              "it makes a value that is there already");
      const Memory memory = plan_.values[step_->output].memory;
      require(memory == (at_ + 1 == plan_.steps.size() ? Memory::kOutput : Memory::kArena),
              "the last step, and no other, is to make the output");
      is_made_[step_->output] = true;
    }
    step_ = nullptr;
    require(!plan_.steps.empty(), "it has no steps");
  }

  void operator()(const Multiply& k) {
    extents({k.rows, k.in, k.out});
    takes({{k.rows, k.in}}, {k.rows, k.out});
    panels(k.weight, k.out, k.in, 1);
    epilogue(k.epilogue, k.out);
  }

  void operator()(const Convolve& k) {
    window(k.window);
    extents({k.in, k.out, k.groups});
    require(k.in % k.groups == 0 && k.out % k.groups == 0, "its groups divide no channels");
    for (const size_t d : {0U, 1U}) {
      require(k.pool[d] >= 1 && k.pool[d] <= k.window.out_size[d], "its pool is out of range");
    }
    require(!k.pools() || k.may_pool(k.pool), "it cannot pool");
    takes({{k.window.in_size[0], k.window.in_size[1], k.in}},
          {k.out_size()[0], k.out_size()[1], k.out});
    if (k.groups == 1) {
      panels(k.weight, k.out, k.in, k.window.taps());
    } else {
      elements(k.weight, {k.window.taps(), k.in / k.groups, k.out});
    }
    epilogue(k.epilogue, k.out);
  }

  void operator()(const ConvolveTransposed& k) {
    window(k.window);
    extents({k.in, k.out});
    takes({{k.window.out_size[0], k.window.out_size[1], k.in}},
          {k.window.in_size[0], k.window.in_size[1], k.out});
    elements(k.weight, {k.window.taps(), k.in, k.out});
    epilogue(k.epilogue, k.out);
  }

  void operator()(const Pool& k) {
    window(k.window);
    extents({k.channels});
    takes({{k.window.in_size[0], k.window.in_size[1], k.channels}},
          {k.window.out_size[0], k.window.out_size[1], k.channels});
  }

  void operator()(const GlobalAverage& k) {
    extents({k.positions, k.channels});
    takes({{k.positions, k.channels}}, {k.channels});
  }

  void operator()(const Upsample& k) {
    extents({k.in_size[0], k.in_size[1], k.factor, k.channels});
    takes({{k.in_size[0], k.in_size[1], k.channels}},
          {k.in_size[0], k.factor, k.in_size[1], k.factor, k.channels});
  }

  void operator()(const NormalizeRows& k) {
    extents({k.rows, k.columns});
    takes({{k.rows, k.columns}}, {k.rows, k.columns});
    vector(k.weight, k.columns);
    vector(k.bias, k.columns);
  }

  void operator()(const NormalizeGroups& k) {
    extents({k.positions, k.channels, k.groups});
    require(k.channels % k.groups == 0, "its groups divide no channels");
    takes({{k.positions, k.channels}}, {k.positions, k.channels});
    vector(k.weight, k.channels);
    vector(k.bias, k.channels);
  }

  void operator()(const ScaleAndShift& k) {
    extents({k.outer, k.extent, k.inner});
    takes({{k.outer, k.extent, k.inner}}, {k.outer, k.extent, k.inner});
    vector(k.scale, k.extent);
    vector(k.shift, k.extent);
  }

  void operator()(const Apply& k) {
    extents({k.count});
    known(k.function);
    takes({{k.count}}, {k.count});
  }

  void operator()(const Gate& k) {
    extents({k.outer, k.extent, k.inner});
    known(k.function);
    takes({{k.outer, 2, k.extent, k.inner}}, {k.outer, k.extent, k.inner});
  }

  void operator()(const Add& k) {
    extents({k.count});
    if (k.tensor) {
      takes({{k.count}}, {k.count});
      const TensorShape& other = tensor(*k.tensor);
      require(!other.is_panels && numel({other.sizes.begin(), other.sizes.end()}) >= k.count,
              "a tensor that it adds is smaller than the value");
    } else {
      takes({{k.count}, {k.count}}, {k.count});
    }
  }

  void operator()(const Pad& k) {
    extents({k.outer, k.count});
    require(k.before >= 0 && k.before <= kMostExtent, "its padding is below 0, or above 2^20");
    takes({{k.outer, k.count}}, {k.outer, k.before + k.count});
  }

  void operator()(const Transpose& k) {
    extents({k.rows, k.columns});
    takes({{k.rows, k.columns}}, {k.columns, k.rows});
  }

  void operator()(const Copy& k) {
    extents({k.count});
    takes({{k.count}}, {k.count});
  }

  void operator()(const Embed& k) {
    extents({k.count, k.columns, k.rows});
    require(step_->inputs == std::vector<ValuePlace>{0}, "it embeds another value than the input");
    require(!reads_input_, "it embeds numbers that others compute with");
    embeds_ = true;
    require(is_size(0, {k.count}), "its input is of another size than the value");
    makes({k.count, k.columns});
    elements(k.table, {1, k.rows, k.columns});
  }

  void operator()(const Attend& k) {
    extents({k.positions, k.heads, k.head_dim});
    require(k.positions <= kMostExtent, "it has more than 2^20 positions");
    takes({{k.positions, 3, k.heads, k.head_dim}}, {k.positions, k.heads, k.head_dim});
  }

  void operator()(const Call& /*k*/) { require(false, "it calls its user"); }

 private:
  void require(bool holds, const std::string& what) const {
    if (holds) return;
    if (step_ == nullptr) throw BadPlan(what);
    throw BadPlan("step " + std::to_string(at_) + " (" + name_of(step_->kernel) + "): " + what,
                  at_);
  }

  void extents(std::initializer_list<int64_t> all) const {
    for (const int64_t each : all) {
      require(each >= 1 && each <= kMostElements, "an extent is below 1, or above 2^31");
    }
  }

  void window(const Window& at) const {
    for (const size_t d : {0U, 1U}) {
      for (const int64_t each :
           {at.in_size[d], at.out_size[d], at.kernel[d], at.stride[d], at.dilation[d]}) {
        require(each >= 1 && each <= kMostExtent, kWrongWindow);
      }
      require(at.padding[d] >= 0 && at.padding[d] <= kMostExtent, kWrongWindow);
    }
    require(at.taps() <= kMostTaps, "its window has more than 2^24 taps");
  }

  void known(Function function) const {
    require(function >= Function::kRelu && function <= Function::kTanh, "its function is unknown");
  }

  bool is_size(ValuePlace value, const Shape& shape) const {
    return is_shape(shape) && numel(plan_.values[value].shape) == numel(shape);
  }

  void reads(ValuePlace value, const Shape& shape) const {
    require(value < plan_.values.size() && is_made_[value], "it reads a value that is not there");
    require(value != 0 || !embeds_, "it computes with numbers that are embedded elsewhere");
    require(is_size(value, shape), "it reads a value of another size");
  }

  void makes(const Shape& shape) const {
    require(step_->output < plan_.values.size() && is_size(step_->output, shape),
            "it makes a value of another size");
  }

  void takes(const std::vector<Shape>& inputs, const Shape& output) {
    require(step_->inputs.size() == inputs.size(), "it has too many inputs, or too few");
    for (size_t i = 0; i < inputs.size(); ++i) {
      reads(step_->inputs[i], inputs[i]);
      reads_input_ = reads_input_ || step_->inputs[i] == 0;
    }
    makes(output);
  }

  const TensorShape& tensor(TensorPlace place) const {
    require(place < tensors_.size(), "it names a tensor that is not there");
    return tensors_[place];
  }

  void panels(TensorPlace place, int64_t out, int64_t in, int64_t taps) const {
    const auto& [is_panels, sizes] = tensor(place);
    require(is_panels && sizes[0] == out && sizes[1] == in && sizes[2] == taps,
            "its weight has other extents");
  }

  void elements(TensorPlace place, const std::array<int64_t, 3>& least) const {
    const auto& [is_panels, sizes] = tensor(place);
    require(!is_panels && sizes[0] >= least[0] && sizes[1] >= least[1] && sizes[2] >= least[2],
            "its tensor has other extents");
  }
  void vector(const std::optional<TensorPlace>& place, int64_t count) const {
    if (place) elements(*place, {1, 1, count});
  }

  void epilogue(const Epilogue& epilogue, int64_t features) {
    vector(epilogue.scale, features);
    vector(epilogue.shift, features);
    if (epilogue.function) known(*epilogue.function);
    if (epilogue.after) known(*epilogue.after);
    if (!epilogue.residual) return;
    reads(*epilogue.residual, plan_.values[step_->output].shape);
    reads_input_ = reads_input_ || *epilogue.residual == 0;
  }

  const Plan& plan_;
  const std::vector<TensorShape>& tensors_;
  std::vector<bool> is_made_;
  size_t at_ = 0;
  const Step* step_ = nullptr;
  bool embeds_ = false, reads_input_ = false;
};

}  // namespace

bool is_shape(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) {
    if (extent < 1 || extent > kMostElements / count) return false;
    count *= extent;
  }
  return true;
}

void check(const Plan& plan, const std::vector<TensorShape>& tensors) { Checker(plan, tensors)(); }

}  // namespace nsn::plan
