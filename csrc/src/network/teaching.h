#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <string>
#include <vector>

#include "nsn/network/teach.h"
#include "operations/cross_entropy.h"

// What a teacher means for the outputs of one pass.

namespace nsn::detail {

/// Who learns from whom among `names`, of which outputs were given. Throws c10::ValueError where
/// base is to teach and is not among them, or a name is none of the network's.
Teaching teaching_of(const teach::Teacher& teacher, const std::vector<std::string>& names);

/// a * distance of one lane's output from its teacher, by plain operations. `said` has what each
/// lane gave (and last the outside teacher, or nothing), `counted` which positions of the batch
/// count, or nothing where all do.
at::Tensor distance_from_teacher(const teach::Teacher& teacher, const Teaching& teaching,
                                 const std::vector<std::string>& names,
                                 const std::vector<at::Tensor>& said, size_t lane,
                                 const at::Tensor& counted);

}  // namespace nsn::detail
