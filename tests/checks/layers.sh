#!/usr/bin/env bash
# layers.sh: who may include what: kernels <- core <- parallel <- rpc <- launcher, and the walls where
# outside libraries stop. Each rule first catches a breach planted in a copy of the tree.
set -euo pipefail
cd "$(dirname "$0")/../.."

# An include that matches the first column may stand only in files that match the second.
rules='
^kernels/                                ^(kernels|core|parallel|rpc|launcher)/
^core/                                   ^(core|parallel|rpc|launcher)/
^parallel/                               ^(parallel|rpc|launcher)/
^rpc/                                    ^(rpc|launcher)/
^launcher/                               ^launcher/
^tests/                                  ^tests/
^(toroid|google)/.*\.pb\.h$              ^(rpc|launcher)/
^(mpi|mpi-ext)\.h$                       ^parallel/mpi_[a-z_]*\.(h|cc)$
^(cblas|openblas.*|lapacke?)\.h$         ^kernels/
^(grpc|grpcpp|google/protobuf)/          ^(rpc|launcher)/
^sqlite3\.h$                             ^rpc/(job|log)_store\.(h|cc)$
^openssl/                                ^rpc/(tls[a-z_]*|pki)\.(h|cc)$
^CLI/                                    ^launcher/command_line\.cc$
^yaml-cpp/                               ^launcher/[a-z_]*\.cc$
^(cuda|cublas|cudnn|nccl)[a-zA-Z_]*\.h$  ^(kernels/|core/cuda_backend|parallel/(nccl_|ipc_link))
'
# The control plane decides in plain code: only its adapters know gRPC and messages.
adapters='^rpc/([a-z_]*_service\.cc|[a-z_]*_client\.cc|client\.cc|server\.cc|services\.h|dialled_stream\.h|worker_link\.(h|cc)|grpc_[a-z_]*\.(h|cc)|convert[a-z_]*\.(h|cc)|error_info\.(h|cc)|job_(text|origin)\.cc|exchange_(wire|flows)\.(h|cc)|exchange_link(_[a-z]*\.(h|cc)|\.cc))$'
adapters_only='^(grpc|grpcpp|google/protobuf)/|\.pb\.h$|^rpc/(grpc_[a-z_]*|dialled_stream|worker_link|services|convert)\.h$'

# check ROOT: prints each breach, and fails if there was one.
check() {
  (cd "$1" && find kernels core parallel proto rpc launcher -name '*.h' -o -name '*.cc' \
      -o -name '*.cu' -o -name '*.cuh' | sort | xargs grep -HE '^ *# *include *[<"]') |
    sed -E 's/^([^:]*): *# *include *[<"]([^">]*)[">].*/\1 \2/' |
    RULES=$rules ADAPTERS=$adapters ADAPTERS_ONLY=$adapters_only awk '
      BEGIN {
        lines = split(ENVIRON["RULES"], line, "\n")
        for (i = 1; i <= lines; ++i)
          if (split(line[i], part, " +") == 2) { include[++n] = part[1]; where[n] = part[2] }
      }
      function breach(why) { print $1 " may not include " $2 ": " why; bad = 1 }
      {
        for (i = 1; i <= n; ++i) if ($2 ~ include[i] && $1 !~ where[i]) breach("only " where[i])
        if ($1 ~ /^rpc\// && $2 ~ ENVIRON["ADAPTERS_ONLY"] && $1 !~ ENVIRON["ADAPTERS"])
          breach("plain logic knows no gRPC and no messages")
      }
      END { exit bad }'
}

check . || exit 1

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r kernels core parallel proto rpc launcher "$copy"
controls=0
# planted FILE INCLUDE: such a file must be caught.
planted() {
  printf '#include %s\n' "$2" >"$copy/$1"
  if check "$copy" >"$copy/said"; then
    echo "layers.sh: not caught: $2 in $1" >&2
    exit 1
  fi
  grep -qF "$1" "$copy/said" || { echo "layers.sh: another file is blamed for $1" >&2; exit 1; }
  rm "$copy/$1"
  controls=$((controls + 1))
}
planted kernels/planted.cc '"core/tensor.h"'
planted core/model/planted.h '"parallel/mesh.h"'
planted parallel/planted.cc '"rpc/client.h"'
planted rpc/planted_service.cc '"launcher/verbs.h"'
planted core/planted.cc '"tests/support/golden.h"'
planted parallel/planted.cc '"toroid/v1/job.pb.h"'
planted parallel/planted.cc '<mpi.h>'
planted core/planted.cc '<cblas.h>'
planted parallel/planted.cc '<grpcpp/server.h>'
planted launcher/planted.cc '<sqlite3.h>'
planted launcher/planted.cc '<openssl/ssl.h>'
planted launcher/planted.cc '<CLI/CLI.hpp>'
planted rpc/planted.cc '<yaml-cpp/yaml.h>'
planted core/planted.cc '<cuda_runtime.h>'
planted rpc/planted.cc '<grpcpp/server.h>'
planted rpc/planted.cc '"toroid/v1/job.pb.h"'
planted rpc/planted.h '"rpc/convert.h"'
echo "layers: ok, $controls planted breaches caught"
