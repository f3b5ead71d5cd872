#pragma once

// Everything that the library offers. Include single headers where compile time counts.
#include <nsn/block.h>
#include <nsn/blocks/attention.h>
#include <nsn/blocks/composite.h>
#include <nsn/blocks/conv.h>
#include <nsn/blocks/dense.h>
#include <nsn/blocks/embedding.h>
#include <nsn/blocks/norm.h>
#include <nsn/blocks/pointwise.h>
#include <nsn/blocks/pool.h>
#include <nsn/blocks/wrapped.h>
#include <nsn/checkpoint.h>
#include <nsn/core.h>
#include <nsn/description.h>
#include <nsn/error.h>
#include <nsn/functional.h>
#include <nsn/fused_sgd.h>
#include <nsn/layout.h>
#include <nsn/loss.h>
#include <nsn/merge.h>
#include <nsn/network.h>
#include <nsn/optim.h>
#include <nsn/recalibrate.h>
#include <nsn/summary.h>
#include <nsn/version.h>
#include <nsn/view.h>
