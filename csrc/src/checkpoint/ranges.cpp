#include "checkpoint/ranges.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>

namespace nsn::detail {

namespace {

/// Whether box `a` lies in box `b`.
bool lies_in(const Shape& a, const Shape& b) {
  return std::equal(a.begin(), a.end(), b.begin(), [](int64_t x, int64_t y) { return x <= y; });
}

/// Joins the last dimension to the one before where all boxes keep it whole, as long as they do.
void join_whole(Shape& view, const std::vector<std::vector<Shape>*>& all) {
  while (view.size() > 1) {
    const int64_t last = view.back();
    for (const auto* boxes : all) {
      for (const Shape& box : *boxes) {
        if (box.back() != last) return;
      }
    }
    const auto join = [&](Shape& shape) {
      shape.pop_back();
      shape.back() *= last;
    };
    join(view);
    for (auto* boxes : all) std::for_each(boxes->begin(), boxes->end(), join);
  }
}

}  // namespace

Uses uses_of(const Description& description, size_t parameter) {
  const Description::Parameter& described = description.parameters()[parameter];
  Uses result;
  if (described.subnetwork) {  // private: its sub-network uses it whole
    result.view = described.shape;
    result.boxes.emplace_back(*described.subnetwork, described.shape);
  } else {
    const auto users = description.users_of(parameter);
    std::vector<const Layout*> slices;
    slices.reserve(users.size());
    for (const Description::User& user : users) slices.push_back(user.slice);
    auto view = common_view(slices);
    TORCH_INTERNAL_ASSERT(view, "the description makes sure that slices have a common view");
    result.view = std::move(view->view);
    for (const size_t i : c10::irange(users.size())) {
      result.boxes.emplace_back(users[i].subnetwork, std::move(view->slices[i]));
    }
  }
  if (result.view.empty()) {  // a tensor without dimensions
    result.view.push_back(1);
    for (auto& each : result.boxes) each.second.push_back(1);
  }
  return result;
}

int64_t end_of(const Shape& box, const Shape& view) {
  int64_t last = 0;
  for (const size_t dim : c10::irange(box.size())) last = last * view[dim] + box[dim] - 1;
  return last + 1;
}

std::vector<Shape> largest(const Uses& uses, const std::vector<bool>& subnetworks) {
  std::vector<Shape> result;
  for (const auto& [subnetwork, box] : uses.boxes) {
    if (!subnetworks[subnetwork] || is_inside(box, result)) continue;
    const Shape& added = box;
    result.erase(std::remove_if(result.begin(), result.end(),
                                [&](const Shape& each) { return lies_in(each, added); }),
                 result.end());
    result.push_back(box);
  }
  return result;
}

void for_each_run(Shape view, std::vector<Shape> wanted, std::vector<Shape> present,
                  const std::function<void(int64_t, int64_t)>& run) {
  if (wanted.empty()) return;
  join_whole(view, {&wanted, &present});

  Shape bound(view.size(), 0);
  for (const Shape& box : wanted) {
    for (const size_t dim : c10::irange(box.size())) bound[dim] = std::max(bound[dim], box[dim]);
  }
  // Boxes are leading, so each keeps a leading part of a row, or none of it.
  Shape index(view.size() - 1, 0);
  const auto reach = [&](const std::vector<Shape>& boxes) {
    int64_t result = 0;
    for (const Shape& box : boxes) {
      const bool crosses = std::equal(index.begin(), index.end(), box.begin(), std::less<>());
      if (crosses) result = std::max(result, box.back());
    }
    return result;
  };
  while (true) {
    int64_t row = 0;
    for (const size_t dim : c10::irange(index.size())) row = row * view[dim] + index[dim];
    row *= view.back();
    const int64_t begin = reach(present), end = reach(wanted);
    if (begin < end) run(row + begin, row + end);
    size_t dim = index.size();
    while (dim > 0 && ++index[dim - 1] == bound[dim - 1]) index[--dim] = 0;
    if (dim == 0) return;
  }
}

bool is_inside(const Shape& box, const std::vector<Shape>& boxes) {
  return std::any_of(boxes.begin(), boxes.end(),
                     [&](const Shape& each) { return lies_in(box, each); });
}

}  // namespace nsn::detail
