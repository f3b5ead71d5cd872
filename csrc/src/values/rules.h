#pragma once

#include <string>
#include <utility>
#include <vector>

#include "nsn/values/merge.h"
#include "nsn/visibility.h"

// The one table of merge rules that go by a name; it stands in merge.cpp. Reading, writing,
// messages and Python follow from it.

namespace nsn::merge {

/// What each sub-network has in a `weighted` rule.
using Weights = std::vector<std::pair<std::string, double>>;

/// What a rule is made of beside its name.
enum class Takes { kNothing, kWeights, kFunction };

/// One entry of the table.
struct KnownRule {
  /// In JSON and, as a function's name, in C++ and Python.
  const char* name;
  /// What the merged gradient is.
  const char* doc;
  Takes takes;
  /// Of a linear rule: the coefficient of each of the lanes, which all cover the element.
  std::vector<double> (*coefficients)(c10::ArrayRef<Lane> lanes, const Weights& weights);
  /// Of a rule that is not linear: the merged gradient of those of all lanes. Neither of the two is
  /// set where the rule takes a function.
  at::Tensor (*merge)(const std::vector<LaneGradient>& gradients);
};

NSN_API c10::ArrayRef<KnownRule> known_rules();

/// Null where there is none.
const KnownRule* find_rule(const std::string& name);

/// The rule of an entry that takes nothing; `entry` has to live as long.
NSN_API Rule make_rule(const KnownRule& entry);

}  // namespace nsn::merge
