#!/bin/sh
# Files of one processor on another: writes files and inputs with the build of this machine, runs
# them with it, and has the other's nsn-run verify what came out. Arguments: that build's folder,
# one to work in, and the other nsn-run with what runs it.
set -eu
here=$1 folder=$2
shift 2
mkdir -p "$folder"
for seed in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  "$here/tests/runtime/nsn_write_sample" "$folder/net" "$seed" "$folder"
  for name in random text; do
    "$here/nsn-run" run "$folder/net" "$name" "$folder/$name.input" "$folder/$name.npy"
    "$@" verify "$folder/net" "$name" "$folder/$name.input" "$folder/$name.npy" --tolerance 2e-4
  done
done
