#include "values/counts.h"

#include <limits>

namespace nsn::detail {

int64_t saturating_add(int64_t a, int64_t b) {
  int64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<int64_t>::max() : sum;
}

int64_t saturating_product(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product)) {
      return std::numeric_limits<int64_t>::max();
    }
  }
  return product;
}

int64_t kept_numel(const Layout& layout, size_t first) {
  int64_t product = 1;
  for (size_t i = first; i < layout.size(); ++i) product *= layout[i].kept();
  return product;
}

}  // namespace nsn::detail
