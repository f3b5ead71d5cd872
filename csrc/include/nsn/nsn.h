#pragma once

// Everything that the library offers. Include single headers where compile time counts.
#include <nsn/block.h>
#include <nsn/blocks/dense.h>
#include <nsn/checkpoint.h>
#include <nsn/core.h>
#include <nsn/description.h>
#include <nsn/error.h>
#include <nsn/functional.h>
#include <nsn/fused_sgd.h>
#include <nsn/loss.h>
#include <nsn/merge.h>
#include <nsn/network.h>
#include <nsn/optim.h>
#include <nsn/version.h>
#include <nsn/view.h>
