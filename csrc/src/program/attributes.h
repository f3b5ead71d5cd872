#pragma once

#include "nsn/program/primitives.h"

// The attributes of each primitive, listed once: writing and printing follow.

namespace nsn::primitives {

template <typename Visitor>
void visit(const Product& /*p*/, Visitor& /*visitor*/) {}

template <typename Visitor>
void visit(const Convolution& p, Visitor& visitor) {
  visitor("stride", p.stride);
  visitor("padding", p.padding);
  visitor("dilation", p.dilation);
  visitor("groups", p.groups);
}

template <typename Visitor>
void visit(const TransposedConvolution& p, Visitor& visitor) {
  visitor("stride", p.stride);
  visitor("padding", p.padding);
  visitor("output_padding", p.output_padding);
  visitor("dilation", p.dilation);
}

template <typename Visitor>
void visit(const Pad& p, Visitor& visitor) {
  visitor("before", p.before);
}

template <typename Visitor>
void visit(const MaxPool& p, Visitor& visitor) {
  visitor("kernel", p.kernel);
  visitor("stride", p.stride);
  visitor("padding", p.padding);
}

template <typename Visitor>
void visit(const AveragePool& p, Visitor& visitor) {
  visitor("kernel", p.kernel);
  visitor("stride", p.stride);
  visitor("padding", p.padding);
}

template <typename Visitor>
void visit(const GlobalAverage& /*p*/, Visitor& /*visitor*/) {}

template <typename Visitor>
void visit(const Upsample& p, Visitor& visitor) {
  visitor("factor", p.factor);
  visitor("mode", p.mode);
}

template <typename Visitor>
void visit(const LayerNorm& p, Visitor& visitor) {
  visitor("eps", p.eps);
}

template <typename Visitor>
void visit(const RMSNorm& p, Visitor& visitor) {
  visitor("eps", p.eps);
}

template <typename Visitor>
void visit(const GroupNorm& p, Visitor& visitor) {
  visitor("groups", p.groups);
  visitor("eps", p.eps);
}

template <typename Visitor>
void visit(const BatchNorm& p, Visitor& visitor) {
  visitor("eps", p.eps);
  visitor("momentum", p.momentum);
}

template <typename Visitor>
void visit(const ScaleAndShift& p, Visitor& visitor) {
  visitor("dimension", p.dimension);
}

template <typename Visitor>
void visit(const Activate& p, Visitor& visitor) {
  visitor("function", to_string(p.function));
}

template <typename Visitor>
void visit(const Gate& p, Visitor& visitor) {
  visitor("function", to_string(p.function));
  visitor("dimension", p.dimension);
}

template <typename Visitor>
void visit(const Drop& p, Visitor& visitor) {
  visitor("probability", p.probability);
}

template <typename Visitor>
void visit(const Add& /*p*/, Visitor& /*visitor*/) {}

template <typename Visitor>
void visit(const Reshape& p, Visitor& visitor) {
  visitor("shape", p.shape);
}

template <typename Visitor>
void visit(const Embed& /*p*/, Visitor& /*visitor*/) {}

template <typename Visitor>
void visit(const Attend& p, Visitor& visitor) {
  visitor("heads", p.heads);
  visitor("causal", p.causal);
}

template <typename Visitor>
void visit(const Call& p, Visitor& visitor) {
  visitor("type", p.type);
  visitor("options", p.options);
}

}  // namespace nsn::primitives
