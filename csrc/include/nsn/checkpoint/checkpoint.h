#pragma once

#include <optional>
#include <string>

#include <nsn/checkpoint/tables.h>
#include <nsn/network/network.h>
#include <nsn/visibility.h>

// Checkpoints: one safetensors file with the parameters under their names and, in its metadata, the
// description, so that a network is loaded without its architecture in code. docs/checkpoint.md has
// the format.
//
// A network may be loaded in part: one sub-network at first, the rest later, in place.
//
//     nsn::Network net = nsn::load_only("model.safetensors", "small");
//     const nsn::View small = net->view("small");      // runs already
//     nsn::load_rest(net, "model.safetensors");        // and now the others do; `small` stays
//     valid

namespace nsn {

/// Saves and loads a network, as tables.h says; a network that was loaded in part is not saved.
NSN_API void save(const Network& net, const std::string& path, const Metadata& metadata = {});
NSN_API Network load(const std::string& path, const Supplied& supplied = {});

/// Loads one sub-network, and those inside it, as read_checkpoint does. The network has the whole
/// description, and NetworkImpl::loaded names what runs.
NSN_API Network load_only(const std::string& path, const std::string& subnetwork,
                          const Supplied& supplied = {});

/// Adds to such a network the sub-network `only`, or all that is missing, as read_rest does: in
/// place, so that views see it and stay valid. Views that exist may run meanwhile; whoever makes
/// new ones waits until it is done.
NSN_API void load_rest(const Network& net, const std::string& path,
                       const std::optional<std::string>& only = std::nullopt,
                       const Supplied& supplied = {});

}  // namespace nsn
