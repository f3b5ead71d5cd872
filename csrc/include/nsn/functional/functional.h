#pragma once

// What lane-aware operations compute: a forward for several lanes at once, and a backward that
// merges the lanes' gradients of the shared parameter into one buffer while the gradients of the
// lanes' inputs stay unmerged. No state, no modules.
//
// Second derivatives work where the merged gradient is the gradient of one function: where each
// lane's coefficient is 1 (`sum`; a single lane under any rule but `weighted` and `function`).
// Elsewhere the first backward may be recorded (create_graph), and differentiating it throws.

#include <nsn/functional/convolution.h>
#include <nsn/functional/linear.h>
#include <nsn/functional/relu_dropout.h>
#include <nsn/functional/share.h>
#include <nsn/operations/plain_guard.h>
